"""The spool's header reader: which study, image or not, on real files and on hostile bytes."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTDoseStorage,
    SegmentationStorage,
)

from dicomnode.errors import InputError
from dicomnode.scp.header import INFLATED_PREFIX_BYTES, read_header

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # damaged on purpose


def encoded(ds: Dataset, syntax=ExplicitVRLittleEndian) -> bytes:
    out = DicomBytesIO()
    out.is_implicit_VR = syntax == ImplicitVRLittleEndian
    out.is_little_endian = syntax != ExplicitVRBigEndian
    write_dataset(out, ds)
    data = out.getvalue()
    if syntax == DeflatedExplicitVRLittleEndian:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflate.compress(data) + deflate.flush()
    return data


def image(sop_class=CTImageStorage) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    ds.PatientID = "P"
    ds.ReferencedStudySequence = [Dataset()]
    ds.ReferencedStudySequence[0].StudyInstanceUID = "9.9.9"  # nested: not this object's
    ds.Rows = ds.Columns = 2
    return ds


def header(tmp_path: Path, data: bytes, syntax=ExplicitVRLittleEndian, own=()):
    path = tmp_path / "object"
    path.write_bytes(b"x" * 7 + data)
    return read_header(path, 7, syntax, own)


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_every_encoding_gives_the_same_header(tmp_path, syntax):
    found = header(tmp_path, encoded(image(), syntax), syntax)
    assert (found.study_uid, found.series_uid, found.sop_uid, found.sop_class) == (
        "1.2.3",
        "1.2.3.1",
        "1.2.3.4",
        CTImageStorage,
    )
    assert found.image


@pytest.mark.parametrize("sop_class", [SegmentationStorage, RTDoseStorage])
def test_derived_grids_have_rows_but_are_not_images(tmp_path, sop_class):
    assert not header(tmp_path, encoded(image(sop_class))).image


def test_an_object_without_rows_is_not_an_image(tmp_path):
    ds = image(EncapsulatedPDFStorage)
    del ds.Rows
    assert not header(tmp_path, encoded(ds)).image


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_object_cut_off_before_its_rows_may_be_an_image(tmp_path, syntax):
    data = encoded(image(), syntax)
    found = header(tmp_path, data[:-20], syntax)  # the last elements are Rows and Columns, of ten bytes each
    assert found.study_uid == "1.2.3"
    assert found.image, "so that a job, and with it a person, gets to see it"


def test_a_report_that_is_cut_off_is_still_no_image(tmp_path):
    ds = image(EncapsulatedPDFStorage)
    del ds.Rows, ds.Columns
    assert not header(tmp_path, encoded(ds)).image


def test_an_object_of_a_private_class_with_rows_is_an_image(tmp_path):
    assert header(tmp_path, encoded(image("1.2.840.99999.1.1"))).image


@pytest.mark.parametrize("keyword", ["InstanceCreatorUID", "DeviceUID"])
def test_an_object_made_by_this_node_is_known_by_the_uid_of_its_maker(tmp_path, keyword):
    ds = image()
    setattr(ds, keyword, "2.25.77")
    assert header(tmp_path, encoded(ds), own={"2.25.77"}).own
    assert not header(tmp_path, encoded(ds), own={"2.25.78"}).own


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "image_dfl.dcm", "693_J2KI.dcm"])
def test_real_files_are_images(name):
    path = Path(get_testdata_file(name))
    ds = dcmread(path)
    offset = 132 + 12 + ds.file_meta.FileMetaInformationGroupLength
    found = read_header(path, offset, ds.file_meta.TransferSyntaxUID)
    assert found.study_uid == ds.StudyInstanceUID
    assert found.image


@pytest.mark.parametrize("name", ["reportsi.dcm", "rtplan.dcm"])
def test_real_reports_and_plans_are_not_images(name):
    path = Path(get_testdata_file(name))
    ds = dcmread(path)
    offset = 132 + 12 + ds.file_meta.FileMetaInformationGroupLength
    assert not read_header(path, offset, ds.file_meta.TransferSyntaxUID).image


def test_a_missing_or_overlong_study_uid_is_an_input_error(tmp_path):
    ds = image()
    del ds.StudyInstanceUID
    with pytest.raises(InputError, match="0020,000D"):
        header(tmp_path, encoded(ds))
    ds.StudyInstanceUID = "1." * 40 + "1"
    with pytest.raises(InputError, match="0020,000D"):
        header(tmp_path, encoded(ds))


def test_an_empty_data_set_is_an_input_error(tmp_path):
    with pytest.raises(InputError):
        header(tmp_path, b"")


def test_hostile_bytes_end_in_an_input_error_or_a_header_and_never_in_anything_else(tmp_path):
    rng = random.Random(7)
    good = encoded(image())
    readable = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        syntax = rng.choice([ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
        try:
            header(tmp_path, bytes(data[: rng.randint(0, len(data))]), syntax)
            readable += 1
        except InputError as exc:
            assert "1.2.3" not in str(exc)
    assert readable  # some changes do no harm: the loop does reach both ends


def test_a_deflate_bomb_is_read_only_as_far_as_the_prefix(tmp_path):
    ds = image()
    ds.add_new(0x00091001, "OB", bytes(4 * INFLATED_PREFIX_BYTES))  # before the UIDs: they are out of reach
    data = encoded(ds, DeflatedExplicitVRLittleEndian)
    assert len(data) < INFLATED_PREFIX_BYTES // 100
    with pytest.raises(InputError):
        header(tmp_path, data, DeflatedExplicitVRLittleEndian)


def test_a_file_that_is_gone_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="read back"):
        read_header(tmp_path / "gone", 0, ExplicitVRLittleEndian)

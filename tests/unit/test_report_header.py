"""The header of what we send: any character set in, valid UTF-8 out, and never somebody else's identity."""

from datetime import UTC, datetime
from io import BytesIO

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_charset_files, get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from structlog.testing import capture_logs

from dicomnode.errors import InputError
from dicomnode.report.codes import COMPREHENSIVE_SR
from dicomnode.report.header import clean_text, new_object, patient_and_study, to_bytes
from dicomnode.report.spec import ReportSpec
from dicomnode.report.uids import Kind

SPEC = ReportSpec(
    series_instance_uid="2.25.1",
    sop_instance_uid="2.25.2",
    created=datetime(2026, 3, 4, tzinfo=UTC),
    link="",
    software_version="0.1.0",
    organisation="Hospital Clínico",
)


def minimal(**values: object) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.StudyInstanceUID = "1.2.3"
    for keyword, value in values.items():
        with pydicom.config.disable_value_validation():
            setattr(ds, keyword, value)
    return ds


def written(header: Dataset) -> Dataset:
    ds = new_object(header, SPEC, kind=Kind.SR, sop_class_uid=COMPREHENSIVE_SR, modality="SR")
    return pydicom.dcmread(BytesIO(to_bytes(ds)))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("chrH31.dcm", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("chrH32.dcm", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        ("chrI2.dcm", "Hong^Gildong=洪^吉洞=홍^길동"),
        ("chrX2.dcm", "Wang^XiaoDong=王^小东"),
        ("chrRuss.dcm", "Люкceмбypг"),
        ("chrArab.dcm", "قباني^لنزار"),
        ("chrHbrw.dcm", "שרון^דבורה"),
        ("chrFren.dcm", "Buc^Jérôme"),
    ],
)
def test_names_of_every_script_survive_as_utf8(file: str, name: str) -> None:
    (path,) = get_charset_files(file)
    ds = written(pydicom.dcmread(path, force=True))
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert str(ds.PatientName) == name


def test_a_legal_name_of_three_long_groups_is_not_cut() -> None:
    name = "Fujiwarano^Kamatarinosuke=藤原の^鎌足之助=ふじわらの^かまたりのすけ"
    assert len(name.encode()) > 64
    assert str(patient_and_study(minimal(PatientName=name)).PatientName) == name


def test_spanish_in_latin1_survives() -> None:
    latin = Dataset()
    latin.SpecificCharacterSet = "ISO_IR 100"
    latin.StudyInstanceUID = "1.2.3"
    latin.PatientName = "Muñoz Ibáñez^María José"
    latin.StudyDescription = "TC de tórax"
    latin.file_meta = pydicom.dataset.FileMetaDataset()
    latin.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, latin)
    ds = written(pydicom.dcmread(BytesIO(buffer.getvalue()), force=True))
    assert str(ds.PatientName) == "Muñoz Ibáñez^María José"
    assert ds.StudyDescription == "TC de tórax"


def test_an_empty_header_gives_empty_type_2_attributes() -> None:
    ds = written(minimal())
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        assert keyword in ds
        assert not ds[keyword].value
    for keyword in ("StudyDate", "StudyTime", "ReferringPhysicianName"):
        assert not ds[keyword].value
    assert ds.InstitutionName == "Hospital Clínico"


@pytest.mark.parametrize("uid", [None, "", "1.2.03", "x", "1." * 40 + "1"])
def test_a_query_without_a_valid_study_uid_is_refused_without_quoting_it(uid: str | None) -> None:
    header = minimal()
    del header.StudyInstanceUID
    if uid is not None:
        with pydicom.config.disable_value_validation():
            header.StudyInstanceUID = uid
    with pytest.raises(InputError) as caught:
        patient_and_study(header)
    assert "StudyInstanceUID" in str(caught.value)
    assert not uid or uid not in str(caught.value).replace("StudyInstanceUID", "").replace("no report can be", "")


@pytest.mark.parametrize("keyword", ["PatientID", "AccessionNumber", "StudyID"])
def test_an_invalid_identifier_is_left_empty_and_never_shortened(keyword: str) -> None:
    for value in ("SECRET" * 20, ["SECRET1", "SECRET2"], "SEC\x07RET"):
        with capture_logs() as logs:
            ds = patient_and_study(minimal(**{keyword: value}))
        assert ds[keyword].value == ""
        assert {"event": "header_identifier_left_empty", "attribute": keyword, "log_level": "warning"} in logs
        assert "SEC" not in str(logs)


def test_an_issuer_without_an_id_is_not_sent() -> None:
    assert "IssuerOfPatientID" not in patient_and_study(minimal(PatientID="x" * 65, IssuerOfPatientID="HOSP"))
    assert patient_and_study(minimal(PatientID="x", IssuerOfPatientID="HOSP")).IssuerOfPatientID == "HOSP"


def test_a_valid_identifier_is_kept_letter_by_letter() -> None:
    assert patient_and_study(minimal(PatientID="ñ" * 64)).PatientID == "ñ" * 64
    assert patient_and_study(minimal(AccessionNumber="A-1/2 b")).AccessionNumber == "A-1/2 b"


def test_descriptions_are_shortened_in_bytes_and_characters() -> None:
    described = patient_and_study(minimal(StudyDescription="胸部単純CT検査" * 9)).StudyDescription
    assert described.startswith("胸部単純CT検査")
    assert described.endswith("...")
    assert len(described.encode()) <= 64


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("StudyDate", "2024.01.02", "20240102"),
        ("StudyDate", "20240230", ""),
        ("StudyDate", "2024W011", ""),
        ("StudyTime", "10:15:00", "101500"),
        ("StudyTime", "101500.123456", "101500.123456"),
        ("StudyTime", "noon", ""),
        ("PatientBirthDate", "19600101", "19600101"),
        ("PatientSex", "F", "F"),
        ("PatientSex", "female", ""),
    ],
)
def test_required_values_are_valid_or_empty(keyword: str, value: str, expected: str) -> None:
    assert patient_and_study(minimal(**{keyword: value}))[keyword].value == expected


@pytest.mark.parametrize(
    ("keyword", "bad"), [("PatientAge", "64"), ("PatientAge", "64YEARS"), ("TimezoneOffsetFromUTC", "+9999")]
)
def test_optional_values_that_are_not_valid_are_left_out(keyword: str, bad: str) -> None:
    assert keyword not in patient_and_study(minimal(**{keyword: bad}))


def test_an_unreadable_number_is_left_out() -> None:
    raw = pydicom.dcmread(get_testdata_file("CT_small.dcm"), stop_before_pixels=True)
    raw[0x00101030] = raw.get_item(0x00101030)._replace(value=b"heavy ")
    assert "PatientWeight" not in patient_and_study(raw)


def test_only_complete_procedure_codes_are_kept() -> None:
    good, bad = Dataset(), Dataset()
    good.CodeValue, good.CodingSchemeDesignator, good.CodeMeaning = "CTCH", "99HOSP", "CT chest"
    bad.CodeValue = "X"
    header = minimal(ProcedureCodeSequence=Sequence([bad, good]))
    (kept,) = patient_and_study(header).ProcedureCodeSequence
    assert kept.CodeMeaning == "CT chest"


def test_a_query_marked_as_deidentified_stays_marked_only_with_its_method() -> None:
    with_method = minimal(PatientIdentityRemoved="YES", DeidentificationMethod="by hand")
    assert patient_and_study(with_method).DeidentificationMethod == "by hand"
    assert "PatientIdentityRemoved" not in patient_and_study(minimal(PatientIdentityRemoved="YES"))


def test_nothing_outside_the_allow_list_is_copied() -> None:
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    ds = written(header)
    for keyword in ("PixelData", "KVP", "StationName", "FrameOfReferenceUID"):
        assert keyword in header
        assert keyword not in ds
    assert not [e for e in ds if e.tag.is_private]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["PatientName", "StudyDescription", "PatientComments", "EthnicGroup", "OtherPatientNames"]),
        st.text(max_size=200),
    )
)
def test_whatever_the_text_the_object_can_be_written_and_read(values: dict[str, str]) -> None:
    ds = written(minimal(**values))
    for keyword, limit in (("StudyDescription", 64), ("EthnicGroup", 16)):
        assert len(str(ds.get(keyword, "")).encode()) <= limit
    assert all(len(group) <= 64 for group in str(ds.PatientName).split("="))


@given(st.text(), st.integers(min_value=4, max_value=64))
def test_cleaned_text_keeps_its_length_and_has_no_control_characters(text: str, length: int) -> None:
    cleaned = clean_text(text, length)
    assert len(cleaned.encode()) <= length
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c == "\\" for c in cleaned)

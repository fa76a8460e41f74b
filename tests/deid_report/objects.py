"""The objects that identities are planted into: real ones of the packages, and generated ones of other modalities.

Real: pydicom's own test files and those of pydicom-data and deid-data, read where they are installed; large matrices
are cut to 64 x 64 pixels. Generated: a small image with the attributes that its IOD wants of the patient, study,
series and equipment. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import data_store
import deid_data
import pydicom
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SIDE = 64  # of matrices that are cut
LARGE = 1 << 20  # bytes of pixel data
_ROOT = "1.2.826.0.1.3680043.9998."
# SOP Class and SOP Instance are the object's; the names are those of the files in the packages.
REAL = {
    "CT": ["CT_small.dcm", "693_J2KI.dcm", "6293", "eCT_Supplemental.dcm", "explicit_VR-UN.dcm"],
    "MR": ["MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm", "emri_small.dcm"],
    "CR": ["6154", "6247", "RG1_UNCI.dcm"],
    "DX": ["cat.dcm"],
    "RTDOSE": ["rtdose.dcm", "rtdose_1frame.dcm", "rtdose_rle_1frame.dcm"],
    "SEG": ["liver_1frame.dcm", "liver_expb_1frame.dcm"],
    "US": ["examples_rgb_color.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm"],
    "OT": ["SC_rgb_jpeg.dcm"],
}
# Files that show text of their own, which is masked rightly: the part (top, bottom, left, right) that shows none.
TEXT_FREE = {
    "examples_rgb_color.dcm": (62, 164, 34, 284),
    "JPGLosslessP14SV1_1s_1f_8b.dcm": (200, 640, 160, 700),
}
# Modality -> SOP Class (PS3.4 B.5), and what tells an image of this modality from others.
GENERATED: dict[str, tuple[str, dict[str, object]]] = {
    "PT": ("1.2.840.10008.5.1.4.1.1.128", {"Units": "BQML", "DecayCorrection": "START", "SliceThickness": "3.27"}),
    "NM": ("1.2.840.10008.5.1.4.1.1.20", {"NumberOfFrames": "1", "CountsAccumulated": "31415", "KVP": None}),
    "MG": ("1.2.840.10008.5.1.4.1.1.1.2", {"ImageLaterality": "L", "ViewPosition": "MLO", "KVP": "28"}),
    "RF": ("1.2.840.10008.5.1.4.1.1.12.2", {"KVP": "75", "RadiationSetting": "SC", "XRayTubeCurrent": "120"}),
    "IO": ("1.2.840.10008.5.1.4.1.1.1.3", {"KVP": "65", "ExposureTime": "160", "PositionerType": "NONE"}),
    "PX": ("1.2.840.10008.5.1.4.1.1.1.1", {"KVP": "70", "PositionerType": "NONE", "BodyPartExamined": "JAW"}),
}


@dataclass(frozen=True)
class Carrier:
    """An object before anything is planted. ``source`` is a file of a package, or ``generated``."""

    modality: str
    source: str
    ds: FileDataset


def carriers() -> Iterator[Carrier]:
    """Each object anew, so that what is planted into one does not reach another."""
    files = package_files()
    for modality, names in REAL.items():
        for name in names:
            if name in files:
                yield Carrier(modality, name, _read(files[name]))
    for modality, (sop_class, special) in GENERATED.items():
        for number in (1, 2):
            yield Carrier(modality, f"generated {number}", _generated(modality, sop_class, special))


def package_files() -> dict[str, Path]:
    """The files of pydicom and of the data packages that are installed, by name."""
    folders = [Path(pydicom.__file__).parent / "data" / "test_files"]
    folders += [Path(package.__file__).parent for package in (data_store, deid_data)]
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                found.setdefault(path.name, path)
    return found


def _read(path: Path) -> FileDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(path)
        ds.walk(lambda _, __: None)  # reads every element before the character set is changed
    if len(ds.PixelData) > LARGE and not ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds.PixelData = ds.PixelData[: SIDE * SIDE * ds.BitsAllocated // 8 * ds.SamplesPerPixel]
        ds.Rows = ds.Columns = SIDE
        ds.NumberOfFrames = 1
    return ds


def _generated(modality: str, sop_class: str, special: dict[str, object]) -> FileDataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop_class, f"{_ROOT}1", modality
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = f"{_ROOT}2", f"{_ROOT}3", f"{_ROOT}4"
    ds.ImageType, ds.Manufacturer = ["ORIGINAL", "PRIMARY"], "GE MEDICAL SYSTEMS"
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = "1", "1", "1"
    ds.BodyPartExamined, ds.PatientPosition, ds.SoftwareVersions = "CHEST", "HFS", "07MW18.4"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = ["-158.1", "-179.0", "-75.6"], ["1", "0", "0", "0", "1", "0"]
    ds.PixelSpacing, ds.RescaleIntercept, ds.RescaleSlope = ["0.66", "0.66"], "-1024", "1"
    ds.WindowCenter, ds.WindowWidth, ds.LossyImageCompression = "40", "400", "00"
    ds.Rows = ds.Columns = 16
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelData = bytes(range(256)) * 2
    ds["PixelData"].VR = "OW"
    for keyword, value in special.items():
        with contextlib.suppress(ValueError):
            setattr(ds, keyword, value)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, ds.SOPInstanceUID
    return FileDataset(None, ds, preamble=b"\0" * 128, file_meta=meta)

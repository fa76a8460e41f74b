"""Sample studies: the phantom as valid DICOM objects, alone or as a small repository with its findings.

Every object says that it is a phantom (Manufacturer, SeriesDescription, ImageComments); UIDs are derived from the seed,
so the same call gives the same bytes. Attributes follow PS3.3 A.3 (CT Image) and A.4 (MR Image). Never holds data of a
person: names, dates and numbers are made up.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from dicomnode.domain import LABEL_SCHEME
from dicomnode.errors import UsageError
from dicomnode.testing.phantom import FIELD_MM, LENGTH_MM, FindingKind, Thorax

FINDINGS: tuple[FindingKind | None, ...] = (None, *get_args(FindingKind))
# SNOMED CT codes as in PS3.16 (pydicom.sr.codedict); consolidation has none there and stays a plain label.
FINDING_CODES: dict[FindingKind, tuple[str, str, str]] = {
    "nodule": ("SCT", "27925004", "Nodule"),
    "consolidation": (LABEL_SCHEME, "consolidation", "Consolidation"),
    "effusion": ("SCT", "60046008", "Pleural effusion"),
}
INTERCEPT = -1024  # unsigned 12-bit storage of CT numbers, as most scanners write it
MARK = "dicomnode phantom"


def sample_study(
    slices: int = 16,
    *,
    patient_id: str = "PHANTOM-0001",
    name: str = "Phantom^Thorax",
    finding: FindingKind | None = None,
    seed: int = 0,
    modality: Literal["CT", "MR"] = "CT",
    matrix: int = 256,
    study_uid: str | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    **attributes: Any,
) -> list[Dataset]:
    """Make a study of one axial series through the phantom's thorax.

    Parameters
    ----------
    slices : int
        Number of images; they always span the whole thorax (290 mm), from the apices down.
    patient_id, name : str
        PatientID and PatientName. Nothing else depends on them but the UIDs.
    finding : {"nodule", "consolidation", "effusion"}, optional
        What is seen in the lungs; on at least one slice whatever their number.
    seed : int
        Draws the anatomy; the same arguments give the same bytes.
    modality : {"CT", "MR"}
        "MR" stores the same geometry as positive signal without a CT number scale.
    matrix : int
        Rows and columns.
    study_uid : str, optional
        Study Instance UID; else derived from patient, seed and finding.
    transfer_syntax : str
        UID: native little endian, or one that pydicom can encode to (RLE, JPEG-LS, JPEG 2000).
    **attributes
        Attributes by keyword, set on every image last: ``AccessionNumber="A1"``; None deletes.

    Returns
    -------
    list of pydicom.FileDataset
        In slice order, with file meta information: ready for ``save_as``, C-STORE or a STOW body.

    Raises
    ------
    UsageError
        No such finding or modality, or no slices.
    """
    if slices < 1 or matrix < 32:
        raise UsageError("a sample study needs at least one slice of 32 x 32 pixels")
    if finding not in FINDINGS:
        raise UsageError(f"no such sample finding: known are {', '.join(get_args(FindingKind))}")
    if modality not in ("CT", "MR"):
        raise UsageError("sample studies are CT or MR")
    spacing = LENGTH_MM / slices
    thorax = Thorax.draw(seed, finding, spacing)
    made_from = [patient_id, str(seed), str(finding), modality]
    uids = {"study": study_uid or generate_uid(entropy_srcs=[*made_from, "study"])}
    for what in ("series", "frame"):
        uids[what] = generate_uid(entropy_srcs=[*made_from, uids["study"], what])
    study = []
    for number in range(1, slices + 1):
        z = (number - 0.5) * spacing
        ds = _image(modality, UID(generate_uid(entropy_srcs=[*made_from, uids["study"], str(number), str(slices)])))
        _describe_patient_and_study(ds, patient_id, name, seed, UID(uids["study"]))
        _describe_series(ds, modality, UID(uids["series"]), UID(uids["frame"]))
        _describe_plane(ds, number, z, spacing, matrix)
        _store_pixels(ds, thorax.cut(z, matrix), modality)
        for keyword, value in attributes.items():
            if value is None:
                ds.pop(keyword, None)
            else:
                setattr(ds, keyword, value)
        _encode(ds, UID(transfer_syntax))
        study.append(ds)
    return list(study)


def _image(modality: str, instance_uid: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = instance_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = instance_uid
    return ds


def _describe_patient_and_study(ds: Dataset, patient_id: str, name: str, seed: int, study_uid: UID) -> None:
    day, month = 1 + seed % 28, 1 + seed // 28 % 12
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID = name, patient_id
    ds.PatientBirthDate = f"{1940 + seed % 50}{month:02d}{day:02d}"
    ds.PatientSex = "FM"[seed % 2]
    ds.PatientAge = f"{2024 - 1940 - seed % 50:03d}Y"
    ds.StudyInstanceUID = study_uid
    ds.StudyID = f"{seed % 10000}"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = f"2024{month:02d}{day:02d}"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101500"
    ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Thorax, dicomnode phantom"


def _describe_series(ds: Dataset, modality: str, series_uid: UID, frame_uid: UID) -> None:
    ds.Modality = modality
    ds.SeriesInstanceUID = series_uid
    ds.SeriesNumber = 2
    ds.SeriesDescription = "Thorax axial, dicomnode phantom"
    ds.BodyPartExamined = "CHEST"
    ds.PatientPosition = "HFS"
    ds.FrameOfReferenceUID = frame_uid
    ds.PositionReferenceIndicator = ""
    ds.Manufacturer, ds.ManufacturerModelName = MARK, "Computed thorax"
    ds.SoftwareVersions = "1"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "OTHER"]
    if modality == "CT":
        ds.KVP, ds.XRayTubeCurrent, ds.ConvolutionKernel = "120", "200", "STANDARD"
        ds.GantryDetectorTilt = "0"
        return
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "GR", "SP", ""
    ds.MRAcquisitionType, ds.MagneticFieldStrength = "2D", "1.5"
    ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength, ds.FlipAngle = "120", "4.6", "1", "70"


def _describe_plane(ds: Dataset, number: int, z: float, spacing: float, matrix: int) -> None:
    """Image Plane (PS3.3 C.7.6.2): patient coordinates grow to the left, the back and the head; z here to the feet."""
    pixel = FIELD_MM / matrix
    corner = -FIELD_MM / 2 + pixel / 2
    ds.AcquisitionNumber, ds.InstanceNumber = 1, number
    ds.ImagePositionPatient = [f"{corner:.4f}", f"{corner:.4f}", f"{-z:.3f}"]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.SliceLocation = f"{-z:.3f}"
    ds.SliceThickness = f"{min(5.0, spacing):.3f}"
    ds.SpacingBetweenSlices = f"{spacing:.4f}"
    ds.PixelSpacing = [f"{pixel:.6f}", f"{pixel:.6f}"]
    ds.ImageComments = f"{MARK}: computed, not of a person"
    ds.BurnedInAnnotation = "NO"


def _store_pixels(ds: Dataset, hu: NDArray[np.int16], modality: str) -> None:
    stored = np.clip(hu.astype(np.int32) - INTERCEPT, 0, 4095).astype("<u2")
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    if modality == "CT":
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(INTERCEPT), "1", "HU"
        ds.WindowCenter, ds.WindowWidth = ["40", "-500"], ["400", "1500"]
        ds.WindowCenterWidthExplanation = ["MEDIASTINUM", "LUNG"]
    else:
        ds.WindowCenter, ds.WindowWidth = "1000", "1600"
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"


def _encode(ds: FileDataset, transfer_syntax: UID) -> None:
    if transfer_syntax == ImplicitVRLittleEndian:
        ds.file_meta.TransferSyntaxUID = transfer_syntax
    elif transfer_syntax != ExplicitVRLittleEndian:
        ds.compress(transfer_syntax, generate_instance_uid=False)


def write_study(datasets: Iterable[Dataset], folder: Path | str) -> list[Path]:
    """Write each object as a DICOM file ``000001.dcm``, ... into the folder, which is made. Returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(datasets, start=1):
        path = folder / f"{number:06d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def sample_repository(
    folder: Path | str, patients: int = 24, seed: int = 0, *, slices: int = 16, matrix: int = 256
) -> Path:
    """Write one CT study each of ``patients`` phantoms and the findings they were made with.

    Findings cycle none, nodule, consolidation, effusion; a study without one has no row (status unknown: nobody
    stated that it is normal). Studies lie in ``folder/patient-0001/`` and so on.

    Returns
    -------
    Path
        ``folder/findings.csv`` with the columns study, system, code, display of ``dicomnode index add --findings``.
    """
    folder = Path(folder)
    rows: list[tuple[str, ...]] = []
    for n in range(patients):
        finding = FINDINGS[n % len(FINDINGS)]
        study = sample_study(
            slices,
            patient_id=f"PHANTOM-{seed:02d}-{n + 1:04d}",
            name=f"Phantom^Number {n + 1}",
            finding=finding,
            seed=seed * 10_000 + n,
            matrix=matrix,
        )
        write_study(study, folder / f"patient-{n + 1:04d}")
        if finding is not None:
            rows.append((study[0].StudyInstanceUID, *FINDING_CODES[finding]))
    path = folder / "findings.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("study", "system", "code", "display"))
        writer.writerows(rows)
    return path

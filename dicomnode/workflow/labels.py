"""LABELS.csv: labelled plain images (PNG, JPEG, WebP, DICOM) as cases of the repository.

Only the prepared pixels of an image go in, as a Secondary Capture object of a case that belongs to a random
pseudonym; a plain image's file name, EXIF and text never do. The label is kept as a finding of system 99LABEL.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicomnode.archive.records import read_record
from dicomnode.csvrows import needed_rows
from dicomnode.deid.gate import check
from dicomnode.deid.source import open_source
from dicomnode.domain import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    LABEL_SCHEME,
    Finding,
    FindingStatus,
    OriginalUid,
    Pseudonym,
    PseudoUid,
    SliceRef,
)
from dicomnode.errors import DicomnodeError, InputError, PackError
from dicomnode.models.colour import colour_of
from dicomnode.models.gate import decide
from dicomnode.models.headers import claim_of
from dicomnode.models.pictures import upright_grey
from dicomnode.models.preprocess import is_dicom, picture_pixels, prepare_dicom, prepare_picture
from dicomnode.workflow.captures import LABELS
from dicomnode.workflow.context import Context, Progress
from dicomnode.workflow.ingest import Added
from dicomnode.workflow.process_study import archive_records
from dicomnode.workflow.takeover import settle

COLUMNS = ("path", "label")
# Columns that this or another command reads; any other may be a slip, such as "pateint".
KNOWN = (*COLUMNS, "patient", "split", "source_format", "source_mode", "width", "height")
# Words by which a label states that there is no finding. Any other label is a finding; none of them is "unknown".
NEGATIVE_LABELS = frozenset({"normal", "healthy", "none", "no finding", "no findings", "negative", "sano", "control"})
UNKNOWN_LABELS = frozenset({"", "unknown", "?", "na", "n/a", "desconocido"})
Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row: where the image is, its label, and whose it is (empty: nobody else's).

    Attributes
    ----------
    typed : the path as the file has it.
    file, number : where the row is; of the lines of a file the column names are the first.
    """

    path: Path
    label: str
    patient: str
    typed: str
    file: Path
    number: int

    @property
    def real(self) -> Path:
        """The same for every spelling of the path."""
        return Path(os.path.realpath(self.path))


def read_labels(path: Path, added: Added | None = None) -> list[LabelRow]:
    """Rows of a LABELS.csv, each image once; paths absolute or relative to its own folder.

    Parameters
    ----------
    added : takes the notes and counts the duplicate rows.

    Raises
    ------
    InputError
        If the file cannot be read as a table (``needed_rows``), a row has no path, or two rows of one image differ.
    """
    added = Added() if added is None else added
    table = needed_rows(path, COLUMNS)
    unknown = [repr(name) for name in (table[0][1] if table else ()) if name and name not in KNOWN]
    if unknown:
        known = ", ".join(KNOWN)
        added.notes.append(f"{path}: column {', '.join(unknown)} is not known and not used (known: {known})")
    rows: dict[Path, LabelRow] = {}
    for number, cells in table:
        typed = cells["path"]
        if not typed:
            raise InputError("a row has no path", place=f"{path}:{number}")
        if len(typed.splitlines()) > 1:
            advice = "is a quotation mark left open?"
            raise InputError("a path goes over several lines", place=f"{path}:{number}", advice=advice)
        patient = cells.get("patient", "")
        row = LabelRow(path.parent / typed, cells["label"], patient, typed, path, number)
        before = rows.setdefault(row.real, row)
        if (before.label, before.patient) != (row.label, row.patient):
            line = f"the same image as in line {before.number} with another label or patient"
            raise InputError(line, place=f"{path}:{number}")
        added.duplicates += before is not row
    return list(rows.values())


def is_labels_file(path: Path) -> bool:
    """Whether a path given to ``index add`` is a LABELS.csv."""
    return path.suffix.lower() == ".csv" and path.is_file()


def finding_of(label: str) -> tuple[FindingStatus, tuple[Finding, ...]]:
    """Status and finding that a label states."""
    word = label.strip().lower()
    if word in UNKNOWN_LABELS:
        return FindingStatus.UNKNOWN, ()
    finding = Finding(LABEL_SCHEME, label[:64], label[:255], "labels file")
    return (FindingStatus.NONE if word in NEGATIVE_LABELS else FindingStatus.PRESENT), (finding,)


def add_labels(ctx: Context, path: Path, progress: Progress | None = None) -> Added:
    """Add every patient (else every row) of a LABELS.csv as a case."""
    added = Added()
    rows = read_labels(path, added)
    folder = path.resolve().parent
    issuer = f"labels:{folder}"  # two data sets may both lie in a folder "images"
    here = {study for study, _, source in ctx.catalogue.study_sources() if source == LABELS}
    cases: dict[str, list[LabelRow]] = {}
    for row in rows:
        key = f"patient:{row.patient}" if row.patient else _key_of(ctx, issuer, folder, row, here)
        cases.setdefault(key, []).append(row)
    for done, (key, of_case) in enumerate(cases.items()):
        if progress:
            progress(done, len(cases))
        _add_case(ctx.models.active().context, issuer, key, of_case, added)
    if progress:
        progress(len(cases), len(cases))
    return added


def _key_of(ctx: Context, issuer: str, folder: Path, row: LabelRow, here: Collection[PseudoUid]) -> str:
    """Key of the case of a row without a patient; of a case that is here, the key under which it was added."""
    new = f"path:{row.real}"
    if not here:
        return new
    keys = (new, *(f"path:{path}" for path in _spellings(folder, row)))
    return next((key for key in keys if ctx.vault.uid(OriginalUid(f"{issuer}/{key}")) in here), new)


def _spellings(folder: Path, row: LabelRow) -> Iterator[Path]:
    """How a row's path may stand in the key of a case that was added when keys held it as it was typed.

    ``folder``, the file's own, was then typed as it is now, in full, or relative to itself, to one above or to the
    working folder. Any other way (a link, a folder beside it) is not found again.
    """
    yield row.path
    for start in (Path.cwd(), folder, *folder.parents):
        yield Path(os.path.relpath(folder, start)) / row.typed
    yield folder / row.typed


def _add_case(ctx: Context, issuer: str, key: str, rows: Sequence[LabelRow], added: Added) -> None:
    study = ctx.vault.uid(OriginalUid(f"{issuer}/{key}"))
    known = {k.uid for k in ctx.catalogue.known_instances(study)}
    if ctx.vectors.has_study(study) and len(known) >= len(rows):
        added.already += 1
        return
    pictures = _passing(ctx, rows, added)
    if not pictures:
        return
    if ctx.vectors.has_study(study) and len(known) >= len(pictures):  # the others were left out before, too
        added.already += 1
        return
    pseudonym = ctx.vault.subject_for(issuer, key, create=True).pseudonym
    series = ctx.vault.uid(OriginalUid(f"{issuer}/{key}/series"))
    folder = ctx.folders.work / f"add-{hashlib.sha256(study.encode()).hexdigest()[:16]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        refs: list[SliceRef] = []
        records = []
        for number, row, picture in pictures:
            instance = ctx.vault.uid(OriginalUid(f"{issuer}/{key}/{row.path.name}/{number}"))
            target = folder / f"{number}.dcm"
            _capture(picture, pseudonym, study, series, instance, number).save_as(target, enforce_file_format=True)
            records.append((target, read_record(target)))
            refs.append(SliceRef(instance, series, study, pseudonym))
        archive_records(ctx, records, source=LABELS)
        for ref, (*_, picture) in zip(refs, pictures, strict=True):
            ctx.thumbnails.put(study, ref.instance, ref.frame, picture)
        images = np.stack([picture_pixels(Image.fromarray(p)) for *_, p in pictures])
        added.vectors += ctx.vectors.add(refs, ctx.embedder.embed_images(images))
        settle(ctx, study)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    labels = sorted({row.label for _, row, _ in pictures})
    status, findings = finding_of(labels[0])
    added.label(labels[0], status.value)
    for label in labels[1:]:
        more_status, more = finding_of(label)
        added.label(label, more_status.value)
        findings += more
        status = FindingStatus.PRESENT if FindingStatus.PRESENT in (status, more_status) else status
    ctx.catalogue.set_findings(study, findings, status)
    added.studies += 1
    added.instances += len({ref.instance for ref in refs} - known)
    added.findings += len(findings)


def _passing(ctx: Context, rows: Sequence[LabelRow], added: Added) -> list[tuple[int, LabelRow, Grey]]:
    """The images of a case that can be read and show a slice, each with its place among the rows."""
    pictures: list[tuple[int, LabelRow, Grey]] = []
    for number, row in enumerate(rows, start=1):  # by its row: the others may become readable later
        try:
            picture, why = _judged(ctx, row.path)
            counted = why
        except PackError:  # the gate itself is damaged: no fault of the images
            raise
        except InputError as exc:
            counted = why = exc.line
        except DicomnodeError as exc:
            counted, why = getattr(exc, "reason", exc.code), exc.line
        if why:
            added.skip(counted)
            added.left_out.append(f"{row.file}:{row.number}: {row.typed}: left out: {why}")
        else:
            pictures.append((number, row, picture))
    return pictures


def _judged(ctx: Context, path: Path) -> tuple[Grey, str]:
    """An image, and why it is no slice that can be searched with; empty where it is one."""
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a name is too long
        raise InputError("no such file")
    picture, claimed = read_picture(path), is_dicom(path)
    modality, why = claim_of(path, ctx.embedder.modalities) if claimed else ("", "")
    if not why:
        pixels = picture_pixels(Image.fromarray(picture))[None]
        colour = 0.0 if claimed else colour_of(path)
        refused = decide(ctx.embedder.judge(pixels, claimed=claimed, colours=[colour], modality=modality))
        why = refused.why.rstrip(".") if refused else ""
    return picture, f"not searchable: {why}" if why else ""


def read_picture(path: Path) -> Grey:
    """Grey pixels of a plain image at its own size, or of a DICOM image as prepared for the networks.

    Raises
    ------
    InputError
        If the file cannot be read as an image; ``QuarantineError`` where a DICOM image may show burned-in text.
    """
    if is_dicom(path):
        source = open_source(path)
        try:
            check(source)
        finally:
            source.stream.close()
        return np.round(prepare_dicom(path).pixels * 255).astype(np.uint8)
    prepare_picture(path)  # its checks: readable, not too large, not constant
    with Image.open(path) as image:
        return np.asarray(upright_grey(image))


def _capture(
    image: Grey, pseudonym: Pseudonym, study: PseudoUid, series: PseudoUid, instance: PseudoUid, number: int
) -> Dataset:
    """Secondary Capture object (PS3.3 A.8.1) of prepared pixels, uint8 MONOCHROME2."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, UID(instance)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID(study), UID(series)
    ds.PatientID, ds.PatientName = pseudonym, pseudonym
    ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ""
    ds.AccessionNumber = ds.StudyID = ds.ReferringPhysicianName = ""
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "pixels only"
    ds.Modality, ds.ConversionType = "OT", "WSD"
    ds.SeriesNumber, ds.InstanceNumber = 1, number
    ds.PatientOrientation = ""
    ds.Rows, ds.Columns = image.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = image.tobytes() + b"\0" * (image.size % 2)
    return ds

"""Two pseudonyms turned out to be one person's: the repository takes everything to the one that stays.

First the vectors and the catalogue, so that from then on no search shows the one as a case of another patient; then
each object gets the pseudonym that stays, and its dates move onto that patient's line. A merge that was killed is
finished by the same command again. De-identified throughout: pseudonyms and days, never an id.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicomnode.archive.amending import Amending
from dicomnode.archive.objects import sha256_of
from dicomnode.archive.records import read_record
from dicomnode.deid.pseudonym import shift_date, shift_datetime
from dicomnode.deid.vault import Merged
from dicomnode.domain import Pseudonym, PseudoUid
from dicomnode.durable import sync_folder
from dicomnode.errors import InputError
from dicomnode.models.headers import READ_ERRORS
from dicomnode.workflow.context import Context

log = structlog.get_logger(__name__)

_DUMMY = re.compile(r"19000101(0{6})?")  # what the recipe writes for a date that may not stay; moves nowhere
_NAMES = frozenset({"PN", "LO", "SH", "LT", "ST", "UT", "UC"})  # where a pseudonym may stand (PS3.5 6.2)
_READ_ERRORS = (InvalidDicomError, RecursionError, *READ_ERRORS)


@dataclass(slots=True)
class Moved:
    """What a merge changed. ``damaged``: objects left alone, as they are gone, unreadable or not what was kept."""

    studies: int = 0
    objects: int = 0
    answers: int = 0
    damaged: int = 0


def take_together(ctx: Context, merged: Merged) -> Moved:
    """Take all that is kept under the pseudonyms that were replaced to the one that stays."""
    kept, done = merged.pseudonym, Moved()
    amending = Amending(ctx.catalogue.engine)
    for former in (move.former for move in merged.moves):
        ctx.vectors.move_patient(former, kept)
        done.studies += ctx.catalogue.move_patient(former, kept)
        amended = amending.move_patient(former, kept)
        done.answers += amended.answers + amended.changed
        ctx.folders.remove_sent(amended.results)  # they show the patient as another one
    days = {move.former: move.days for move in merged.moves}
    studies = ctx.catalogue.studies_of(kept)
    for study in studies:
        _redate_study(ctx, study, kept, days, done)
        if ctx.catalogue.is_excluded(kept):
            ctx.thumbnails.remove_study(study)
    for study in {*studies, *amending.studies_of([kept])}:
        for path in sorted((ctx.folders.results / study).glob("*.dcm")):
            _redate_file(path, kept, days, done)
    log.info("patients_merged", studies=done.studies, instances=done.objects)
    return done


def _redate_study(ctx: Context, study: PseudoUid, kept: Pseudonym, days: Mapping[Pseudonym, int], done: Moved) -> None:
    for known in ctx.catalogue.known_instances(study):
        path = ctx.objects.path(known.path)
        try:
            intact = _is(path, known.sha256)
            part = _redated(path, kept, days)
        except InputError:
            done.damaged += 1
            continue
        if part is None:
            done.damaged += not intact
            continue
        digest = sha256_of(part)
        if not intact and known.sha256 != digest:  # the same: killed before the file took its place
            part.unlink()
            done.damaged += 1
            continue
        ctx.catalogue.replace_object(known.uid, digest, part.stat().st_size, read_record(part).study_date)
        _take_place(part, path)
        done.objects += 1


def _redate_file(path: Path, kept: Pseudonym, days: Mapping[Pseudonym, int], done: Moved) -> None:
    try:
        part = _redated(path, kept, days)
    except InputError:
        done.damaged += 1
        return
    if part is not None:
        _take_place(part, path)


def _is(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError as exc:  # gone, or a bad disk
        raise _damaged(path, exc) from None


def _take_place(part: Path, path: Path) -> None:
    part.replace(path)
    sync_folder(path.parent)


def _redated(path: Path, kept: Pseudonym, days: Mapping[Pseudonym, int]) -> Path | None:
    """The object under the pseudonym that stays, beside the old file; None where it has it already.

    Raises
    ------
    InputError
        The file cannot be read as a DICOM object of a patient.
    OSError
        The new file cannot be written, as on a full disk.
    """
    part = path.with_suffix(".part")
    try:
        former = Pseudonym(str(dcmread(path, specific_tags=["PatientID"], stop_before_pixels=True).PatientID))
        if former not in days:
            return None
        ds = dcmread(path)
        _rename(ds, former, kept, days[former])
    except _READ_ERRORS as exc:
        raise _damaged(path, exc) from None
    try:
        with part.open("wb") as out:
            ds.save_as(out, enforce_file_format=True)
            out.flush()
            os.fsync(out.fileno())
    except OSError:
        raise
    except _READ_ERRORS as exc:  # read in part, and not to be written
        part.unlink()
        raise _damaged(path, exc) from None
    return part


def _damaged(path: Path, exc: Exception) -> InputError:
    return InputError(f"not an object of the archive ({type(exc).__name__})", place=path.name)


def _rename(ds: Dataset, former: Pseudonym, kept: Pseudonym, days: int) -> None:
    moves = ds.get("LongitudinalTemporalInformationModified") == "MODIFIED"
    for element in _elements(ds):
        if element.VR in _NAMES and str(element.value) == former:
            element.value = kept
        elif moves and element.VR in ("DA", "DT"):
            element.value = _moved(element, days)


def _moved(element: DataElement, days: int) -> str | list[str]:
    move = shift_datetime if element.VR == "DT" else shift_date
    values: Sequence[object] = element.value if element.VM > 1 else [element.value]
    moved = [text if not text or _DUMMY.fullmatch(text) else move(text, days) for text in map(str, values)]
    return moved if len(moved) > 1 else moved[0]


def _elements(ds: Dataset) -> Iterator[DataElement]:
    """Every element at any depth."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _elements(item)
        else:
            yield element

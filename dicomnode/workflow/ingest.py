"""``index add``: folders of DICOM and labelled images into the repository, through the same steps as a received study.

Every DICOM object is de-identified and audited before anything is stored; what cannot pass is reported and left where
it is. A second run over the same files adds nothing. Labelled plain images carry no header: only their pixels go in.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import structlog
from pydicom.errors import InvalidDicomError

from dicomnode.archive.objects import sha256_of
from dicomnode.archive.records import read_record
from dicomnode.csvrows import needed_rows
from dicomnode.deid.iod import is_image
from dicomnode.deid.pool import DeidTask
from dicomnode.domain import Finding, FindingStatus, OriginalUid, PseudoUid
from dicomnode.errors import DeidError, DicomnodeError, InputError, NotFound, QuarantineError, StorageFull, UsageError
from dicomnode.models.headers import READ_ERRORS
from dicomnode.models.series import NoSearch
from dicomnode.workflow.context import Context, Progress
from dicomnode.workflow.identity import study_identity
from dicomnode.workflow.process_study import STAGED, archive_records, embed_paths, index_folder

log = structlog.get_logger(__name__)

_TAGS = ["SOPClassUID", "StudyInstanceUID", "SOPInstanceUID"]
SYSTEMS = frozenset({"SCT", "I10C", "I10", "I9C"})
VERSION_CONFLICT = "version-conflict"  # a reason of docs/quarantine.md
PRIVATE_SCHEME = "99"  # PS3.3 8.2: designators of private schemes begin so
# A study of these kinds is never a case; one that cannot be decoded today may be tomorrow, and is kept.
NO_CASE = frozenset({NoSearch.NO_SLICE, NoSearch.UNSUPPORTED_KIND})
FINDING_COLUMNS = ("study", "system", "code", "display")


@dataclass(slots=True)
class Added:
    """What ``index add`` did. ``instances``: new objects of the archive; ``duplicates``: files that are copies."""

    studies: int = 0
    instances: int = 0
    vectors: int = 0
    already: int = 0
    findings: int = 0
    duplicates: int = 0
    labels: dict[str, dict[str, int]] = field(default_factory=dict)  # of a LABELS.csv: label -> status -> cases
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> files
    quarantined: int = 0
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # a line for each row of a LABELS.csv or of findings without use

    def __iadd__(self, other: Added) -> Added:
        for name in ("studies", "instances", "vectors", "already", "findings", "duplicates", "quarantined"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for label, statuses in other.labels.items():
            for status, n in statuses.items():
                self.label(label, status, n)
        for reason, n in other.skipped.items():
            self.skip(reason, n)
        self.notes += other.notes
        self.left_out += other.left_out
        return self

    def skip(self, reason: str, n: int = 1) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + n

    def label(self, label: str, status: str, n: int = 1) -> None:
        counts = self.labels.setdefault(label, {})
        counts[status] = counts.get(status, 0) + n


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A DICOM image file, and the instance that it is."""

    path: Path
    sop_uid: str


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Files below the paths at any depth, in a fixed order; links that lead in circles are not followed.

    Raises
    ------
    UsageError
        If a path does not exist.
    """
    for path in paths:
        if path.is_dir():
            yield from (p for p in sorted(path.rglob("*")) if p.is_file())
        elif path.is_file():
            yield path
        else:
            raise UsageError("no such file or folder", place=str(path))


def group_by_study(files: Iterable[Path], added: Added) -> dict[str, list[FoundFile]]:
    """DICOM image files by Study Instance UID; everything else is counted in ``added.skipped``."""
    studies: dict[str, list[FoundFile]] = {}
    for path in files:
        try:
            ds = pydicom.dcmread(path, specific_tags=_TAGS, stop_before_pixels=True)
            sop_class, study, instance = (str(ds.get(k) or "") for k in _TAGS[:3])
        except InvalidDicomError:
            added.skip("not DICOM")
            continue
        except READ_ERRORS:
            added.skip("unreadable")
            continue
        if not is_image(sop_class):
            added.skip("no image")
        elif not study or not instance:
            added.skip("missing UID")
        else:
            studies.setdefault(study, []).append(FoundFile(path, instance))
    return studies


def read_findings(path: Path) -> dict[str, list[Finding]]:
    """``--findings F.csv``: findings by its study column (a Study Instance UID as received, or a path).

    Raises
    ------
    InputError
        If it is no table with those columns or a system is unknown; the line is named. ``UsageError``: no such file.
    """
    return {study: [finding for _, finding in rows] for study, rows in _finding_rows(path).items()}


def _finding_rows(path: Path) -> dict[str, list[tuple[int, Finding]]]:
    """``read_findings`` with the line of each."""
    found: dict[str, list[tuple[int, Finding]]] = {}
    for number, row in needed_rows(path, FINDING_COLUMNS):
        system = row["system"]
        if system not in SYSTEMS and not system.startswith(PRIVATE_SCHEME):
            known = ", ".join(sorted(SYSTEMS))
            raise InputError(f"unknown system {system!r}; known are {known} and 99...", place=f"{path}:{number}")
        if not row["code"] or not row["display"]:
            raise InputError("code and display are needed", place=f"{path}:{number}")
        finding = Finding(system, row["code"], row["display"], "findings file")
        found.setdefault(row["study"], []).append((number, finding))
    return found


def add_paths(
    ctx: Context, paths: Sequence[Path], findings_file: Path | None = None, progress: Progress | None = None
) -> Added:
    """Add all DICOM image studies below the paths to the repository."""
    added = Added()
    stated = _finding_rows(findings_file) if findings_file else {}
    studies = group_by_study(find_files(paths), added)
    for done, (study_uid, files) in enumerate(sorted(studies.items())):
        if progress:
            progress(done, len(studies))
        try:
            _add_study(ctx.models.active().context, study_uid, files, added)
        except (QuarantineError, DeidError, InputError) as exc:  # else the rest would fail alike: a later run goes on
            _refused(ctx, added, exc, study_uid, [f.path for f in files])
    if findings_file:
        _add_findings(ctx, findings_file, stated, studies, added)
    if progress:
        progress(len(studies), len(studies))
    return added


def _refused(ctx: Context, added: Added, exc: DicomnodeError, study_uid: str, files: Sequence[Path]) -> None:
    """Hold files of a study by its pseudonymous UID; which files they are is told to the operator alone."""
    reason = getattr(exc, "reason", exc.code)
    advice = exc.advice or "the files were left where they are"
    said = f"{exc.place} {exc.line}" if exc.place else exc.line
    line = f"{len(files)} files of 'index add': {said}"
    item = ctx.quarantine.hold(reason, line, place=ctx.vault.uid(OriginalUid(study_uid)), advice=advice)
    added.quarantined += len(files)
    added.notes.append(f"quarantine {item}: {reason}: {len(files)} files, {files[0]} first: {said}")
    ctx.metrics.quarantined(reason)


def _add_study(ctx: Context, study_uid: str, files: Sequence[FoundFile], added: Added) -> None:
    study = ctx.vault.uid(OriginalUid(study_uid))
    known = {k.uid for k in ctx.catalogue.known_instances(study)}
    if all(ctx.vault.uid(OriginalUid(f.sop_uid)) in known for f in files) and ctx.vectors.has_study(study):
        added.already += 1
        return
    issuer, patient_id = study_identity([f.path for f in files], study_uid, ctx.policy.default_issuer)
    subject = ctx.vault.subject_for(issuer, patient_id, create=True)
    folder = ctx.folders.work / f"add-{hashlib.sha256(study.encode()).hexdigest()[:16]}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        staged = folder / STAGED
        staged.mkdir(parents=True)
        outcomes = ctx.deid.run([DeidTask(f.path, staged / f"{n}.dcm", subject) for n, f in enumerate(files)])
        refused: dict[str, list[tuple[DicomnodeError, Path]]] = {}
        first: dict[PseudoUid, str] = {}  # of each instance: hash of the first object, which is the one that is used
        for file, outcome in zip(files, outcomes, strict=True):
            if isinstance(outcome, StorageFull):
                raise outcome
            if isinstance(outcome, DicomnodeError):
                refused.setdefault(getattr(outcome, "reason", outcome.code), []).append((outcome, file.path))
                continue
            digest = sha256_of(outcome.dst)
            if outcome.instance not in first:
                first[outcome.instance] = digest
                continue
            outcome.dst.unlink()
            if first[outcome.instance] == digest:
                added.duplicates += 1
            else:
                line = "the same SOP Instance UID as another file and other content; the first was used"
                conflict = QuarantineError(VERSION_CONFLICT, line, advice="add the right one alone, or under a new UID")
                refused.setdefault(VERSION_CONFLICT, []).append((conflict, file.path))
        for errors in refused.values():
            _refused(ctx, added, errors[0][0], study_uid, [path for _, path in errors])
        records = [(p, read_record(p)) for p in sorted(staged.glob("*.dcm"))]
        if not records:
            return
        if known:  # what the repository holds stays, and is read together with what is new
            archive_records(ctx, records, source="index-add")
            paths = [ctx.objects.path(k.path) for k in ctx.catalogue.known_instances(study)]
            found = embed_paths(ctx, paths, folder, study, gated=not ctx.catalogue.was_chosen(study))
            if found.not_searchable in NO_CASE:
                added.notes.append(f"{files[0].path} first, {len(files)} files: kept, but no case: {found.why_not}")
        else:
            found = embed_paths(ctx, [path for path, _ in records], folder, study)
            if found.not_searchable in NO_CASE:
                added.skip(f"not searchable: {found.why_not.rstrip('.')}", len(records))
                added.notes.append(f"{files[0].path} first, {len(files)} files: not added: {found.why_not}")
                return
            archive_records(ctx, records, source="index-add")
        added.vectors += index_folder(ctx, folder, study, records[0][1].patient)
        added.studies += 1
        added.instances += len({record.uid for _, record in records} - known)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _add_findings(
    ctx: Context,
    file: Path,
    stated: dict[str, list[tuple[int, Finding]]],
    studies: dict[str, list[FoundFile]],
    added: Added,
) -> None:
    """State findings; a path is absolute, or relative to their file or the working folder.

    A row without a study is named by its line alone: what stands in it may be a UID as a hospital gave it.
    """
    below: dict[Path, set[str]] = {}
    for uid, files in studies.items():
        for path in (f.path.resolve() for f in files):
            for place in (path, *path.parents):
                below.setdefault(place, set()).add(uid)
    by_study: dict[str, list[tuple[int, Finding]]] = {}
    left_out: dict[int, str] = {}
    for key, rows in stated.items():
        inside = {key} if key in studies else below.get((file.parent / key).resolve()) or below.get(Path(key).resolve())
        if inside and len(inside) > 1:
            left_out |= dict.fromkeys((number for number, _ in rows), "its folder holds several studies")
            continue
        by_study.setdefault(inside.pop() if inside else key, []).extend(rows)
    for original, rows in by_study.items():
        findings = [finding for _, finding in rows]
        try:
            ctx.catalogue.set_findings(ctx.vault.uid(OriginalUid(original)), findings, FindingStatus.PRESENT)
            added.findings += len(findings)
        except NotFound:
            left_out |= dict.fromkeys((number for number, _ in rows), "its study is not here")
    added.left_out += [f"{file}:{number}: left out: {why}" for number, why in sorted(left_out.items())]

"""``deid``: files into a folder of de-identified, audited files, named by pseudonymous UIDs.

Never overwrites: of two objects with one SOP Instance UID the first is kept, and the report says what became of the
other one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from dicomnode.archive.objects import sha256_of
from dicomnode.deid.engine import UNWANTED
from dicomnode.deid.pool import DeidTask
from dicomnode.deid.recipe import Action, Recipe
from dicomnode.deid.result import DeidResult
from dicomnode.deid.vault import Vault
from dicomnode.domain import PseudoUid
from dicomnode.errors import DicomnodeError, InputError, QuarantineError
from dicomnode.models.headers import READ_ERRORS
from dicomnode.workflow.context import DeidPort
from dicomnode.workflow.identity import NOBODY, study_identity
from dicomnode.workflow.ingest import VERSION_CONFLICT, find_files

BATCH = 64

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DeidContext:
    """What the command needs of the node: no models, no index."""

    deid: DeidPort
    vault: Vault
    default_issuer: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """The first object of a SOP Instance UID: which file it was, and the SHA-256 of what was made of it."""

    source: Path
    sha256: str


@dataclass(slots=True)
class Outcome:
    """What became of each file."""

    files: list[dict[str, Any]] = field(default_factory=list)
    duplicates: int = 0
    kept: dict[PseudoUid, _Kept] = field(default_factory=dict)

    def add(self, source: Path, target: Path | None, status: str, reason: str = "") -> None:
        output = None if target is None else str(target)
        self.files.append({"input": str(source), "output": output, "status": status, "reason": reason})

    def as_json(self, profile: str) -> dict[str, Any]:
        """The object of ``deid --report``."""
        counts = {s: sum(f["status"] == s for f in self.files) for s in ("ok", "quarantined", "failed")}
        counts["ok"] -= self.duplicates  # their row is "ok" too, but no file was written for them
        counts["duplicates"] = self.duplicates
        return {"files": self.files, "counts": counts, "profile": profile}


def deidentify_files(
    ctx: DeidContext, paths: Sequence[Path], out: Path | None, progress: Progress | None = None
) -> Outcome:
    """De-identify every file below the paths into ``out/<study>/<instance>.dcm``; ``out`` None: keep nothing."""
    outcome = Outcome()
    files = list(find_files(paths))
    with tempfile.TemporaryDirectory(
        prefix="dicomnode-", dir=out.parent if out and out.parent.is_dir() else None
    ) as tmp:
        for start in range(0, len(files), BATCH):
            if progress:
                progress(start, len(files))
            _batch(ctx, files[start : start + BATCH], Path(tmp), out, outcome)
    if progress:
        progress(len(files), len(files))
    return outcome


def _batch(ctx: DeidContext, files: Sequence[Path], tmp: Path, out: Path | None, outcome: Outcome) -> None:
    tasks = []
    for n, path in enumerate(files):
        identity = study_identity([path], _study_uid(path), ctx.default_issuer)
        subject = ctx.vault.subject_for(*identity, create=identity != NOBODY)
        tasks.append(DeidTask(path, tmp / f"{n}.dcm", subject))
    for task, result in zip(tasks, ctx.deid.run(tasks), strict=True):
        if isinstance(result, QuarantineError):
            outcome.add(task.src, None, "quarantined", f"{result.reason}: {result}")
        elif isinstance(result, DicomnodeError):
            outcome.add(task.src, None, "failed", str(result))
        else:
            _keep(task, result, out, outcome)
            task.dst.unlink(missing_ok=True)


def _keep(task: DeidTask, result: DeidResult, out: Path | None, outcome: Outcome) -> None:
    """Move a de-identified object to its place, unless an object with its UID has come before."""
    digest = sha256_of(task.dst)
    before = outcome.kept.setdefault(result.instance, _Kept(task.src, digest))
    if before.source is not task.src:
        if before.sha256 == digest:
            outcome.duplicates += 1
            outcome.add(task.src, None, "ok", f"duplicate of {before.source}")
        else:
            line = f"{VERSION_CONFLICT}: the SOP Instance UID of {before.source} with other content; the first was used"
            outcome.add(task.src, None, "quarantined", line)
        return
    if out is None:
        outcome.add(task.src, None, "ok")
        return
    target = out / result.study / f"{result.instance}.dcm"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        task.dst.replace(target)
    elif sha256_of(target) != digest:
        line = f"{VERSION_CONFLICT}: {target} is there already with other content; choose an empty --out"
        outcome.add(task.src, None, "quarantined", line)
        return
    outcome.add(task.src, target, "ok")


def _study_uid(path: Path) -> str:
    try:
        ds = pydicom.dcmread(path, specific_tags=["StudyInstanceUID"], stop_before_pixels=True)
        return str(ds.get("StudyInstanceUID") or "")
    except (InvalidDicomError, *READ_ERRORS):
        return ""


def explain_file(recipe: Recipe, path: Path) -> Iterator[str]:
    """One line for each attribute at every depth: tag, name and what the recipe does; never a value.

    Raises
    ------
    InputError
        If the file is not DICOM.
    """
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        if not ds:
            raise InputError("the file holds no attribute that can be read", place=str(path))
        yield from _explain(recipe, ds, str(ds.get("SOPClassUID") or ""), "")
    except (InvalidDicomError, *READ_ERRORS) as exc:
        raise InputError(f"not DICOM, or damaged ({type(exc).__name__})", place=str(path)) from None


WORDS = {
    Action.KEEP: "keep",
    Action.REMOVE: "remove",
    Action.BLANK: "blank (emptied)",
    Action.DUMMY: "dummy (replaced by a fixed value)",
    Action.UID: "uid (replaced by a keyed UID)",
    Action.PID: "pid (replaced by the pseudonym)",
    Action.SHIFT: "shift (date moved by the patient's days)",
    Action.CLEAN: "clean (only words of the vocabulary stay)",
    Action.AGE: "age (over 89 becomes 90)",
    Action.TIMEZONE: "timezone",
}


def _explain(recipe: Recipe, ds: pydicom.Dataset, sop_class: str, indent: str) -> Iterator[str]:
    for element in ds:
        tag = int(element.tag)
        unwanted = any(judge(tag) for judge in UNWANTED)  # private, overlays, what no dictionary knows
        action = Action.REMOVE if unwanted else recipe.action(tag, sop_class)
        yield f"{indent}{element.tag} {element.name}: {WORDS[action]}"
        if element.VR == "SQ" and action is not Action.REMOVE:
            for item in element.value:
                yield from _explain(recipe, item, sop_class, indent + "  ")

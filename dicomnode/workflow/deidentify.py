"""``deid``: files into a folder of de-identified, audited files, named by pseudonymous UIDs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from dicomnode.deid.engine import UNWANTED
from dicomnode.deid.pool import DeidTask
from dicomnode.deid.recipe import Action, Recipe
from dicomnode.deid.vault import Vault
from dicomnode.errors import DicomnodeError, InputError, QuarantineError
from dicomnode.models.headers import READ_ERRORS
from dicomnode.workflow.context import DeidPort
from dicomnode.workflow.identity import NOBODY, study_identity
from dicomnode.workflow.ingest import find_files

BATCH = 64

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DeidContext:
    """What the command needs of the node: no models, no index."""

    deid: DeidPort
    vault: Vault
    default_issuer: str


@dataclass(slots=True)
class Outcome:
    """What became of each file."""

    files: list[dict[str, Any]] = field(default_factory=list)

    def add(self, source: Path, target: Path | None, status: str, reason: str = "") -> None:
        output = None if target is None else str(target)
        self.files.append({"input": str(source), "output": output, "status": status, "reason": reason})

    def as_json(self, profile: str) -> dict[str, Any]:
        """The object of ``deid --report``."""
        counts = {s: sum(f["status"] == s for f in self.files) for s in ("ok", "quarantined", "failed")}
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
        elif out is None:
            task.dst.unlink(missing_ok=True)
            outcome.add(task.src, None, "ok")
        else:
            target = out / result.study / f"{result.instance}.dcm"
            target.parent.mkdir(parents=True, exist_ok=True)
            task.dst.replace(target)
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

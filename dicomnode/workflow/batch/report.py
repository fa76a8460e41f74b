"""Reports of a de-identification run: JSON, CSV and HTML, written row by row.

They tell of each input what became of it, and of all together what was done; never a value of an object. Inputs are
named by their paths (``full``, or ``relative`` to the given folder), which may be names of patients: such a report is
written for its owner alone; or by keyed hashes (``hashed``).
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from dicomnode import __version__
from dicomnode.deid.changes import WORDS
from dicomnode.deid.faces import Face
from dicomnode.deid.recipe import compile_recipe
from dicomnode.deid.result import PIXELS
from dicomnode.workflow.batch.choices import INPUT_PREFIX, ReportPaths
from dicomnode.workflow.batch.explain import departures
from dicomnode.workflow.batch.journal import OTHER, QUARANTINED, Row
from dicomnode.workflow.deidentify import Run

CSV_COLUMNS = ("record", "input", "output", "status", "reason", "name", "count")
BEGINNING = 2048  # bytes of a file by which a report is known
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet recognises a formula (OWASP, CSV injection)


@dataclass
class Report:
    """What a report says; the same for every form."""

    run: Run
    paths: ReportPaths = ReportPaths.FULL

    @cached_property
    def counts(self) -> dict[str, int]:
        return self.run.journal.counts()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Everything but the rows: ``counts`` and ``profile`` of the contract, and what an auditor asks for."""
        ctx, journal = self.run.ctx, self.run.journal
        changes, faces, pixels, policy = journal.changes(), journal.faces(), journal.pixels(), ctx.deid.pixels
        return {
            "counts": self.counts,
            "profile": ctx.profile,
            "options": sorted(ctx.recipe.options),
            "recipe": ctx.recipe.sha256,
            "site_exceptions": list(ctx.recipe.exceptions),
            "exceptions": departures(ctx.recipe, compile_recipe(ctx.profile, ())),
            "version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "dry_run": self.run.request.out is None,
            "layout": self.run.request.layout.value,
            "paths": self.paths.value,
            "quarantine": journal.reasons(),
            "faces": {word.value: faces.get(word, 0) for word in (Face.LIKELY, Face.POSSIBLE)},
            "settings": {"pixels": policy.mode, "ocr_sample": policy.sample, "faces": policy.faces},
            "pixels": {word: pixels.get(word, 0) for word in PIXELS},
            "actions": {word: sum(words[word] for words in changes.values()) for word in WORDS},
            "changes": {
                keyword: {word: words[word] for word in WORDS if words[word]} for keyword, words in changes.items()
            },
        }

    def rows(self) -> Iterator[dict[str, str | None]]:
        """``files`` of the contract, one at a time."""
        for row in self.run.rows():
            yield {
                "input": self._name(row),
                "output": row.output,
                "status": row.status,
                "reason": self._reason(row),
            }

    def _name(self, row: Row) -> str:
        if self.paths is ReportPaths.HASHED:
            return f"{INPUT_PREFIX}{row.input_id}"
        return row.shown if self.paths is ReportPaths.RELATIVE else f"{row.root}/{row.shown}"

    def _reason(self, row: Row) -> str:
        if row.other is None:
            return row.reason
        shown = None if self.paths is ReportPaths.HASHED else self.run.journal.shown(row.other)
        return row.reason.replace(OTHER, shown or f"{INPUT_PREFIX}{row.other}")

    @property
    def complete(self) -> bool:
        """Whether everything passed."""
        return not self.counts[QUARANTINED] and not self.counts["failed"]


def write_json(report: Report, out: TextIO) -> None:
    """One object; rows are written as they are read."""
    out.write('{"files": [')
    between = "\n"
    for row in report.rows():
        out.write(f"{between} {json.dumps(row, ensure_ascii=False)}")
        between = ",\n"
    rest = json.dumps(report.summary, ensure_ascii=False, indent=1)
    out.write(f"\n],\n{rest[1:].lstrip()}\n")


def write_csv(report: Report, out: TextIO) -> None:
    """One table for spreadsheets; ``record`` says what a row is: a file, a count, a change, a setting ..."""
    table = csv.writer(out, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    for row in report.rows():
        table.writerow(["file", *(_harmless(row[c] or "") for c in ("input", "output", "status", "reason")), "", ""])

    def line(record: str, name: str, value: object, status: str = "") -> None:
        table.writerow([record, "", "", status, "", name, value])

    told = report.summary
    records = {"count": "counts", "quarantine": "quarantine", "action": "actions", "face": "faces", "pixels": "pixels"}
    for record, key in records.items():
        for name, number in told[key].items():
            line(record, name, number)
    for keyword, words in told["changes"].items():
        for word, number in words.items():
            line("change", keyword, number, word)
    for why, keywords in told["exceptions"].items():
        line("exception", why, " ".join(keywords))
    for exception in told["site_exceptions"]:
        line("site exception", exception, "")
    for name in ("profile", "recipe", "version", "created", "dry_run", "layout", "paths"):
        line("setting", name, told[name])
    line("setting", "options", " ".join(told["options"]))
    for name, value in told["settings"].items():
        line("setting", name, value)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_html(report: Report, out: TextIO) -> None:
    """A page without script for the data-protection officer; see ``page``."""
    from dicomnode.workflow.batch.page import render

    for part in render(report):
        out.write(part)


def writer_for(path: Path) -> Callable[[Report, TextIO], None]:
    """By the file's extension: ``.csv``, ``.html`` or ``.htm``, else JSON."""
    return {".csv": write_csv, ".html": write_html, ".htm": write_html}.get(path.suffix.lower(), write_json)


def is_report(path: Path) -> bool:
    """Whether a file is, as far as its beginning tells, an earlier report, which a new one may replace.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(BEGINNING).decode("utf-8", "replace")
    page = start.startswith("<!doctype html>") and "<title>De-identification report</title>" in start
    return page or start.startswith(('{"files": [', ",".join(CSV_COLUMNS)))


def write_report(report: Report, path: Path) -> None:
    """Write a report whole or not at all; for its owner alone where it holds paths.

    Raises
    ------
    OSError
        It cannot be written.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".report-")
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as out:
            writer_for(path)(report, out)
            out.flush()
            os.fsync(out.fileno())
        if report.paths is ReportPaths.HASHED:
            part.chmod(0o666 & ~_umask())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

"""What an evaluation leaves in ``--out``: the object as JSON, the page, the figures; made from a result or a ledger.

A folder that holds files of another evaluation is refused, so that nothing is overwritten by mistake.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dicomnode import __version__
from dicomnode.errors import InputError, StorageFull
from dicomnode.evaluation import ledger
from dicomnode.evaluation.plots import draw_curves, draw_map
from dicomnode.evaluation.report import render
from dicomnode.evaluation.repository import KnownStudy, study_points
from dicomnode.evaluation.run import Evaluation
from dicomnode.evaluation.summaries import markdown, summaries
from dicomnode.index.repository import VectorIndex

MAP_CAPTION = "The index as a map (images that a pack was trained on lie farther apart than new ones would)"
RESULT, PAGE, TABLE = "evaluation.json", "report.html", "tables.md"


def check_out(out: Path, *, make: bool = True) -> None:
    """Refuse a folder to write into that already holds something, or that cannot be made, before any work is done.

    Parameters
    ----------
    make : make it now, as the work takes long.

    Raises
    ------
    InputError
        It does, or it is a file.
    StorageFull
        It cannot be made.
    """
    if out.exists() and not out.is_dir():
        raise InputError("is a file, not a folder", place=str(out), advice="--out DIR")
    try:
        found = sorted(p.name for p in out.iterdir()) if out.exists() else []
    except OSError as exc:
        raise InputError(f"cannot be read: {exc.strerror}", place=str(out), advice="choose another --out") from exc
    if found:
        raise InputError(f"is not empty: {found[0]}", place=str(out), advice="choose a new folder for --out")
    if make:
        check_writable(out)


def check_writable(folder: Path) -> None:
    """Whether files can be written into a folder, which is made where it is not there.

    Raises
    ------
    StorageFull
        They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise StorageFull(f"cannot be written to: {exc.strerror}", place=str(folder)) from exc


def write_evaluation(out: Path, evaluation: Evaluation, result: Mapping[str, Any], about: str) -> list[Path]:
    """Figures, page and JSON of one evaluation; the JSON last, so that a folder with it is whole."""
    made = [
        *draw_curves(summaries(ledger.entries_of(evaluation)), evaluation.title, out / "curves"),
        *draw_map(
            evaluation.vectors, evaluation.labels, f"The index as {evaluation.packs[0].name} sees it", out / "map"
        ),
    ]
    pictures = [("Precision and recall at k", out / "curves.png"), (MAP_CAPTION, out / "map.png")]
    return [*made, *write_result(out, result, pictures, about)]


def write_repository(
    out: Path, result: Mapping[str, Any], index: VectorIndex, studies: Sequence[KnownStudy]
) -> list[Path]:
    """Map of the cases, page and JSON of an evaluation of a repository."""
    vectors, labels = study_points(index, studies)
    made = draw_map(vectors, labels, f"The cases as {result['packs'][0]['name']} sees them", out / "map")
    return [*made, *write_result(out, result, [("The cases as a map, a point a study", out / "map.png")])]


def write_result(
    out: Path, result: Mapping[str, Any], pictures: Sequence[tuple[str, Path]] = (), about: str = ""
) -> list[Path]:
    """Page and JSON of a result; the page tells the day and the version that made it.

    Raises
    ------
    StorageFull
        They cannot be written.
    """
    page, data = out / PAGE, out / RESULT
    made = f"{datetime.now(UTC).date().isoformat()} by dicomnode {__version__}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        page.write_text(render(result, pictures, about, made), encoding="utf-8")
        new = data.with_suffix(".new")
        new.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        new.replace(data)
    except OSError as exc:
        raise StorageFull(f"the report cannot be written: {exc.strerror}", place=str(out)) from exc
    return [page, data]


def write_ledger_report(out: Path, folder: Path, references: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """Tables and one figure a protocol from a ledger; the tables as text, and what was written.

    Parameters
    ----------
    references : what the others are compared to, in this order (``summaries.summaries``).

    Raises
    ------
    InputError
        The ledger cannot be read, holds entries that cannot be compared, or has no row of a reference.
    """
    entries = ledger.read_ledger(folder)
    rows = list(dict.fromkeys(e["method"] for e in entries if e["kind"] == "pack"))
    if unknown := [name for name in references if name not in rows]:
        raise InputError(f"has no row {unknown[0]!r}", place=str(folder), advice=f"one of: {'; '.join(rows)}")
    text = markdown(entries, references)
    made = []
    groups: dict[str, list[ledger.Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry["protocol"]].append(entry)
    for protocol, group in groups.items():
        made += draw_curves(summaries(group, references), group[0]["title"], out / f"{protocol}-curves")
    table = out / TABLE
    table.write_text(text, encoding="utf-8")
    return text, [*made, table]

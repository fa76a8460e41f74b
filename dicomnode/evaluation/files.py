"""What an evaluation leaves in ``--out``: the object as JSON, the page, the figures; made from a result or a ledger.

A folder that holds files of another evaluation is refused, so that nothing is overwritten by mistake.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dicomnode.errors import InputError, StorageFull
from dicomnode.evaluation import ledger
from dicomnode.evaluation.plots import draw_curves, draw_map
from dicomnode.evaluation.report import render
from dicomnode.evaluation.run import Evaluation
from dicomnode.evaluation.summaries import markdown, summaries

MAP_CAPTION = "The index as a map (images that a pack was trained on lie farther apart than new ones would)"
RESULT, PAGE, TABLE = "evaluation.json", "report.html", "tables.md"


def check_out(out: Path) -> None:
    """Refuse a folder to write into that already holds an evaluation, before any work is done.

    Raises
    ------
    InputError
        It does, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError("is a file, not a folder", place=str(out), advice="--out DIR")
    for name in (RESULT, TABLE):
        if (out / name).exists():
            raise InputError(f"holds {name} of an evaluation already", place=str(out), advice="choose another --out")


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


def write_result(
    out: Path, result: Mapping[str, Any], pictures: Sequence[tuple[str, Path]] = (), about: str = ""
) -> list[Path]:
    """Page and JSON of a result.

    Raises
    ------
    StorageFull
        They cannot be written.
    """
    page, data = out / PAGE, out / RESULT
    try:
        out.mkdir(parents=True, exist_ok=True)
        page.write_text(render(result, pictures, about), encoding="utf-8")
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
        The ledger cannot be read, or holds entries that cannot be compared.
    """
    entries = ledger.read_ledger(folder)
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

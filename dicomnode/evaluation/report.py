"""The report for people: one HTML page without anything beside it, in plain words, every figure with n and interval.

Says what is beaten and what is not from paired intervals alone. Renders what it is given and measures nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from dicomnode.evaluation.summaries import interval

COLUMNS = (
    ("P@1", ("precision", "1")),
    ("P@10", ("precision", "10")),
    ("P@50", ("precision", "50")),
    ("R@50", ("recall", "50")),
    ("ceiling of R@50", ("recall_ceiling", "50")),
    ("nDCG@10", ("ndcg", "10")),
    ("mAP", ("map",)),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the page's table, as shown."""

    name: str
    kind: str
    cells: tuple[str, ...]
    difference: str
    note: str


def plain_words(result: Mapping[str, Any]) -> list[str]:
    """What the figures come to, a sentence for each control and each class.

    Parameters
    ----------
    result : the object of ``evaluate --json``.
    """
    first = result["packs"][0]
    graded = bool(result.get("graded"))
    said = []
    for control in result["controls"]:
        name = control["name"].removeprefix("control: ")
        value, what = control["difference"], "P@10"
        if graded:
            value, what = control["differences"]["ndcg@10"], "nDCG@10"
        if value["mean"] is None:
            continue
        shown = interval(value, signed=True)
        if value["ci"][0] > 0:
            said.append(f"{first['name']} is better than {name} ({what} {shown}).")
        elif value["ci"][1] < 0:
            said.append(f"{first['name']} is WORSE than {name} ({what} {shown}).")
        else:
            said.append(f"{first['name']} is not shown to be better than {name} ({what} {shown}).")
    return [*said, *_by_class(result)]


def _by_class(result: Mapping[str, Any]) -> list[str]:
    """For each class the first pack's P@10, and the control that comes nearest or above."""
    said = []
    for label, figures in result["packs"][0]["by_class"].items():
        ours = figures["precision"]["10"]
        theirs = [
            (c["by_class"][label]["precision"]["10"], c["name"].removeprefix("control: "))
            for c in result["controls"]
            if label in c["by_class"] and c["by_class"][label]["precision"]["10"]["mean"] is not None
        ]
        if ours["mean"] is None or not theirs:
            continue
        best, name = max(theirs, key=lambda t: float(t[0]["mean"]))
        how = "which is more" if best["mean"] > ours["mean"] else "the best control"
        said.append(f"Queries with label {label}: P@10 {interval(ours)}; {name} reaches {interval(best)}, {how}.")
    return said


def cell(row: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """A figure of a row as text; a dash where the row has none."""
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return interval(value) if isinstance(value, Mapping) and "mean" in value else "-"


def lines(result: Mapping[str, Any]) -> list[Line]:
    """The rows of the table, packs first."""
    made = []
    for kind in ("packs", "controls"):
        for row in result[kind]:
            apart = row.get("difference")
            shown = interval(apart, signed=True) if apart and apart["mean"] is not None else ""
            cells = tuple(cell(row, path) for _, path in COLUMNS)
            made.append(Line(row["name"], kind.removesuffix("s"), cells, shown, row.get("note", "")))
    return made


def class_lines(result: Mapping[str, Any]) -> list[Line]:
    """The same by class of the query."""
    made = []
    for row in (*result["packs"], *result["controls"]):
        for label, figures in row["by_class"].items():
            cells = tuple(cell(figures, path) for _, path in COLUMNS)
            n = f"{figures['queries']} queries of {figures['patients']} patients"
            made.append(Line(f"{label}: {row['name']}", "class", cells, "", n))
    return sorted(made, key=lambda line: line.name.partition(": ")[0])


def render(result: Mapping[str, Any], pictures: Sequence[tuple[str, Path]], about: str = "", made: str = "") -> str:
    """The page.

    Parameters
    ----------
    result : the object of ``evaluate --json``.
    pictures : caption and PNG file of each figure.
    about : what the protocol is, in words.
    made : when and by which version; "": not told.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dicomnode.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [
        (caption, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()) for caption, path in pictures
    ]
    return environment.get_template("report.html").render(
        result=result,
        about=about,
        made=made,
        columns=[name for name, _ in COLUMNS],
        lines=lines(result),
        class_lines=class_lines(result),
        words=plain_words(result),
        pictures=shown,
        models=[
            (row["name"], row.get("model_id") or row.get("recipe", {}).get("model_id", "")) for row in result["packs"]
        ],
    )

"""The ledger of experiments: one small JSON for each finished (protocol, method, seed), written once and whole.

An entry holds the figures of every query, so that tables, paired differences and plots are made from the ledger alone,
without images, packs or a GPU. Queries are numbered; labels are words of the data set, patients are numbers. An entry
is written to a new file and renamed; a run that was killed leaves none, and the next run makes it.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dicomnode.errors import InputError, StorageFull
from dicomnode.evaluation import metrics
from dicomnode.evaluation.metrics import PerQuery
from dicomnode.evaluation.run import Evaluation, Method

FORMAT = 1
PER_QUERY = ("ap", "precision@1", "precision@5", "precision@10", "precision@50", "ndcg@10", "recall@50")
DECIMALS = 4

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """A method's line of a table, made of all its seeds.

    Attributes
    ----------
    figures : name of ``PER_QUERY`` -> {"mean", "ci"} of the mean of seeds, over patients.
    spread : name -> [lowest, highest] of the seeds' own means.
    difference : "precision@10" of the first pack minus this, paired; None for the first pack itself.
    curves : "all" and each class -> "precision" and "recall" at k = 1 to 50, mean of seeds.
    """

    method: str
    kind: str
    seeds: tuple[int, ...]
    note: str
    figures: Mapping[str, dict[str, Any]]
    spread: Mapping[str, list[float]]
    difference: dict[str, Any] | None
    curves: Mapping[str, Mapping[str, list[float]]]


def entries_of(evaluation: Evaluation) -> list[Entry]:
    """Entries of every method and seed of an evaluation."""
    return [
        _entry(evaluation, method, table, seed)
        for method in evaluation.methods
        for table, seed in zip(method.tables, method.seeds, strict=True)
    ]


def _entry(evaluation: Evaluation, method: Method, table: PerQuery, seed: int) -> Entry:
    _, patients = np.unique(table.clusters, return_inverse=True)
    labels, label = np.unique(table.classes, return_inverse=True)
    values = {name: [_rounded(v) for v in table.column(name)] for name in PER_QUERY}
    return {
        "format": FORMAT,
        "protocol": evaluation.name,
        "title": evaluation.title,
        "method": method.name,
        "kind": method.kind,
        "seed": seed,
        "note": method.note,
        "recipe": dict(method.recipe),
        "data": {
            "n_index": evaluation.n_index,
            "index_patients": evaluation.index_patients,
            "index_classes": dict(evaluation.classes),
            "n_queries": len(table.ap),
            "near_pairs": evaluation.near_pairs,
            "near_queries": evaluation.near_queries,
            "near_closed": evaluation.rules.close_near,
            "graded": evaluation.rules.graded,
            "skipped": evaluation.checks.failed,
        },
        "seconds": round(evaluation.seconds, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "labels": labels.tolist(),
        "query": {"label": label.tolist(), "patient": patients.tolist(), **values},
        "curves": metrics.curves_of(table),
    }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DECIMALS)


def file_of(folder: Path, protocol: str, method: str, seed: int) -> Path:
    """Where an entry stands."""
    return folder / f"{_word(protocol)}--{_word(method)}--seed{seed}.json"


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9.+-]+", "-", text.lower()).strip("-")


def write_entry(folder: Path, entry: Entry) -> Path:
    """Write an entry whole; one of the same protocol, method and seed is replaced.

    Raises
    ------
    StorageFull
        It cannot be written.
    """
    path = file_of(folder, entry["protocol"], entry["method"], entry["seed"])
    new = path.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new.open("w", encoding="utf-8") as f:
            json.dump(entry, f, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            f.write("\n")
            f.flush()
            os.fsync(f.fileno())
        new.replace(path)
    except OSError as exc:
        raise StorageFull(f"the entry cannot be written: {exc.strerror}", place=str(path)) from exc
    return path


def read_ledger(folder: Path) -> list[Entry]:
    """Every entry of a folder, by protocol, kind (packs first), method and seed.

    Raises
    ------
    InputError
        No folder, no entry, or a file that is no entry; it is named.
    """
    if not folder.is_dir():
        raise InputError("no such ledger folder", place=str(folder))
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            entry = json.loads(path.read_text("utf-8"))
            version = entry["format"]
            whole = version == FORMAT and _is_whole(entry)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise InputError("is not an entry of a ledger", place=str(path)) from exc
        if version != FORMAT:
            raise InputError(f"has ledger format {version}; this version reads {FORMAT}", place=str(path))
        if not whole:
            raise InputError("is not a whole entry of a ledger", place=str(path))
        found.append(entry)
    if not found:
        raise InputError("holds no entries", place=str(folder), advice="dicomnode evaluate --protocol ... --ledger DIR")
    return sorted(found, key=lambda e: (e["protocol"], e["kind"] != "pack", e["method"], e["seed"]))


def _is_whole(entry: Entry) -> bool:
    lengths = {len(entry["query"][k]) for k in (*PER_QUERY, "label", "patient")}
    named = all(entry[k] for k in ("protocol", "title", "method", "labels", "curves"))
    return named and lengths == {entry["data"]["n_queries"]} and entry["kind"] in ("pack", "control")


def summaries(entries: Iterable[Entry]) -> list[Summary]:
    """A line for each method of one protocol: packs by mAP, then controls by mAP.

    Raises
    ------
    InputError
        Entries of one protocol that were measured on different queries.
    """
    by_method: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_method[entry["method"]].append(entry)
    first_entry = next(iter(by_method.values()))[0]
    asked = [first_entry["query"][k] for k in ("label", "patient")]
    for method, group in by_method.items():
        for entry in group:
            if [entry["query"][k] for k in ("label", "patient")] != asked:
                line = f"{method} seed {entry['seed']} was measured on other queries than {first_entry['method']}"
                raise InputError(line, place=f"ledger, protocol {entry['protocol']}", advice="measure them again")
    values = {method: np.mean([_values(e) for e in group], axis=0) for method, group in by_method.items()}
    classes = np.array([first_entry["labels"][i] for i in first_entry["query"]["label"]])
    # in the order of the names they stand for, so that the draws are those of the evaluation itself
    clusters = np.array([f"{i:08d}" for i in first_entry["query"]["patient"]])
    order = sorted(by_method, key=lambda m: (by_method[m][0]["kind"] != "pack", -_map(values[m], classes)))
    reference = next((m for m in order if by_method[m][0]["kind"] == "pack"), None)
    ten = PER_QUERY.index("precision@10")
    made = []
    for method in order:
        group = by_method[method]
        shown = metrics.figures_of(values[method], classes, clusters)
        seeds = np.array([metrics.macro(_values(e), classes) for e in group])
        apart = None
        if reference is not None and method != reference:
            column = (values[reference] - values[method])[:, [ten]]
            apart = metrics.figures_of(column, classes, clusters)[0]
        made.append(
            Summary(
                method=method,
                kind=group[0]["kind"],
                seeds=tuple(e["seed"] for e in group),
                note=group[0]["note"],
                figures=dict(zip(PER_QUERY, shown, strict=True)),
                spread={n: [float(seeds[:, i].min()), float(seeds[:, i].max())] for i, n in enumerate(PER_QUERY)},
                difference=apart,
                curves=_mean_curves(group),
            )
        )
    return made


def _values(entry: Entry) -> metrics.Floats:
    columns = [[np.nan if v is None else v for v in entry["query"][name]] for name in PER_QUERY]
    return np.array(columns, dtype=np.float64).T


def _map(values: metrics.Floats, classes: metrics.Strings) -> float:
    return float(metrics.macro(values[:, 0], classes))


def _mean_curves(group: Sequence[Entry]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {
            what: np.mean([e["curves"][name][what] for e in group], axis=0).round(DECIMALS).tolist()
            for what in ("precision", "recall")
        }
        for name in group[0]["curves"]
    }


def markdown(entries: Sequence[Entry]) -> str:
    """A table for each protocol of the ledger, in Markdown."""
    by_protocol: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_protocol[entry["protocol"]].append(entry)
    return "\n\n".join(_protocol_table(group) for group in by_protocol.values()) + "\n"


def _protocol_table(group: Sequence[Entry]) -> str:
    data, query = group[0]["data"], group[0]["query"]
    counted = sum(v is not None for v in query["ap"])
    said = (
        f"Index: {data['n_index']} slices of {data['index_patients']} patients; queries: {counted} slices of"
        f" {len(set(query['patient']))} patients. Macro over classes; [95 % interval over query patients];"
        " (lowest to highest seed)."
    )
    head = "| | seeds | P@1 | P@10 | P@50 | R@50 | nDCG@10 | mAP | first pack minus this, P@10 |"
    lines = [f"### {group[0]['title']}", "", said, "", head, "|---" * 9 + "|"]
    for row in summaries(group):
        cells = [
            _cell(row, name) for name in ("precision@1", "precision@10", "precision@50", "recall@50", "ndcg@10", "ap")
        ]
        apart = "" if row.difference is None else interval(row.difference, signed=True)
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {row.method}{note} | {len(row.seeds)} | " + " | ".join(cells) + f" | {apart} |")
    return "\n".join(lines)


def _cell(row: Summary, name: str) -> str:
    text = interval(row.figures[name])
    if len(row.seeds) > 1:
        low, high = row.spread[name]
        text += f" ({low:.3f} to {high:.3f})"
    return text


def interval(value: Mapping[str, Any], *, signed: bool = False) -> str:
    """``.123 [.10, .15]`` of a figure, or a dash where there is none."""
    if value["mean"] is None:
        return "-"
    sign = "+" if signed else ""
    return f"{value['mean']:{sign}.3f} [{value['ci'][0]:{sign}.2f}, {value['ci'][1]:{sign}.2f}]"

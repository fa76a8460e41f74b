"""Lines and tables made of a ledger's entries: means of seeds, intervals over patients, paired differences.

Everything comes from the figures of every query that an entry holds; nothing is measured here.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dicomnode.errors import InputError
from dicomnode.evaluation import metrics
from dicomnode.evaluation.ledger import DECIMALS, PER_QUERY, Entry, pack_of_control

COMPARED = ("precision@10", "ap", "ndcg@10")
TITLES = {
    "precision@1": "P@1",
    "precision@10": "P@10",
    "precision@50": "P@50",
    "recall@50": "R@50",
    "ndcg@10": "nDCG@10",
    "ap": "mAP",
}

Figure = Mapping[str, Any]  # {"mean", "ci": [low, high]}


LEGEND = """\
P@10 is the share of the first ten slices that have the query's label, no accuracy of a diagnosis. In brackets 95 %
intervals over patients (volumes or blocks of files, where the data names no patients), in parentheses the lowest and
highest of repeated trainings (seeds). *A minus this* above 0: A is better, shown where the interval does not hold 0; of
rows that were trained it is taken over the seeds that both have, which are named where A has more. The interval is over
patients: what another training would change comes on top of it, most where a difference is of one seed.
*full*: before compaction. *control*: what is reached without knowledge of disease. *permuted labels*: chance."""
_MOST_CLASSES = 4  # side by side in a table; of more, each has a line


@dataclass(frozen=True, slots=True)
class OfClass:
    """A method's figures on the queries of one class, by name of ``COMPARED``; differences as in ``Summary``."""

    figures: Mapping[str, Figure]
    differences: Mapping[str, Figure] | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A method's line of a table, made of all its seeds.

    Attributes
    ----------
    figures : name of ``PER_QUERY`` -> {"mean", "ci"} of the mean of seeds, over patients.
    spread : name -> [lowest, highest] of the seeds' own means.
    differences : name of ``COMPARED`` -> {"mean", "ci"} of the reference minus this, paired; None for the reference,
        and where both were trained and have no seed in common.
    of_seeds : the reference's seeds that ``differences`` are of, where they are not all of its seeds.
    by_class : label -> figures of the queries with that label.
    curves : "all" and each class -> "precision" and "recall" at k = 1 to 50, mean of seeds; empty where
        one lacks them.
    """

    method: str
    kind: str
    seeds: tuple[int, ...]
    note: str
    figures: Mapping[str, Figure]
    spread: Mapping[str, list[float]]
    differences: Mapping[str, Figure] | None
    of_seeds: tuple[int, ...]
    by_class: Mapping[str, OfClass]
    curves: Mapping[str, Mapping[str, list[float]]]


@dataclass(frozen=True)
class _Protocol:
    """All entries of one protocol, by method."""

    by_method: Mapping[str, list[Entry]]
    values: Mapping[str, metrics.Floats]  # method -> mean of its seeds, [queries, len(PER_QUERY)]
    classes: metrics.Strings
    clusters: metrics.Strings

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> _Protocol:
        by_method: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            by_method[entry["method"]].append(entry)
        first = next(iter(by_method.values()))[0]
        for entry in itertools.chain.from_iterable(by_method.values()):
            if apart := _not_comparable(entry, first):
                line = f"{entry['method']} seed {entry['seed']} {apart}"
                raise InputError(line, place=f"ledger, protocol {entry['protocol']}", advice="measure them again")
        values = {method: np.mean([_values(e) for e in group], axis=0) for method, group in by_method.items()}
        classes = np.array([first["labels"][i] for i in first["query"]["label"]])
        # in the order of the names they stand for, so that the draws are those of the evaluation itself
        clusters = np.array([f"{i:08d}" for i in first["query"]["patient"]])
        return cls(by_method, values, classes, clusters)

    def order(self) -> list[str]:
        """Packs by mAP, then controls by mAP."""
        return sorted(
            self.by_method,
            key=lambda m: (
                self.by_method[m][0]["kind"] != "pack",
                -float(metrics.macro(self.values[m][:, 0], self.classes)),
            ),
        )

    def compared(self, values: metrics.Floats, label: str | None = None) -> dict[str, Figure]:
        """Figures of ``COMPARED`` of all queries, or of those with a label."""
        rows = self.classes == label if label is not None else np.ones(len(self.classes), dtype=np.bool_)
        columns = values[rows][:, [PER_QUERY.index(name) for name in COMPARED]]
        return dict(zip(COMPARED, metrics.figures_of(columns, self.classes[rows], self.clusters[rows]), strict=True))

    def summary(self, method: str, reference: str | None) -> Summary:
        group, values = self.by_method[method], self.values[method]
        apart, of_seeds = self._apart(method, reference)
        seeds = np.array([metrics.macro(_values(e), self.classes) for e in group])
        return Summary(
            method=method,
            kind=group[0]["kind"],
            seeds=tuple(e["seed"] for e in group),
            note=_note(group),
            figures=dict(zip(PER_QUERY, metrics.figures_of(values, self.classes, self.clusters), strict=True)),
            spread={n: [float(seeds[:, i].min()), float(seeds[:, i].max())] for i, n in enumerate(PER_QUERY)},
            differences=None if apart is None else self.compared(apart),
            of_seeds=of_seeds,
            by_class={
                str(c): OfClass(self.compared(values, c), None if apart is None else self.compared(apart, c))
                for c in np.unique(self.classes)
            },
            curves=_mean_curves(group),
        )

    def _apart(self, method: str, reference: str | None) -> tuple[metrics.Floats | None, tuple[int, ...]]:
        """The reference minus a method, [queries, len(PER_QUERY)], and the reference's seeds where they are not all.

        Trainings of one method vary as much as methods do: so seeds are compared with the same seeds, which share
        their CE-Net and their draws. A method without a training stands beside the mean of all.
        """
        if reference is None or method == reference:
            return None, ()
        its, mine = self.by_method[reference], self.by_method[method]
        shared = {e["seed"] for e in its} & {e["seed"] for e in mine}
        if not (_varies(its) and _varies(mine)):
            return self.values[reference] - self.values[method], ()
        if not shared:
            return None, ()
        means = [np.mean([_values(e) for e in group if e["seed"] in shared], axis=0) for group in (its, mine)]
        return means[0] - means[1], tuple(sorted(shared)) if len(shared) < len(its) else ()


def summaries(entries: Iterable[Entry], references: Sequence[str] = ()) -> list[Summary]:
    """A line for each method of one protocol: packs by mAP, then controls by mAP.

    Parameters
    ----------
    references : the first of these that was measured is what others are compared to; where none was, the first pack.

    Raises
    ------
    InputError
        Entries of one protocol that were measured on different queries, or on another index.
    """
    protocol = _Protocol.of(entries)
    order = protocol.order()
    kinds = [(method, protocol.by_method[method][0]["kind"]) for method in order]
    reference = _reference(kinds, references)
    return [protocol.summary(method, reference or None) for method in order]


def _reference(rows: Iterable[tuple[str, str]], references: Sequence[str]) -> str:
    """Of methods and their kinds, in order: the first reference that is there, else the first pack; "" without one."""
    kinds = dict(rows)
    packs = [method for method, kind in kinds.items() if kind == "pack"]
    return next((m for m in (*references, *packs) if m in kinds), "")


def _not_comparable(entry: Entry, first: Entry) -> str:
    """Why an entry cannot stand in one table with the first: other queries, or another index; "" where it can.

    Entries hold no rows of the index, only what is counted of it: two that are counted alike are taken for one.
    """
    other = f"{first['method']} seed {first['seed']}"
    if any(entry["query"][k] != first["query"][k] for k in ("label", "patient")):
        return f"was measured on other queries than {other}"
    for mine, its in zip(_counted(entry), _counted(first), strict=True):
        if mine != its:
            return f"searched another index than {other}: {mine}, not {its}"
    return ""


def _counted(entry: Entry) -> tuple[str, str]:
    """The size of an entry's index, and its classes, in words."""
    data = entry["data"]
    classes = ", ".join(f"{n} {label}" for label, n in sorted(data["index_classes"].items()))
    return f"{data['n_index']} slices of {data['index_patients']} patients", classes


def _varies(group: Sequence[Entry]) -> bool:
    """Whether another seed gives other figures: of a training, or of a control that a trained pack takes part in."""
    recipe = group[0]["recipe"]
    trained = group[0]["kind"] == "pack" and bool(recipe.get("training") or recipe.get("run"))
    return trained or len(group) > 1 or pack_of_control(group[0]) is not None


def _note(group: Sequence[Entry]) -> str:
    """The note of all seeds, up to where they differ."""
    notes = [e["note"] for e in group]
    shared = "".join(same[0] for same in itertools.takewhile(lambda one: len(set(one)) == 1, zip(*notes, strict=False)))
    return shared if shared == notes[0] else f"{shared}..."


def _values(entry: Entry) -> metrics.Floats:
    columns = [[np.nan if v is None else v for v in entry["query"][name]] for name in PER_QUERY]
    return np.array(columns, dtype=np.float64).T


def _mean_curves(group: Sequence[Entry]) -> dict[str, dict[str, list[float]]]:
    if not all(e["curves"] for e in group):
        return {}
    return {
        name: {
            what: np.mean([e["curves"][name][what] for e in group], axis=0).round(DECIMALS).tolist()
            for what in ("precision", "recall")
        }
        for name in group[0]["curves"]
    }


def markdown(entries: Sequence[Entry], references: Sequence[str] = ()) -> str:
    """Two tables for each protocol of a ledger, in Markdown: all queries, and by class of the query."""
    by_protocol: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_protocol[entry["protocol"]].append(entry)
    return "\n\n".join([LEGEND, *(_protocol_tables(group, references) for group in by_protocol.values())]) + "\n"


def _protocol_tables(group: Sequence[Entry], references: Sequence[str]) -> str:
    data, query = group[0]["data"], group[0]["query"]
    rows = summaries(group, references)
    against = _reference(((r.method, r.kind) for r in rows), references)
    main = ("ndcg@10",) if data["graded"] else ("precision@10", "ap")
    counted = sum(v is not None for v in query["ap"])
    said = (
        f"Index: {data['n_index']} slices of {data['index_patients']} patients; queries: {counted} slices of"
        f" {len(set(query['patient']))} patients. Macro over classes; [95 % interval over query patients];"
        f" (lowest to highest seed). A: {against}."
    )
    apart = "".join(f" A minus this, {TITLES[name]} |" for name in main)
    head = "| | seeds | " + " | ".join(TITLES.values()) + f" |{apart}"
    lines = [f"### {group[0]['title']}", "", said, "", head, "|---" * (2 + len(TITLES) + len(main)) + "|"]
    for row in rows:
        cells = [_cell(row, name) for name in TITLES]
        cells += [_apart_cell(row, row.differences, n, against) for n in main]
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {row.method}{note} | {len(row.seeds)} | " + " | ".join(cells) + " |")
    many = len(rows[0].by_class) > _MOST_CLASSES
    return "\n".join(
        [*lines, "", *(_table_of_classes(rows, against, main) if many else _class_table(rows, against, main))]
    )


def _class_table(rows: Sequence[Summary], against: str, main: Sequence[str]) -> list[str]:
    labels = list(rows[0].by_class)
    head = "".join(f" {label}: {TITLES[n]} | A minus this |" for label in labels for n in main)
    lines = [f"| by class |{head}", "|---" * (1 + 2 * len(labels) * len(main)) + "|"]
    for row in rows:
        cells = []
        for of_class in row.by_class.values():
            apart = of_class.differences
            for n in main:
                cells += [interval(of_class.figures[n]), _apart_cell(row, apart, n, against)]
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    return lines


def _table_of_classes(rows: Sequence[Summary], against: str, main: Sequence[str]) -> list[str]:
    """One line a class: the reference, and the best other pack and control. All of it stands in the ledger."""
    reference = next(row for row in rows if row.method == against)
    packs = [r for r in rows if r.kind == "pack" and r is not reference]
    controls = [r for r in rows if r.kind != "pack"]
    head = "".join(f" {TITLES[n]}: A | best other pack | best control |" for n in main)
    lines = [f"| class |{head}", "|---" * (1 + 3 * len(main)) + "|"]
    empty = []
    for label, of_class in reference.by_class.items():
        if of_class.figures[main[0]]["mean"] is None:
            empty.append(label)
            continue
        cells = []
        for name in main:
            cells.append(interval(of_class.figures[name]))
            cells += [_best(others, label, name) for others in (packs, controls)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    if empty:
        lines += ["", f"Nothing to find, as one patient alone has them: {', '.join(empty)}."]
    return lines


def _best(rows: Sequence[Summary], label: str, name: str) -> str:
    """The highest figure of a class among ``rows`` and whose it is."""
    found = [(mean, r) for r in rows if (mean := r.by_class[label].figures[name]["mean"]) is not None]
    if not found:
        return "-"
    best = max(found, key=lambda one: one[0])[1]
    return f"{interval(best.by_class[label].figures[name])} {best.method}"


def _apart_cell(row: Summary, differences: Mapping[str, Figure] | None, name: str, against: str) -> str:
    if row.method == against:
        return ""
    if differences is None:
        return "no seed in common"
    seeds = f" (seed {', '.join(map(str, row.of_seeds))})" if row.of_seeds else ""
    return interval(differences[name], signed=True) + seeds


def _cell(row: Summary, name: str) -> str:
    text = interval(row.figures[name])
    if len(row.seeds) > 1:
        low, high = row.spread[name]
        text += f" ({low:.3f} to {high:.3f})"
    return text


def interval(value: Figure, *, signed: bool = False) -> str:
    """``.123 [.10, .15]`` of a figure, or a dash where there is none."""
    if value["mean"] is None:
        return "-"
    sign = "+" if signed else ""
    return f"{value['mean']:{sign}.3f} [{value['ci'][0]:{sign}.2f}, {value['ci'][1]:{sign}.2f}]"

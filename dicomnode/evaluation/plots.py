"""The published figure, precision and recall at k = 1 to 50 for all queries and each class, and a map of the index.

Drawn from the curves of a ledger's summaries; packs are solid, controls dashed. Colours are those of Okabe and Ito
2008, which people tell apart whatever their colour vision. Global state of matplotlib is changed
while an SVG is written only.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dicomnode.evaluation.metrics import MAX_K
from dicomnode.evaluation.summaries import Summary

PACK_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
CONTROL_COLOURS = ("#555555", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999", "#0072B2", "#882255")
CONTROL_DASHES = ((6, 2), (2, 1.5), (6, 2, 1.5, 2), (8, 3), (1, 1), (4, 1, 1, 1, 1, 1), (3, 3), (5, 1), (2, 3))
MARKERS = "osD^vPX"
GREY = "#444444"
DPI = 150
CLASS_MARKS = "o^sDvPX"
MAP_SEED = 0  # of the order in which points are drawn: no class hides the other

Vectors = npt.NDArray[np.float32]


def _save_svg(figure: Figure, target: Path) -> None:
    """The same bytes for the same figure: ids in it are random otherwise."""
    with mpl.rc_context({"svg.hashsalt": "dicomnode"}):
        figure.savefig(target, metadata={"Date": None})


def draw_curves(rows: Sequence[Summary], title: str, target: Path) -> list[Path]:
    """The figure as PNG, SVG and CSV beside each other.

    Parameters
    ----------
    rows : methods of one protocol; those without curves are left out.
    title : over the figure.
    target : path without suffix.

    Returns
    -------
    list of Path
        What was written; nothing where no row has curves.
    """
    rows = [row for row in rows if row.curves]
    if not rows:
        return []
    groups = list(rows[0].curves)
    across = min(len(groups), 4)  # more classes than this are in the CSV alone
    figure = Figure(figsize=(1.2 + 3.6 * across, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, across, squeeze=False, sharex=True, sharey="row")
    lines: list[Line2D] = []
    for column, group in enumerate(groups[:across]):
        for line, what in enumerate(("precision", "recall")):
            ax = axes[line][column]
            drawn = _panel(ax, rows, group, what)
            lines = lines or drawn
        axes[0][column].set_title("all queries (macro)" if group == "all" else f"{group} queries", fontsize=11)
        axes[1][column].set_xlabel("k, number of results")
    for line, what in enumerate(("precision", "recall")):
        axes[line][0].set_ylabel(f"{what} at k")
        axes[line][0].set_ylim(0, 1 if what == "precision" else _top(rows, groups[:across]))  # shared by the row
    figure.suptitle(title, fontsize=13)
    figure.legend(
        lines, [_shown(r) for r in rows], loc="outside lower center", ncols=min(3, len(rows)), frameon=False, fontsize=9
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    made = [_beside(target, ".png"), _beside(target, ".svg"), _beside(target, ".csv")]
    figure.savefig(made[0], dpi=DPI)
    _save_svg(figure, made[1])
    _write_csv(rows, made[2])
    return made


def _top(rows: Sequence[Summary], groups: Sequence[str]) -> float:
    """A little over the highest recall shown."""
    highest = max(max(r.curves[g]["recall"]) for r in rows for g in groups if g in r.curves)
    return min(1.02, 1.06 * highest)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _shown(row: Summary) -> str:
    return f"{row.method} ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else row.method


def _panel(ax: Axes, rows: Sequence[Summary], group: str, what: str) -> list[Line2D]:
    ks = np.arange(1, MAX_K + 1)
    lines = []
    names = {kind: sorted(r.method for r in rows if r.kind == kind) for kind in ("pack", "control")}
    for row in rows:
        n = names[row.kind].index(row.method)  # a method keeps its colour whatever its place in the table
        values = row.curves.get(group, {}).get(what, [float("nan")] * MAX_K)
        if row.kind == "pack":
            colour = PACK_COLOURS[n % len(PACK_COLOURS)]
            again = n // len(PACK_COLOURS)  # the colours have been used up: another mark, and a hollow one
            (line,) = ax.plot(
                ks, values, color=colour, linewidth=1.7 if again else 2.4, zorder=3,
                marker=MARKERS[(n + 3 * again) % len(MARKERS)], markevery=[0, 4, 9, 19, 29, 39, 49], markersize=5,
                markerfacecolor="white" if again else colour,
            )  # fmt: skip
        else:
            (line,) = ax.plot(ks, values, color=CONTROL_COLOURS[n % len(CONTROL_COLOURS)], linewidth=1.3)
            line.set_dashes(CONTROL_DASHES[n % len(CONTROL_DASHES)])
        lines.append(line)
    ax.set_xlim(1, MAX_K)
    ax.set_xticks([1, 10, 20, 30, 40, 50])
    ax.grid(color="#DDDDDD", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=GREY)
    return lines


def _write_csv(rows: Sequence[Summary], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["method", "kind", "queries", "k", "precision", "recall"])
        for row in rows:
            for group, curves in row.curves.items():
                for k in range(MAX_K):
                    writer.writerow([row.method, row.kind, group, k + 1, curves["precision"][k], curves["recall"][k]])


def plane(vectors: Vectors) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """The first two principal components of unit vectors float32 [n, dim]: float64 [n, 2], and the variance of each.

    The same vectors give the same picture: the value farthest from 0 on an axis is positive.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred)
    values, axes = values[::-1][:2], axes[:, ::-1][:, :2]
    points = centred @ axes
    farthest = np.abs(points).argmax(axis=0)
    points = points * np.where(points[farthest, np.arange(points.shape[1])] < 0, -1.0, 1.0)
    total = float((centred**2).sum()) or 1.0
    return points, (float(values[0] / total), float(values[1] / total))


def draw_map(vectors: Vectors, labels: npt.NDArray[np.str_], title: str, target: Path) -> list[Path]:
    """The index by its first two principal components, coloured by label, as PNG and SVG."""
    points, shares = plane(vectors)
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    names, counts = np.unique(labels, return_counts=True)
    shuffled = np.random.default_rng(MAP_SEED).permutation(len(points))
    for n, name in enumerate(names[np.argsort(-counts)]):
        mine = shuffled[labels[shuffled] == name]
        ax.scatter(
            points[mine, 0], points[mine, 1], s=22, alpha=0.65, linewidths=0.3, edgecolors="white",
            color=PACK_COLOURS[n % len(PACK_COLOURS)], marker=CLASS_MARKS[n % len(CLASS_MARKS)],
            label=f"{name} (n = {len(mine)})",
        )  # fmt: skip
    ax.set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
    ax.set_ylabel(f"second component ({shares[1]:.0%})")
    ax.set_title(title, fontsize=12)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = [_beside(target, ".png"), _beside(target, ".svg")]
    figure.savefig(made[0], dpi=DPI)
    _save_svg(figure, made[1])
    return made

"""The published figure: whoever reads it can tell the methods apart."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from dicomnode.evaluation.metrics import MAX_K
from dicomnode.evaluation.plots import _panel, draw_curves
from dicomnode.evaluation.summaries import Summary


def summary(n: int, kind: str) -> Summary:
    curve = {"precision": [0.5] * MAX_K, "recall": [0.1] * MAX_K}
    return Summary(f"{kind} {n}", kind, (0,), "", {}, {}, None, (), {}, {"all": curve})


def test_every_method_of_a_full_table_has_a_look_of_its_own() -> None:
    rows = [*(summary(n, "pack") for n in range(18)), *(summary(n, "control") for n in range(9))]
    lines = _panel(Figure().subplots(), rows, "all", "precision")
    looks = {
        (line.get_color(), line.get_marker(), str(line.get_markerfacecolor()), str(line._unscaled_dash_pattern))
        for line in lines
    }
    assert len(looks) == len(rows)


def test_a_method_without_curves_is_left_out(tmp_path: Path) -> None:
    rows = [replace(summary(0, "pack"), curves={}), summary(1, "pack"), summary(0, "control")]
    with draw_curves(rows, "title", tmp_path / "curves")[2].open() as f:
        assert {line["method"] for line in csv.DictReader(f)} == {"pack 1", "control 0"}
    assert draw_curves(rows[:1], "title", tmp_path / "none") == []

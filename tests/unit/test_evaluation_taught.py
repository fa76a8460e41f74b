"""Controls that the labels of the index teach: what they learn, from which rows, and that no query teaches them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_samples import labelled_folder

from dicomnode.domain import ModelId
from dicomnode.evaluation import controls, metrics, taught
from dicomnode.evaluation.candidates import Candidate
from dicomnode.evaluation.labels import Checks, Row, read_rows
from dicomnode.evaluation.rank import cosine_ranker, distance_ranker
from dicomnode.evaluation.run import Evaluation, Options, evaluate
from dicomnode.evaluation.task import Rules, Task

METADATA, HISTOGRAM = "control: metadata, taught", "control: histogram, taught"
WIDE, TALL = "WIDE", "TALL"


def scans(count: int, seed: int, prefix: str) -> list[Row]:
    """Images of all sizes, file types and modes, a patient each; only width against height tells the label."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        side, wide = np.exp(random.uniform(np.log(100), np.log(2000))), bool(i % 2)
        ratio = 1.1 if wide else 1 / 1.1
        columns = {
            "width": f"{side * ratio**0.5:.0f}",
            "height": f"{side / ratio**0.5:.0f}",
            "source_format": str(random.choice(["PNG", "JPEG", "BMP"])),
            "source_mode": str(random.choice(["L", "RGB", "RGBA"])),
        }
        rows.append(Row(Path(f"/images/{prefix}{i}"), WIDE if wide else TALL, f"{prefix}{i}", columns=columns))
    return rows


def means(rows: list[Row], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((len(rows), 1), dtype=np.float32)


def found_by(index: list[Row], queries: list[Row], rules: Rules | None = None) -> tuple[list[taught.Taught], list[str]]:
    """Both controls, on histograms of noise."""
    random = np.random.default_rng(7)
    a, b = (np.sqrt(random.dirichlet(np.ones(32), len(rows))).astype(np.float32) for rows in (index, queries))
    return taught.teach(index, queries, (means(index, 1), means(queries, 2)), (a, b), rules or Rules())


def precision(index: list[Row], queries: list[Row], ranker) -> float:
    """P@10, macro; no image is a near copy of another."""
    random = np.random.default_rng(0)
    small = (random.standard_normal((len(r), 64)).astype(np.float32) for r in (index, queries))
    small = (s / np.linalg.norm(s, axis=1, keepdims=True) for s in small)
    table = Task(index, queries, *small).measure(ranker)
    return float(metrics.macro(table.column("precision@10"), table.classes))


class TestLearner:
    def test_it_learns_what_the_nearest_neighbour_misses(self):
        index, queries = scans(200, 0, "i"), scans(60, 1, "q")
        a, b, _ = controls.metadata(index, queries, (means(index, 1), means(queries, 2)))
        assert precision(index, queries, distance_ranker(a, b)) < 0.75
        by_name = {t.name: t for t in found_by(index, queries)[0]}
        metadata, histogram = by_name["metadata, taught"], by_name["histogram, taught"]
        assert precision(index, queries, cosine_ranker(metadata.index, metadata.queries)) > 0.95
        assert 0.3 < precision(index, queries, cosine_ranker(histogram.index, histogram.queries)) < 0.7  # of noise

    def test_what_is_rare_in_the_index_is_learnt_too(self):
        index = [r for i, r in enumerate(scans(200, 0, "i")) if r.label == WIDE or i % 20 == 0]
        queries = scans(60, 1, "q")
        metadata = found_by(index, queries)[0][0]
        rows, nearest = np.array([r.label for r in index]), []
        for i, query in enumerate(queries):
            best = rows[np.argmax(metadata.index @ metadata.queries[i])]
            nearest.append((query.label, best == query.label))
        assert np.mean([right for label, right in nearest if label == TALL]) > 0.8

    def test_the_same_rows_give_the_same_unit_vectors_whatever_else_draws_at_random(self):
        index, queries = scans(40, 0, "i"), scans(8, 1, "q")
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        threads = torch.get_num_threads()
        one = found_by(index, queries)[0]
        assert torch.rand(1) == expected
        assert torch.get_num_threads() == threads
        other = found_by(index, queries)[0]
        for a, b in zip(one, other, strict=True):
            assert (a.index == b.index).all()
            assert (a.queries == b.queries).all()
            assert np.linalg.norm(np.concatenate([a.index, a.queries]), axis=1) == pytest.approx(1, abs=1e-5)
            assert a.index.dtype == np.float32

    def test_a_word_that_the_index_lacks_moves_no_vector(self):
        index, queries = scans(40, 0, "i"), scans(8, 1, "q")
        strange = [replace(q, columns={**q.columns, "source_format": "TIFF"}) for q in queries]
        none = [replace(q, columns={**q.columns, "source_format": "WEBP"}) for q in queries]
        one, other = (found_by(index, q)[0][0] for q in (strange, none))
        assert np.abs(one.index - other.index).max() < 1e-5
        assert np.abs(one.queries - other.queries).max() < 1e-5


class TestTeachers:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        """Who teaches does not hang on how well is learnt."""
        monkeypatch.setattr(taught, "FITS", 2)
        monkeypatch.setattr(taught, "EPOCHS", 30)

    def test_labels_of_queries_teach_nothing(self):
        index, queries = scans(40, 0, "i"), scans(20, 1, "q")
        random = np.random.default_rng(3)
        turned = [
            replace(q, label=str(label))
            for q, label in zip(queries, random.permutation([WIDE, TALL] * 10), strict=True)
        ]
        one, other = found_by(index, queries)[0], found_by(index, turned)[0]
        assert len(one) == 2
        for a, b in zip(one, other, strict=True):
            assert (a.index == b.index).all()
            assert (a.queries == b.queries).all()

    def test_labels_of_the_index_do(self):
        index, queries = scans(40, 0, "i"), scans(20, 1, "q")
        turned = [replace(r, label=WIDE if r.label == TALL and i % 3 else r.label) for i, r in enumerate(index)]
        one, other = found_by(index, queries)[0][0], found_by(turned, queries)[0][0]
        assert np.abs(one.queries - other.queries).max() > 1e-2

    def test_a_patient_who_asks_does_not_teach(self):
        index, queries = scans(40, 0, "i"), scans(8, 1, "q")
        index = [*index, *(replace(q, path=Path(f"{q.path}-2")) for q in queries)]
        turned = [replace(r, label=WIDE) if r.group.startswith("q") else r for r in index]
        one, other = found_by(index, queries)[0], found_by(turned, queries)[0]
        for a, b in zip(one, other, strict=True):
            assert len(a.index) == 48
            assert (a.queries == b.queries).all()
        assert "40 of 48 index rows" in one[0].note

    def test_nor_does_an_image_that_asks_where_groups_are_open(self):
        index, queries = scans(40, 0, "i"), scans(8, 1, "q")
        index = [*index, *(replace(q, path=Path(f"{q.path}-2")) for q in queries), queries[0]]
        found, _ = found_by(index, queries, Rules(close_group=False, close_near=False))
        assert "48 of 49 index rows" in found[0].note

    @pytest.mark.parametrize(
        "index",
        [
            pytest.param([replace(r, label=WIDE) for r in scans(40, 0, "i")], id="one class"),
            pytest.param(scans(2 * taught.MIN_ROWS - 1, 0, "i"), id="few rows"),
            pytest.param(scans(12, 1, "q"), id="all of them ask"),
        ],
    )
    def test_too_little_to_learn_from_is_said_in_a_line(self, index):
        found, lines = found_by(index, scans(12, 1, "q"))
        assert found == []
        (line,) = lines
        assert line.startswith("control: metadata, taught and control: histogram, taught are left out: ")
        assert f"{taught.MIN_ROWS} rows" in line

    def test_rows_of_a_class_that_is_too_small_are_ranked_and_teach_nothing(self):
        index, queries = scans(40, 0, "i"), scans(8, 1, "q")
        index = [*index, *(replace(r, label="ODD") for r in scans(3, 4, "o"))]
        found, lines = found_by(index, queries)
        assert lines == []
        assert len(found[0].index) == 43
        assert "40 of 43 index rows" in found[0].note

    def test_without_columns_there_is_no_metadata_to_learn(self):
        index, queries = ([replace(r, columns={}) for r in scans(n, n, p)] for n, p in ((40, "i"), (8, "q")))
        found, lines = found_by(index, queries)
        assert [t.name for t in found] == ["histogram, taught"]
        (line,) = lines
        assert line.startswith("control: metadata, taught is left out: ")
        assert "width" in line


class TestEvaluation:
    def measured(self, folder: Path, rules: Rules | None = None, checks: Checks | None = None) -> Evaluation:
        index, queries = (
            read_rows(labelled_folder(folder / n, count, seed=s, prefix=n), Checks())
            for n, count, s in (("a", 16, 0), ("q", 8, 5))
        )
        profiles = (0.1, 0.0, 0.2)
        index, queries = ([replace(r, profile=profiles) for r in rows] for rows in (index, queries))
        pixels = Candidate("pixels", controls.small, ModelId("pixels"))
        return evaluate("demo", "Demo", index, queries, [pixels], rules=rules, checks=checks, options=Options(seeds=2))

    def test_they_stand_beside_those_that_nothing_teaches(self, tmp_path):
        found = self.measured(tmp_path)
        names = [m.name for m in found.controls]
        assert names[2:5] == ["control: histogram of 32 bins", METADATA, HISTOGRAM]
        by_name = {m.name: m for m in found.controls}
        for name, sees in ((METADATA, "mean intensity, width, height, source_format, aspect ratio"), (HISTOGRAM, "32")):
            method = by_name[name]
            assert method.seeds == (0,)  # drawn by seeds of its own, the same in every evaluation
            assert sees in method.note
            assert "taught with the labels of 16 of 16 index rows" in method.note
            assert method.recipe["hidden"] == taught.HIDDEN
            assert np.isfinite(method.tables[0].ap).all()

    def test_where_relevance_is_graded_there_are_none(self, tmp_path):
        checks = Checks()
        found = self.measured(tmp_path, Rules(graded=True), checks)
        assert not {METADATA, HISTOGRAM} & {m.name for m in found.controls}
        assert not any("taught" in line for line in checks.lines())

    def test_an_index_that_asks_itself_has_none_and_says_so(self, tmp_path):
        rows, checks = read_rows(labelled_folder(tmp_path, 16), Checks()), Checks()
        pixels = Candidate("pixels", controls.small, ModelId("pixels"))
        found = evaluate("demo", "Demo", rows, rows, [pixels], checks=checks)
        assert not {METADATA, HISTOGRAM} & {m.name for m in found.controls}
        assert any(METADATA in line and "left out" in line for line in checks.notes)

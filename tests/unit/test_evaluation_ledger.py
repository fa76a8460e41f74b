"""The ledger, and the tables, figures and page that are made of it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from index_samples import unit
from PIL import Image

from dicomnode.errors import InputError, StorageFull
from dicomnode.evaluation import ledger, metrics
from dicomnode.evaluation.files import check_out, check_writable, write_evaluation, write_ledger_report
from dicomnode.evaluation.labels import Checks
from dicomnode.evaluation.plots import plane
from dicomnode.evaluation.report import plain_words
from dicomnode.evaluation.run import Evaluation, Method
from dicomnode.evaluation.summaries import markdown, summaries
from dicomnode.evaluation.task import Rules

QUERIES = 24


def a_table(share: float, seed: int = 0) -> metrics.PerQuery:
    random = np.random.default_rng(seed)
    rows = [random.random(60) < share for _ in range(QUERIES)]
    for r in rows:
        r[59] = True
    judged = [metrics.judge(r.astype(float), r) for r in rows]
    classes = np.array(["COVID", "NonCOVID"] * (QUERIES // 2))
    return metrics.collect(judged, classes, np.array([f"patient-{i // 2}" for i in range(QUERIES)]))


def an_evaluation(name: str = "demo") -> Evaluation:
    random = np.random.default_rng(0)
    return Evaluation(
        name=name,
        title="A <title> with marks",
        packs=(Method("good", "pack", (a_table(0.9),), (7,), recipe={"model_id": "sha256:x"}),),
        controls=(
            Method("control: raw 32x32 pixels", "control", (a_table(0.4, 1),), note="centred"),
            Method("control: random weights", "control", (a_table(0.5, 2), a_table(0.5, 3)), (0, 1)),
            Method("control: equal", "control", (a_table(0.9),)),
            Method("control: better", "control", (a_table(1.0),)),
        ),
        n_index=60,
        index_patients=30,
        classes={"COVID": 30, "NonCOVID": 30},
        rules=Rules(),
        near_pairs=2,
        near_queries=1,
        checks=Checks(["a note"]),
        vectors=unit(random.standard_normal((60, 8))),
        labels=np.array(["COVID", "NonCOVID"] * 30),
        seconds=1.5,
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    for entry in ledger.entries_of(an_evaluation()):
        ledger.write_entry(tmp_path / "ledger", entry)
    return tmp_path / "ledger"


class TestEntries:
    def test_one_small_whole_file_a_method_and_seed(self, folder):
        names = sorted(p.name for p in folder.iterdir())
        assert names == [
            "demo--control-better--seed0.json",
            "demo--control-equal--seed0.json",
            "demo--control-random-weights--seed0.json",
            "demo--control-random-weights--seed1.json",
            "demo--control-raw-32x32-pixels--seed0.json",
            "demo--good--seed7.json",
        ]
        assert all(p.stat().st_size < 20_000 for p in folder.iterdir())

    def test_no_patient_is_named(self, folder):
        assert all("patient-" not in p.read_text() for p in folder.iterdir())

    def test_what_is_read_is_what_was_measured(self, folder):
        entry = next(e for e in ledger.read_ledger(folder) if e["method"] == "good")
        table = a_table(0.9)
        assert entry["query"]["ap"] == pytest.approx(table.ap, abs=1e-4)
        assert entry["query"]["recall@50"] == pytest.approx(table.recall[:, 49], abs=1e-4)
        assert entry["curves"] == metrics.curves_of(table)
        assert (entry["seed"], entry["recipe"], entry["data"]["n_index"]) == (7, {"model_id": "sha256:x"}, 60)

    def test_packs_come_first(self, folder):
        assert ledger.read_ledger(folder)[0]["kind"] == "pack"

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda e: e.update(format=2), "format 2; this version reads 1"),
            (lambda e: e["query"]["ap"].pop(), "not a whole entry"),
            (lambda e: e.pop("curves"), "not an entry"),
            (lambda e: e.update(kind="other"), "not a whole entry"),
        ],
    )
    def test_a_damaged_entry_is_named(self, folder, change, match):
        path = folder / "demo--good--seed7.json"
        entry = json.loads(path.read_text())
        change(entry)
        path.write_text(json.dumps(entry))
        with pytest.raises(InputError, match=match) as caught:
            ledger.read_ledger(folder)
        assert str(path) in str(caught.value)

    def test_no_json_no_folder_nothing_in_it(self, tmp_path):
        with pytest.raises(InputError, match="no such ledger"):
            ledger.read_ledger(tmp_path / "absent")
        with pytest.raises(InputError, match="holds no entries"):
            ledger.read_ledger(tmp_path)
        (tmp_path / "a.json").write_text("{")
        with pytest.raises(InputError, match="not an entry"):
            ledger.read_ledger(tmp_path)


def an_evaluation_of(pack: str, share: float, seed: int = 0, *, lungs: str = "a CE-Net (cenet-s0)") -> Evaluation:
    """One pack with the controls of its own, whose notes are those of ``evaluation.run``, and one that needs none."""
    notes = {
        "control: random weights": f"architecture of {pack}, statistics of the index images",
        "control: lungs masked out": f"{pack}; lungs found by {lungs}",
        "control: border only": f"{pack}; only the outer 28 of 224 pixels",
        "control: permuted labels": f"the ranking of {pack}; relevance of the index rows permuted, mean of 20",
        "control: histogram of 32 bins": "Bhattacharyya",
    }
    controls = tuple(Method(name, "control", (a_table(share),), (seed,), note) for name, note in notes.items())
    return replace(
        an_evaluation(), packs=(Method(pack, "pack", (a_table(share),), (seed,)),), controls=controls, checks=Checks()
    )


OF_A_PACK = {
    "control: random weights", "control: lungs masked out", "control: border only", "control: permuted labels",
}  # fmt: skip


class TestControlsOfAPack:
    """A control that a pack takes part in has no pack in its file's name, so one ledger holds those of one pack."""

    @pytest.fixture
    def shipped(self, tmp_path) -> Path:
        assert ledger.add_entries(tmp_path, ledger.entries_of(an_evaluation_of("shipped, literal", 0.8))) == []
        return tmp_path

    def read(self, folder: Path, seed: int = 0) -> dict[str, ledger.Entry]:
        return {e["method"]: e for e in ledger.read_ledger(folder) if e["seed"] == seed}

    def test_those_of_another_pack_are_left_as_they_are_and_told(self, shipped):
        before, mine = self.read(shipped), ledger.entries_of(an_evaluation_of("mine", 0.5))
        left = ledger.add_entries(shipped, mine)
        assert {e["method"]: ledger.pack_of_control(e) for e in left} == dict.fromkeys(OF_A_PACK, "shipped, literal")
        after, given = self.read(shipped), {e["method"]: e for e in mine}
        assert {m for m in after if after[m] == before.get(m)} == {*OF_A_PACK, "shipped, literal"}
        assert {m for m in after if after[m] == given.get(m)} == {"mine", "control: histogram of 32 bins"}

    @pytest.mark.parametrize("pack", ["shipped", "literal", "shipped, literal + profile"])
    def test_a_name_that_is_a_part_of_another_is_another_pack(self, shipped, pack):
        left = ledger.add_entries(shipped, ledger.entries_of(an_evaluation_of(pack, 0.5)))
        assert {e["method"] for e in left} == OF_A_PACK

    def test_a_line_of_several_seeds_is_not_mixed_of_two_packs(self, shipped):
        left = ledger.add_entries(shipped, ledger.entries_of(an_evaluation_of("mine", 0.5, seed=3)))
        assert {(e["method"], e["seed"]) for e in left} == {(method, 0) for method in OF_A_PACK}
        assert set(self.read(shipped, seed=3)) == {"mine", "control: histogram of 32 bins"}

    def test_its_own_are_replaced_and_more_seeds_are_added(self, shipped):
        for seed in (0, 1):
            again = ledger.entries_of(an_evaluation_of("shipped, literal", 0.3, seed, lungs="a classical segmentation"))
            assert ledger.add_entries(shipped, again) == []
            assert self.read(shipped, seed) == {e["method"]: e for e in again}

    def test_its_own_are_replaced_where_another_seed_is_of_another_pack(self, shipped):
        for entry in ledger.entries_of(an_evaluation_of("mine", 0.5, seed=1)):
            ledger.write_entry(shipped, entry)  # as every version before wrote it
        again = ledger.entries_of(an_evaluation_of("mine", 0.6, seed=1))
        assert ledger.add_entries(shipped, again) == []
        assert self.read(shipped, 1) == {e["method"]: e for e in again}

    def test_a_pack_that_no_note_tells_is_another_pack(self, shipped):
        path = shipped / "demo--control-border-only--seed0.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"note": ""}))
        left = ledger.add_entries(shipped, ledger.entries_of(an_evaluation_of("shipped, literal", 0.5)))
        assert [(e["method"], ledger.pack_of_control(e)) for e in left] == [("control: border only", "")]

    def test_a_damaged_one_is_named_and_stays(self, shipped):
        path = shipped / "demo--control-border-only--seed0.json"
        path.write_text("{")
        with pytest.raises(InputError, match="not an entry") as caught:
            ledger.add_entries(shipped, ledger.entries_of(an_evaluation_of("mine", 0.5)))
        assert str(path) in str(caught.value)
        assert path.read_text() == "{"

    def test_every_entry_of_the_ledger_of_this_project_tells_its_pack(self):
        entries = ledger.read_ledger(Path(__file__).parents[2] / "docs" / "evaluation" / "ledger")
        rows = {(e["protocol"], e["seed"], e["method"]) for e in entries if e["kind"] == "pack"}
        told = [(e, pack) for e in entries if (pack := ledger.pack_of_control(e)) is not None]
        assert {e["method"] for e, _ in told} == OF_A_PACK
        assert all((e["protocol"], e["seed"], pack) in rows for e, pack in told)


class TestTables:
    def test_a_line_of_several_seeds_has_their_mean_interval_and_spread(self, folder):
        rows = {r.method: r for r in summaries(ledger.read_ledger(folder))}
        random = rows["control: random weights"]
        both = metrics.mean_of([a_table(0.5, 2), a_table(0.5, 3)])
        expected = metrics.row_of("x", both)
        assert random.seeds == (0, 1)
        assert random.figures["ap"]["mean"] == pytest.approx(expected["map"]["mean"], abs=2e-4)
        assert random.figures["precision@10"]["ci"] == pytest.approx(expected["precision"]["10"]["ci"], abs=2e-4)
        means = [float(metrics.macro(t.ap, t.classes)) for t in (a_table(0.5, 2), a_table(0.5, 3))]
        assert random.spread["ap"] == pytest.approx([min(means), max(means)], abs=1e-4)
        assert rows["good"].differences is None
        paired = metrics.difference(a_table(0.9), both)
        assert random.differences["precision@10"]["mean"] == pytest.approx(paired["mean"], abs=2e-4)
        assert random.differences["precision@10"]["ci"] == pytest.approx(paired["ci"], abs=2e-4)

    def test_markdown(self, folder):
        text = markdown(ledger.read_ledger(folder))
        assert "queries: 24 slices of 12 patients" in text
        everything, by_class = text.split("| by class |")
        for table, columns in ((everything, 10), (f"| by class |{by_class}", 9)):
            lines = [line for line in table.splitlines() if line.startswith("|")]
            assert lines[2].startswith("| good | ")
            assert {line.count("|") for line in lines} == {columns + 1}

    def test_notes_of_seeds_are_shown_up_to_where_they_differ(self, folder):
        for seed in (0, 1):
            path = folder / f"demo--control-random-weights--seed{seed}.json"
            entry = json.loads(path.read_text())
            entry["note"] = f"lungs of network-s{seed}"
            path.write_text(json.dumps(entry))
        text = markdown(ledger.read_ledger(folder))
        assert "random weights (lungs of network-s...)" in text
        assert "raw 32x32 pixels (centred)" in text

    def test_of_many_classes_each_has_a_line_with_the_best_of_the_others(self, tmp_path):
        many = np.array([f"region {i % 6}" for i in range(QUERIES)])
        evaluation = an_evaluation()
        methods = [
            replace(m, tables=tuple(replace(t, classes=many) for t in m.tables))
            for m in (*evaluation.packs, *evaluation.controls)
        ]
        tables = replace(evaluation, packs=(methods[0],), controls=tuple(methods[1:]))
        for entry in ledger.entries_of(tables):
            ledger.write_entry(tmp_path / "many", entry)
        text = markdown(ledger.read_ledger(tmp_path / "many"))
        lines = text[text.index("| class |") :].splitlines()
        assert [line.split("|")[1].strip() for line in lines[2:]] == [f"region {i}" for i in range(6)]
        assert all(line.count("control: better") == 2 for line in lines[2:])

    def test_differences_are_to_the_reference_that_is_named_and_by_class(self, folder):
        rows = {r.method: r for r in summaries(ledger.read_ledger(folder), ["not measured", "control: equal"])}
        assert rows["control: equal"].differences is None
        apart = rows["control: raw 32x32 pixels"].differences["ap"]["mean"]
        by_class = [c.differences["ap"]["mean"] for c in rows["control: raw 32x32 pixels"].by_class.values()]
        assert len(by_class) == 2
        assert np.mean(by_class) == pytest.approx(apart, abs=2e-4)
        one, other = a_table(0.9), a_table(0.4, 1)
        assert apart == pytest.approx(metrics.difference(one, other, "ap")["mean"], abs=2e-4)

    def test_of_two_that_were_trained_the_seeds_that_both_have_are_compared(self, tmp_path):
        better, worse = a_table(0.9), a_table(0.6, 2)
        evaluation = an_evaluation()
        pack = replace(evaluation.packs[0], recipe={"training": {"epochs": 30}})
        shipped = replace(pack, name="shipped", tables=(better, worse), seeds=(0, 1))
        once = replace(pack, name="once", tables=(worse,), seeds=(1,))
        elsewhere = replace(pack, name="elsewhere", tables=(worse,), seeds=(5,))
        fixed = replace(pack, name="fixed", tables=(worse,), seeds=(0,), recipe={"weights": "of others"})
        raw = next(m for m in evaluation.controls if m.name == "control: raw 32x32 pixels")
        made = replace(evaluation, packs=(shipped, once, elsewhere, fixed), controls=(raw,))
        entries = ledger.entries_of(made)
        rows = {r.method: r for r in summaries(entries, ["shipped"])}
        assert rows["once"].differences["ap"]["mean"] == pytest.approx(0, abs=2e-4)
        by_class = [c.differences["ap"]["mean"] for c in rows["once"].by_class.values()]
        assert by_class == pytest.approx([0, 0], abs=2e-4)
        assert rows["once"].of_seeds == (1,)
        assert (rows["elsewhere"].differences, rows["elsewhere"].of_seeds) == (None, ())
        both = metrics.mean_of([better, worse])
        for untrained, table in (("fixed", worse), (raw.name, raw.tables[0])):
            expected = metrics.difference(both, table, "ap")["mean"]
            assert rows[untrained].differences["ap"]["mean"] == pytest.approx(expected, abs=2e-4)
            assert rows[untrained].of_seeds == ()
        text = markdown(entries, ["shipped"])
        assert text.count("] (seed 1)") == 2 + 4 and text.count("no seed in common") == 2 + 4
        (other,) = [r for r in summaries(entries, ["once"]) if r.method == "shipped"]
        assert other.differences["ap"]["mean"] == pytest.approx(0, abs=2e-4) and other.of_seeds == ()

    def test_entries_of_other_queries_are_not_compared(self, folder):
        path = folder / "demo--good--seed7.json"
        entry = json.loads(path.read_text())
        entry["query"]["label"][0] = 1
        path.write_text(json.dumps(entry))
        with pytest.raises(InputError, match="measured on other queries"):
            summaries(ledger.read_ledger(folder))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"n_index": 61}, "61 slices of 30 patients, not 60 slices of 30 patients"),
            ({"index_patients": 29}, "60 slices of 29 patients, not 60 slices of 30 patients"),
            ({"index_classes": {"COVID": 31, "NonCOVID": 29}}, "31 COVID, 29 NonCOVID, not 30 COVID, 30 NonCOVID"),
        ],
    )
    def test_entries_of_another_index_are_not_compared(self, folder, change, said):
        path = folder / "demo--control-random-weights--seed1.json"
        entry = json.loads(path.read_text())
        entry["data"].update(change)
        path.write_text(json.dumps(entry))
        with pytest.raises(InputError, match="searched another index") as caught:
            markdown(ledger.read_ledger(folder))
        (line,) = str(caught.value).splitlines()
        assert "protocol demo: control: random weights seed 1 searched another index than good seed 7" in line
        assert said in line

    def test_the_order_of_an_index_s_classes_is_no_difference(self, folder):
        path = folder / "demo--control-random-weights--seed1.json"
        entry = json.loads(path.read_text())
        entry["data"]["index_classes"] = dict(reversed(entry["data"]["index_classes"].items()))
        path.write_text(json.dumps(entry))
        assert summaries(ledger.read_ledger(folder))


class TestFiles:
    def test_everything_of_an_evaluation(self, tmp_path):
        found = an_evaluation()
        made = write_evaluation(tmp_path / "out", found, found.as_json(), "About <it>")
        assert {p.name for p in made} == {
            "curves.png", "curves.svg", "curves.csv", "map.png", "map.svg", "report.html", "evaluation.json",
        }  # fmt: skip
        for name in ("curves.png", "map.png"):
            with Image.open(tmp_path / "out" / name) as image:
                assert min(image.size) > 500
                assert len(np.unique(np.asarray(image.convert("L")))) > 20
        page = (tmp_path / "out" / "report.html").read_text()
        assert "A &lt;title&gt; with marks" in page
        assert "About &lt;it&gt;" in page
        assert "http" not in page.split("<body>")[1].replace("http-equiv", "")  # nothing from elsewhere
        for method in found.methods:
            assert method.name in page
        with (tmp_path / "out" / "curves.csv").open() as f:
            rows = list(csv.DictReader(f))
        assert len(rows) == len(found.methods) * 3 * 50
        one = next(r for r in rows if (r["method"], r["queries"], r["k"]) == ("good", "all", "10"))
        assert float(one["precision"]) == found.as_json()["packs"][0]["precision"]["10"]["mean"]

    def test_an_evaluation_is_not_overwritten(self, tmp_path):
        found = an_evaluation()
        write_evaluation(tmp_path, found, found.as_json(), "")
        with pytest.raises(InputError, match="choose a new folder"):
            check_out(tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="is a file"):
            check_out(tmp_path / "file")
        check_out(tmp_path / "new")
        (tmp_path / "new" / "curves.png").touch()
        with pytest.raises(InputError, match=r"not empty: curves\.png"):
            check_out(tmp_path / "new")
        with pytest.raises(StorageFull, match="cannot be written to"):
            check_writable(tmp_path / "file" / "below")

    def test_tables_and_figures_of_a_ledger(self, folder, tmp_path):
        for entry in ledger.entries_of(an_evaluation("other")):
            ledger.write_entry(folder, entry)
        text, made = write_ledger_report(tmp_path / "out", folder)
        again = write_ledger_report(tmp_path / "again", folder)[1]
        for one, other in zip(sorted(made), sorted(again), strict=True):
            assert one.read_bytes() == other.read_bytes(), one.name
        assert {"demo-curves.png", "other-curves.svg", "tables.md"} <= {p.name for p in made}
        assert text == (tmp_path / "out" / "tables.md").read_text()
        assert text.count("### ") == 2


class TestWords:
    def test_what_is_beaten_and_what_is_not(self):
        words = plain_words(an_evaluation().as_json())
        assert any(w.startswith("good is better than raw 32x32 pixels (P@10 +0.") for w in words)
        assert any(w.startswith("good is not shown to be better than equal") for w in words)
        assert any(w.startswith("good is WORSE than better") for w in words)
        (of_class,) = [w for w in words if w.startswith("Queries with label COVID: P@10")]
        assert of_class.endswith("better reaches 1.000 [1.00, 1.00], which is more.")

    def test_a_graded_protocol_is_judged_by_ndcg(self):
        result = an_evaluation().as_json() | {"graded": True}
        assert all("nDCG@10" in w for w in plain_words(result) if w.startswith("good"))


class TestContract:
    def test_the_object(self):
        found = an_evaluation().as_json()
        assert (found["n_index"], found["n_queries"]) == (60, QUERIES)
        for row in (*found["packs"], *found["controls"]):
            for figures in (row, *row["by_class"].values()):
                for what in ("precision", "recall"):
                    assert set(figures[what]) == {"1", "5", "10", "50"}
                for value in (*figures["precision"].values(), *figures["recall"].values(), figures["map"]):
                    assert value["ci"][0] <= value["mean"] <= value["ci"][1]
            assert set(row["by_class"]) == {"COVID", "NonCOVID"}
        assert all(set(c["difference"]) == {"mean", "ci"} for c in found["controls"])
        json.dumps(found, allow_nan=False)


def test_a_map_is_the_same_whatever_the_signs(folder):
    vectors = unit(np.random.default_rng(3).standard_normal((30, 6)))
    points, shares = plane(vectors)
    assert points.shape == (30, 2)
    assert 0 < shares[1] <= shares[0] < 1
    again, _ = plane(vectors)
    assert (points == again).all()
    assert all(points[np.abs(points[:, i]).argmax(), i] > 0 for i in (0, 1))

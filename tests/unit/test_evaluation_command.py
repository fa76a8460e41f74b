"""``dicomnode evaluate`` from the command line: the contract's object, exit codes, one line for what is wrong."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
from evaluation_samples import labelled_folder, write_csv
from test_cli import _model_loaded_once, _own_surroundings, run, write_settings  # noqa: F401 - fixtures

from dicomnode.node import packs_folder

INDEX, QUERIES = 16, 8


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return labelled_folder(folder / "a", INDEX), labelled_folder(folder / "b", QUERIES, seed=9, prefix="q")


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    index, queries = files
    said = run(
        "evaluate", "--index", index, "--queries", queries, "--seeds", "2", "--out", folder / "out",
        "--ledger", folder / "ledger", "--json", "--config", write_settings(folder),
    )  # fmt: skip
    return said, folder


def test_the_object_of_the_contract(done):
    said, _ = done
    assert said.code == 0, said.err
    found = said.json()
    assert (found["n_index"], found["n_queries"]) == (INDEX, QUERIES)
    assert any("looks better than it is" in note for note in found["notes"])
    (pack,) = found["packs"]
    assert pack["name"] == "cenet-xception"
    assert set(pack["by_class"]) == {"PLAIN", "STRIPED"}
    assert {c["name"] for c in found["controls"]} == {
        "control: metadata", "control: raw 32x32 pixels", "control: histogram of 32 bins", "control: random weights",
        "control: lungs masked out", "control: border only", "control: permuted labels",
        "control: metadata, taught", "control: histogram, taught",
    }  # fmt: skip
    for control in found["controls"]:
        assert control["difference"]["ci"][0] <= control["difference"]["mean"] <= control["difference"]["ci"][1]
        paired = pack["precision"]["10"]["mean"] - control["precision"]["10"]["mean"]
        assert control["difference"]["mean"] == pytest.approx(paired, abs=2e-4)
    metadata = next(c for c in found["controls"] if c["name"] == "control: metadata")
    assert metadata["note"] == "nearest by mean intensity, width, height, source_format"
    permuted = next(c for c in found["controls"] if c["name"] == "control: permuted labels")
    assert permuted["precision"]["5"]["mean"] == pytest.approx(0.5, abs=0.12)


def test_what_is_written(done):
    said, folder = done
    assert json.loads((folder / "out" / "evaluation.json").read_text()) == said.json()
    assert (folder / "out" / "report.html").stat().st_size > 50_000
    names = {p.name for p in (folder / "ledger").iterdir()}
    assert {"labels--cenet-xception--seed0.json", "labels--control-random-weights--seed1.json"} <= names


def test_tables_of_the_ledger(done):
    _, folder = done
    said = run("evaluate", "--ledger", folder / "ledger", "--out", folder / "tables")
    assert said.code == 0
    assert "| control: raw 32x32 pixels (centred, cosine) | 1 | " in said.out
    assert (folder / "tables" / "labels-curves.png").is_file()


def test_the_tables_of_the_pages_are_made_by_the_command_that_they_name(tmp_path):
    docs = Path(__file__).parents[2] / "docs"
    lines = (docs / "evaluation.md").read_text("utf-8").splitlines()
    (line,) = [shlex.split(one, comments=True) for one in lines if one.startswith("    dicomnode evaluate --ledger")]
    assert line[2:6] == ["--ledger", "docs/evaluation/ledger", "--out", "tables"]
    said = run("evaluate", "--ledger", docs / "evaluation" / "ledger", "--out", tmp_path / "tables", *line[6:])
    assert said.code == 0, said.err
    assert (tmp_path / "tables" / "tables.md").read_bytes() == (docs / "evaluation" / "tables.md").read_bytes()
    made = {p.name for p in (tmp_path / "tables").iterdir()}
    assert made >= {p.name for p in (docs / "evaluation").iterdir() if p.is_file()}


def test_a_row_that_the_ledger_does_not_have_is_named(done):
    _, folder = done
    said = run("evaluate", "--ledger", folder / "ledger", "--out", folder / "none", "--pack", "no such row")
    assert said.code == 1
    assert "'no such row'" in said.err and "cenet-xception" in said.err
    assert not (folder / "none").exists()


def test_a_pack_of_one_s_own_leaves_the_controls_of_another_in_the_ledger(done, files, tmp_path):
    first, folder = done
    ledger = shutil.copytree(folder / "ledger", tmp_path / "ledger")
    mine = shutil.copytree(packs_folder() / "cenet-xception", tmp_path / "mine")
    before = {p.name: p.read_bytes() for p in ledger.iterdir()}
    said = run(
        "evaluate", "--index", files[0], "--queries", files[1], "--pack", mine, "--ledger", ledger, "--json",
        "--config", write_settings(tmp_path),
    )  # fmt: skip
    assert said.code == 0, said.err
    assert {p.name for p in ledger.iterdir()} - set(before) == {"labels--mine--seed0.json"}
    of_a_pack = [n for n in before if any(w in n for w in ("masked", "border", "permuted", "random"))]
    assert len(of_a_pack) == 6  # two seeds of those that draw
    assert all((ledger / name).read_bytes() == before[name] for name in of_a_pack)
    (line,) = [text for text in said.err.splitlines() if "left as they are" in text]
    assert line.startswith(f"{ledger}: ")
    for word in ("lungs masked out", "border only", "permuted labels", "random weights", "those of cenet-xception"):
        assert line.count(word) == 1, line
    assert "left as they are" not in first.err
    # its own stand in what is printed
    assert "architecture of mine" in next(c["note"] for c in said.json()["controls"] if "random" in c["name"])


def test_a_second_run_does_not_overwrite(done, files):
    _, folder = done
    before = (folder / "out" / "evaluation.json").read_bytes()
    said = run("evaluate", "--index", files[0], "--queries", files[1], "--out", folder / "out")
    assert said.code == 1
    assert "choose a new folder for --out" in said.error()
    assert (folder / "out" / "evaluation.json").read_bytes() == before


def test_skipped_images_end_with_1_and_figures_of_the_rest(files, tmp_path):
    index, queries = files
    rows = list(csv.reader(queries.open()))
    (tmp_path / "empty.png").touch()
    moved = [[queries.parent / r[0], *r[1:]] for r in rows[1:]]
    more = [["empty.png", "PLAIN", "e", 1, 1, "PNG"], ["absent.png", "PLAIN", "f", 1, 1, "PNG"]]
    path = write_csv(tmp_path / "l.csv", rows[0], [*moved, *more])
    said = run("evaluate", "--index", index, "--queries", path, "--config", write_settings(tmp_path))
    assert said.code == 1
    assert f"skipped: 1 images: the file is empty: {tmp_path / 'empty.png'}" in said.err
    assert f"skipped: 1 images: no such file: {tmp_path / 'absent.png'}" in said.err
    assert f"{QUERIES} of {QUERIES} queries" in said.out
    assert "cenet-xception is" in said.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "give one of"),
        (["--index", "a.csv"], "--index and --queries belong together"),
        (["--protocol", "in-domain"], "--protocol and --data belong together"),
        (["--repository", "--protocol", "in-domain", "--data", "."], "give one of"),
        (["--protocol", "best", "--data", "."], "no protocol is called 'best'"),
        (["--ledger", "x"], "give one of"),
        (["--repository", "--pack", "cenet-xception", "--seeds", "5"], "without --pack and --seeds"),
        (["--repository", "--ledger", "x", "--lung-model", "y"], "without --ledger and --lung-model"),
        (["--ledger", "x", "--out", "y", "--seeds", "2"], "made without --seeds"),
    ],
)
def test_wrong_use_is_one_line_and_2(arguments, line, tmp_path):
    said = run("evaluate", *arguments, "--config", write_settings(tmp_path))
    assert said.code == 2
    assert line in said.error()


def test_wrong_input_is_one_line_and_1(files, tmp_path):
    settings = write_settings(tmp_path)
    index, queries = files
    (tmp_path / "x.pt").write_bytes(b"no checkpoint")
    one_class = write_csv(tmp_path / "one.csv", ["path", "label"], [["a.png", "x"], ["b.png", "x"]])
    for arguments, line in (
        (["--index", tmp_path / "absent.csv", "--queries", queries], "absent.csv: no such labels file"),
        (["--index", one_class, "--queries", queries], "one class only"),
        (["--index", index, "--queries", queries, "--lung-model", tmp_path / "x.pt"], "not a readable checkpoint"),
        (["--index", index, "--queries", queries, "--pack", "absent"], "no model pack is called 'absent'"),
        (["--repository"], "fewer than two kinds"),
        (["--protocol", "in-domain", "--data", tmp_path], "labels.csv: no such labels file"),
    ):
        said = run("evaluate", *arguments, "--config", settings)
        assert said.code == 1, said.err
        assert line in said.error()


def test_a_pack_outside_the_protocol_is_marked_in_its_row(files, tmp_path):
    index, queries = files
    text = f"""
title = "Mine"
about = "Phantoms."
kind = "labels"
not_trained_on = ["COVID-CT"]
[index]
file = {json.dumps(str(index))}
[queries]
file = {json.dumps(str(queries))}
"""
    (tmp_path / "mine.toml").write_text(text)
    settings = write_settings(tmp_path)
    said = run("evaluate", "--protocol", tmp_path / "mine.toml", "--data", tmp_path, "--json", "--config", settings)
    assert said.code == 0, said.err
    found = said.json()
    assert found["protocol"] == "mine"
    assert found["packs"][0]["note"].startswith("outside the protocol: this pack was trained on COVID-CT")

"""Every benchmark still fits the code that it measures: it can be imported, and is on the page's list."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from dicomnode.evaluation.files import TABLE
from dicomnode.evaluation.labels import Checks, read_rows
from dicomnode.evaluation.ledger import read_ledger
from dicomnode.evaluation.protocols import find_protocol, open_protocol
from dicomnode.evaluation.summaries import markdown

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(p.name for p in FOLDER.glob("*.py") if not p.name.startswith("__"))
PARTS = {"gate_augment.py", "gate_data.py"}  # of another script
UNLISTED = {"experiments.py", "gate.py", *PARTS}  # fill docs/evaluation, not the page of benchmarks
EXTRA = ("faiss", "hnswlib")  # of the dependency group "bench"


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_can_be_imported(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name.removesuffix('.py')}", FOLDER / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as exc:
        if exc.name not in EXTRA:
            raise
        pytest.skip(f"{exc.name} is not installed: pip install --group bench")
    finally:
        del sys.modules[spec.name]
    assert name in PARTS or callable(module.main)


def experiments(monkeypatch):
    """The module of the experiments."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("experiments")


def test_the_tables_of_the_evaluation_are_those_of_its_ledger(monkeypatch):
    module = experiments(monkeypatch)
    told = markdown(read_ledger(module.LEDGER), module.REFERENCES)
    assert (module.PAGES / TABLE).read_text("utf-8") == told, "benchmarks/experiments.py tables"


def test_controls_stay_those_of_the_first_reference(monkeypatch, tmp_path):
    module = experiments(monkeypatch)
    assert module.brings_controls(module.SHIPPED, "organs", 0, tmp_path)
    assert module.brings_controls(module.NATIVE, "organs", 0, tmp_path)
    assert not module.brings_controls("U-Net-ME", "organs", 0, tmp_path)
    module.file_of(tmp_path, "organs", module.SHIPPED, 0).touch()
    assert not module.brings_controls(module.NATIVE, "organs", 0, tmp_path)


def test_every_row_has_its_training_after_the_one_it_starts_from(monkeypatch, tmp_path):
    module = experiments(monkeypatch)
    planned = module.plan(tmp_path, tmp_path / "runs")
    names = [training.name for training in planned]
    assert len(set(names)) == len(names)
    for at, training in enumerate(planned):
        assert not training.start or training.start in names[:at], training.name
    for seed in module.SEEDS:
        for learnt in set(module.PROTOCOLS.values()):
            assert {f"{learnt}-s{seed}", f"{module.LITERAL_RUNS[learnt]}-s{seed}"} <= set(names)


def test_the_leaky_queries_are_in_no_training(monkeypatch, tmp_path):
    module = experiments(monkeypatch)
    protocol = find_protocol("leaky")
    assert tuple(protocol.parts["queries"]["held_out"]) == module.LEAKY_QUERIES
    folder = tmp_path / "sars-cov-2-ct"
    folder.mkdir()
    (folder / "labels.csv").write_text("path,label\n" + "".join(f"{i}.webp,{'AB'[i % 2]}\n" for i in range(20)))
    module.write_sars_table(tmp_path, tmp_path / "runs")
    trained = {r.path.name for r in read_rows(tmp_path / "runs" / module.SARS_TABLE, Checks())}
    with open_protocol(protocol, tmp_path, Checks()) as (index, queries):
        assert trained == {r.path.name for r in index}
        assert not trained & {r.path.name for r in queries}


def test_a_training_stands_after_the_one_it_starts_from(monkeypatch, tmp_path):
    names = []
    for training in experiments(monkeypatch).plan(tmp_path, tmp_path):
        assert not training.start or training.start in names
        names.append(training.name)
    assert len(set(names)) == len(names)


def test_every_benchmark_has_its_part_of_the_page():
    text = (FOLDER / "__main__.py").read_text("utf-8")
    assert [name for name in SCRIPTS if name not in UNLISTED and f'"{name}"' not in text] == []

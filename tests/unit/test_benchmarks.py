"""Every benchmark still fits the code that it measures: it can be imported, and is on the page's list."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(p.name for p in FOLDER.glob("*.py") if not p.name.startswith("__"))
UNLISTED = {"experiments.py"}  # fill docs/evaluation, not the page of benchmarks
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
    assert callable(module.main)


def test_every_benchmark_has_its_part_of_the_page():
    text = (FOLDER / "__main__.py").read_text("utf-8")
    assert [name for name in SCRIPTS if name not in UNLISTED and f'"{name}"' not in text] == []

"""The index as commands show it: status, rebuild, verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from index_samples import MODEL, Clusters, exclude, fill, open_index

from dicomnode.domain import Pseudonym, PseudoUid
from dicomnode.index.repository import VectorIndex


@pytest.fixture
def index(tmp_path: Path) -> VectorIndex:
    index = open_index(tmp_path)
    fill(index, Clusters.make(), 6, 5)
    return index


def test_status_of_an_empty_index_is_all_zero(tmp_path: Path) -> None:
    shown = open_index(tmp_path).status()
    assert [shown[key] for key in ("studies", "patients", "instances", "vectors", "tail")] == [0] * 5
    assert (shown["model_id"], shown["snapshot"]) == (MODEL, None)


def test_status_counts_what_is_there_and_is_json(index: VectorIndex) -> None:
    exclude(index, "p0001")
    shown = json.loads(json.dumps(index.status()))
    assert [shown[key] for key in ("studies", "patients", "instances", "vectors", "tail")] == [6, 6, 30, 30, 30]
    assert shown["excluded_patients"] == 1


def test_a_sound_index_verifies_and_rebuilds_without_loss(index: VectorIndex) -> None:
    before = index.searcher.refresh().matrix.copy()
    assert index.verify() == []
    made = index.rebuild()
    assert (made.lost, made.swept) == ((), 0)
    assert (index.searcher.refresh().matrix == before).all()


def test_backend_exact_builds_no_snapshot(tmp_path: Path) -> None:
    index = open_index(tmp_path, backend="exact", worth_a_snapshot=1)
    fill(index, Clusters.make(), 3)
    assert "exact" in index.rebuild().line
    assert not index.snapshot_due()


def test_removing_reports_how_many_vectors_went(index: VectorIndex) -> None:
    assert index.remove_study(PseudoUid("2.25.1000")) == 5
    assert index.remove_patient(Pseudonym("p0001")) == 5
    assert index.remove_patient(Pseudonym("nobody")) == 0
    assert index.status()["vectors"] == 20

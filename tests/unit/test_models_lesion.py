"""The lesion profile: what it says of infection and its place, and a pack that has it as a part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dicomnode.evaluation.lesion import lesion_profile
from dicomnode.models.embedder import Embedder
from dicomnode.models.networks import CENetConfig, EmbeddingNet, XceptionConfig
from dicomnode.models.networks.lesion import BANDS, FULL_SHARE, LESION_DIM, SIDES, lesion_code
from dicomnode.models.pack import synthetic_images, write_pack

CENET = CENetConfig("resnet34", 0.25)
XCEPTION = XceptionConfig(132, (16,), 1, (16,), 1, 0, (24,))
SIDE = 224
SURE = 20.0


def lungs() -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    return (((x - 0.4) / 0.25) ** 2 + (y / 0.5) ** 2 < 1) | (((x + 0.4) / 0.25) ** 2 + (y / 0.5) ** 2 < 1)


def logits(lung: np.ndarray, infection: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(np.stack([lung, infection]), SURE, -SURE).astype(np.float32))[None]


def block(top: float, bottom: float, left: float, right: float) -> np.ndarray:
    y, x = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def test_the_regions_are_those_of_outlines_that_people_drew():
    lung, infection = lungs(), block(0.3, 0.55, 0.1, 0.6)
    code = lesion_code(logits(lung, infection))[0].numpy()
    assert np.linalg.norm(code) == pytest.approx(1, abs=1e-4)
    share = code[: BANDS * SIDES] ** 2 * BANDS * SIDES
    assert share == pytest.approx(lesion_profile(lung, infection & lung), abs=0.03)
    clear = code[BANDS * SIDES :] ** 2 * BANDS * SIDES
    assert share + clear == pytest.approx(1, abs=1e-4)


def test_alike_lies_nearer_than_elsewhere():
    lung = lungs()
    left, also_left, right = (
        lesion_code(logits(lung, block(0.2, 0.8, a, b)))[0] for a, b in ((0.0, 0.5), (0.05, 0.5), (0.5, 1.0))
    )
    assert float(left @ also_left) > float(left @ right) + 0.3


def test_a_few_stray_pixels_move_no_region():
    lung, infection = lungs(), block(0.3, 0.55, 0.1, 0.6)
    stray = lung.copy()
    stray[2, 2:8] = stray[-3, 100:106] = True
    one, other = (lesion_code(logits(x, infection))[0] for x in (lung, stray))
    assert float(one @ other) > 0.999


def test_without_a_lung_there_is_no_profile_and_with_little_lung_little_of_it():
    nothing = np.zeros((SIDE, SIDE), dtype=bool)
    few = nothing.copy()
    few[100 : 100 + int(SIDE * FULL_SHARE / 2 * 10), 100:120] = True
    code = lesion_code(torch.cat([logits(nothing, nothing), logits(few, nothing)]))
    assert float(code[0].norm()) == 0
    assert 0 < float(code[1].norm()) < 1


def test_it_does_not_depend_on_its_batch():
    both = torch.cat([logits(lungs(), block(0, 1, 0, 0.5)), logits(np.roll(lungs(), 9, 0), block(0, 0.5, 0, 1))])
    alone = torch.cat([lesion_code(both[i : i + 1]) for i in range(2)])
    assert torch.equal(lesion_code(both), alone)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Embedder:
    """A small untrained pack with the profile as its third part; the head is biased so that it sees a lung."""
    folder: Path = tmp_path_factory.mktemp("packs") / "small"
    torch.manual_seed(0)
    network = EmbeddingNet(CENET, XCEPTION, SIDE, 16, lesion=True)
    network.train()  # norms of random networks take their statistics from images
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None
    images = torch.from_numpy(synthetic_images(24)).float().div(255)
    with torch.no_grad():
        network.full(images)
        network.eval()
        network.fit(network.full(images))
    write_pack(
        folder,
        network,
        name="small",
        status="test",
        card="# card {model_id}\n",
        about={"licence": "none"},
        compaction={"kind": "pca", "dim": 16},
    )
    return Embedder.load(folder, "cpu")


def test_a_pack_with_a_lesion_profile_is_loaded_as_it_was_written(embedder):
    network = embedder.pack.embedding_net
    assert list(network.parts) == ["rmp", "activation", "lesion"]
    assert network.full_dim == network.parts["lesion"].stop
    x = synthetic_images(3).astype(np.float32) / 255
    full = embedder.full(x)
    assert full.shape == (3, network.full_dim)
    at = network.parts["lesion"]
    with torch.inference_mode():
        expected = network.lesion_weight * lesion_code(network.outlines(torch.from_numpy(x)))
    assert full[:, at] == pytest.approx(expected.numpy(), abs=1e-5)
    assert np.linalg.norm(embedder.embed(x), axis=1) == pytest.approx(1, abs=1e-5)


def test_each_part_has_a_third_of_the_variance(embedder):
    spread = embedder.full(synthetic_images(24).astype(np.float32) / 255).var(axis=0)
    at = embedder.pack.embedding_net.parts["lesion"]
    assert spread[at].sum() / spread.sum() == pytest.approx(1 / 3, abs=0.02)
    assert at.stop - at.start == LESION_DIM


def test_a_profile_needs_lungs_and_infection():
    with pytest.raises(ValueError, match="2 classes"):
        EmbeddingNet(CENetConfig("resnet34", 0.25, classes=1), XCEPTION, SIDE, 16, lesion=True)


def test_a_network_without_a_decoder_has_no_outlines():
    network = EmbeddingNet(CENET, XCEPTION, SIDE, 16)
    with pytest.raises(ValueError, match="no decoder"):
        network.outlines(torch.zeros(1, SIDE, SIDE))

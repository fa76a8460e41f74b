"""Negative controls: what each may see, and what it may not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_samples import phantoms

from dicomnode.errors import InputError
from dicomnode.evaluation import controls
from dicomnode.evaluation.labels import Row
from dicomnode.models.pack import synthetic_images
from dicomnode.models.training.cenet import build_cenet


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([image for _, image in phantoms(6)]).astype(np.float32) / 255


def disc(side: int = 224) -> tuple[np.ndarray, np.ndarray]:
    """A bright body with two dark lungs on a dark ground, and where the lungs are."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = (x / 0.9) ** 2 + (y / 0.8) ** 2 < 1
    lungs = ((x - 0.4) / 0.25) ** 2 + (y / 0.5) ** 2 < 1
    lungs |= ((x + 0.4) / 0.25) ** 2 + (y / 0.5) ** 2 < 1
    image = np.where(body, 0.8, 0.05)
    image[lungs] = 0.1
    return image[None].astype(np.float32), lungs[None]


class TestLungs:
    def test_the_classical_segmentation_finds_lungs_and_not_the_air_around(self):
        image, lungs = disc()
        found = controls.classical_lungs(image)
        dice = 2 * (found & lungs).sum() / (found.sum() + lungs.sum())
        assert dice > 0.95

    def test_nothing_is_found_in_a_body_without_lungs(self):
        image, _ = disc()
        image[:, 20:200, 30:195] = 0.8
        assert controls.classical_lungs(image).sum() == 0

    def test_no_pixel_of_the_lungs_is_left(self):
        image, lungs = disc()
        image[0][lungs[0]] = np.random.default_rng(0).random(int(lungs.sum())) * 0.2
        masked = controls.lungs_masked(image, lambda _: lungs)
        assert len(np.unique(masked[lungs])) == 1
        ring = np.zeros_like(lungs)
        ring[:, 1:] |= lungs[:, :-1]
        assert len(np.unique(masked[lungs | ring])) == 1  # widened
        far = ~lungs & (image[0] == np.float32(0.05))
        assert (masked[far] == image[far]).all()

    def test_an_image_that_is_all_lung(self):
        image = np.random.default_rng(0).random((1, 224, 224), dtype=np.float32)
        assert controls.lungs_masked(image, lambda _: np.ones((1, 224, 224), dtype=bool)).max() == 0

    def test_a_checkpoint_of_train_cenet_finds_them(self, tmp_path):
        net = build_cenet("lite0", 1.0, imagenet=False, seed=0)
        identity = {"encoder": "lite0", "width": 1.0}
        torch.save({"identity": identity, "modules": {"cenet": net.state_dict()}}, tmp_path / "a.pt")
        torch.save({"identity": {"cenet": identity}, "modules": {"cenet": net.state_dict()}}, tmp_path / "b.pt")
        images = synthetic_images(2).astype(np.float32) / 255
        one, other = (controls.cenet_lungs(tmp_path / name)(images) for name in ("a.pt", "b.pt"))
        assert one.shape == (2, 224, 224)
        assert one.dtype == bool
        assert (one == other).all()

    def test_images_without_a_lung_are_counted(self, images):
        found = np.zeros((len(images), 224, 224), dtype=bool)
        found[0, 100:120, 100:120] = True
        lungs = controls.Lungs(lambda _: found)
        controls.lungs_masked(images, lungs)
        assert lungs.without == len(images) - 1

    def test_weights_that_are_no_numbers_find_no_lungs_and_are_refused(self, tmp_path):
        net = build_cenet("lite0", 1.0, imagenet=False, seed=0)
        with torch.no_grad():
            next(net.parameters()).fill_(float("nan"))
        identity = {"encoder": "lite0", "width": 1.0}
        torch.save({"identity": identity, "modules": {"cenet": net.state_dict()}}, tmp_path / "a.pt")
        with pytest.raises(InputError, match="NaN or infinite") as caught:
            controls.cenet_lungs(tmp_path / "a.pt")
        assert str(tmp_path / "a.pt") in str(caught.value)
        with pytest.raises(InputError, match="no such file"):
            controls.cenet_lungs(tmp_path / "absent.pt")

    @pytest.mark.parametrize("content", [{"identity": {}, "modules": {}}, {"weights": 1}, None])
    def test_what_is_no_checkpoint_is_named(self, tmp_path, content):
        path = tmp_path / "x.pt"
        if content is None:
            path.write_bytes(b"no checkpoint")
        else:
            torch.save(content, path)
        with pytest.raises(InputError, match="checkpoint") as caught:
            controls.cenet_lungs(path)
        assert str(path) in str(caught.value)


class TestPictures:
    def test_border_only_keeps_the_border_and_nothing_inside(self, images):
        kept = controls.border_only(images)
        b = controls.BORDER
        assert (kept[:, :b] == images[:, :b]).all()
        assert (kept[:, :, -b:] == images[:, :, -b:]).all()
        assert all(len(np.unique(k[b:-b, b:-b])) == 1 for k in kept)
        other = images.copy()
        other[:, b:-b, b:-b] = 0.5
        assert (controls.border_only(other) == kept).all()

    def test_small_pixels_forget_brightness(self, images):
        assert controls.small(images * 0.5 + 0.2) == pytest.approx(controls.small(images), abs=0.02)
        assert np.linalg.norm(controls.small(images), axis=1) == pytest.approx(1)

    def test_a_histogram_forgets_places(self, images):
        turned = images[:, ::-1, ::-1].copy()
        assert (controls.histogram(turned) == controls.histogram(images)).all()
        assert np.linalg.norm(controls.histogram(images), axis=1) == pytest.approx(1)


class TestMetadata:
    def rows(self, *columns: dict[str, str]) -> list[Row]:
        return [Row(Path(f"{i}"), "x", columns=c) for i, c in enumerate(columns)]

    def means(self, *counts: int) -> tuple[np.ndarray, ...]:
        return tuple(np.linspace(0, 1, n, dtype=np.float32)[:, None] for n in counts)

    def test_sizes_and_words(self):
        index = self.rows({"width": "10", "source_format": "PNG"}, {"width": "1000", "source_format": "JPEG"})
        queries = self.rows({"width": "10", "source_format": "PNG"})
        a, b, names = controls.metadata(index, queries, self.means(2, 1))
        assert names == ["mean intensity", "width", "source_format"]
        assert a.shape == (2, 4)
        assert b[0, 1:].tolist() == a[0, 1:].tolist()
        assert np.abs(a.mean(axis=0)).max() < 1e-9

    @pytest.mark.parametrize("value", ["", "wide", "0", "-3", "nan"])
    def test_a_column_that_not_every_row_has_is_not_used(self, value):
        index = self.rows({"width": "10"}, {"width": value})
        _, _, names = controls.metadata(index, self.rows({"width": "3"}), self.means(2, 1))
        assert names == ["mean intensity"]


class TestRandomTwin:
    def test_it_is_the_same_network_without_what_it_learnt(self, embedder, images):
        before = embedder.embed(images[:2])
        twin, again, other = (controls.random_twin(embedder, images, seed) for seed in (0, 0, 1))
        vectors = twin(images)
        assert vectors.shape == (6, 5)  # a PCA of six images has five axes
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
        assert np.abs(again(images) - vectors).max() < 1e-4
        assert np.abs(np.abs(other(images)) - np.abs(vectors)).max() > 1e-2
        assert (embedder.embed(images[:2]) == before).all()  # the pack itself is untouched

    def test_the_random_state_of_the_process_is_left_as_it_was(self, embedder, images):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        controls.random_twin(embedder, images[:3], 0)
        assert torch.rand(1) == expected

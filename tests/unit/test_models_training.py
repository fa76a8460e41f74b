"""Training on generated data: splits do not leak, a broken run goes on to the same result, a pack comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dicomnode.errors import InputError, UsageError
from dicomnode.models.embedder import Embedder
from dicomnode.models.manifest import CARD
from dicomnode.models.tensors import standardise
from dicomnode.models.training import build, figures
from dicomnode.models.training import cenet as cenet_module
from dicomnode.models.training.augment import HEAVY, Augmenter, Strength
from dicomnode.models.training.build import load_trained
from dicomnode.models.training.cenet import CenetOptions, train_cenet
from dicomnode.models.training.data import (
    HELD_OUT_VOLUMES,
    LabelledData,
    SegmentationData,
    load_covid_ct,
    load_segmentation,
)
from dicomnode.models.training.figures import unit_rows
from dicomnode.models.training.losses import segmentation_loss, supervised_contrastive
from dicomnode.models.training.run import CHECKPOINT, CURVES, PLOT, load_checkpoint
from dicomnode.models.training.xception import XceptionOptions, train_xception


@pytest.fixture(scope="module")
def segmentation() -> SegmentationData:
    """Bright discs on noise: 'lungs' are the discs, 'infection' a part of them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:224, 0:224]
    images, masks = [], []
    for _ in range(10):
        cx, cy, r = *rng.uniform(70, 150, 2), rng.uniform(30, 60)
        disc = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        images.append((rng.normal(60, 10, (224, 224)) + 120 * disc).clip(0, 255).astype(np.uint8))
        masks.append(np.stack([disc, disc & (x < cx)]))
    return SegmentationData(np.stack(images), np.stack(masks), np.array([0, 0, 1, 1, 2, 2, 4, 4, 3, 6]))


@pytest.fixture(scope="module")
def labelled() -> LabelledData:
    rng = np.random.default_rng(1)
    labels = np.array([0, 1] * 6)
    images = (rng.random((12, 224, 224)) * 100 + labels[:, None, None] * 100).astype(np.uint8)
    return LabelledData(images, labels, np.array([f"p{i}" for i in range(12)]), np.array([True] * 8 + [False] * 4))


def cenet_options(out: Path, epochs: int) -> CenetOptions:
    return CenetOptions(
        out, out, encoder="resnet34", width=0.25, imagenet=False, epochs=epochs, batch=4, max_steps=1, seed=3
    )


class Killed(Exception):
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    modules = load_checkpoint(folder / CHECKPOINT)["modules"]
    return {f"{m}.{k}": v for m, state in modules.items() for k, v in state.items()}


def test_a_killed_run_goes_on_to_the_same_weights(
    tmp_path: Path, segmentation: SegmentationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_cenet(cenet_options(tmp_path / "whole", 3), segmentation)
    done = 0
    real = cenet_module.segmentation_step

    def dies_in_the_third_epoch(*args: object) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == 3:
            raise Killed
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(cenet_module, "segmentation_step", dies_in_the_third_epoch)
    with pytest.raises(Killed):
        train_cenet(cenet_options(tmp_path / "broken", 3), segmentation)
    monkeypatch.undo()
    resumed = train_cenet(cenet_options(tmp_path / "broken", 3), segmentation)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [c["loss"] for c in resumed["curves"]] == [c["loss"] for c in whole["curves"]]


def test_a_run_leaves_checkpoint_curves_and_plot(tmp_path: Path, segmentation: SegmentationData) -> None:
    result = train_cenet(cenet_options(tmp_path, 2), segmentation)
    assert len(result["curves"]) == 2
    assert set(result["dice"]["lungs"]) == {3, 6}
    assert (tmp_path / CURVES).stat().st_size > 10
    with Image.open(tmp_path / PLOT) as plot:
        assert plot.width > 300


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path, segmentation: SegmentationData) -> None:
    train_cenet(cenet_options(tmp_path, 1), segmentation)
    with pytest.raises(InputError, match="other options"):
        train_cenet(cenet_options(tmp_path, 2), segmentation)


def test_joint_training_goes_on_from_segmentation_and_can_be_loaded(
    tmp_path: Path, segmentation: SegmentationData, labelled: LabelledData
) -> None:
    first = train_cenet(cenet_options(tmp_path / "cenet", 1), segmentation)
    options = XceptionOptions(
        tmp_path, tmp_path / "xception", first["checkpoint"], epochs=2, batch=4, middle=1, max_steps=2
    )
    second = train_xception(options, labelled, segmentation)
    assert set(second["curves"][0]) >= {"classify", "contrast", "accuracy", "segmentation"}
    net, embedding, identity, epochs = load_trained(second["checkpoint"])
    assert (identity["seed"], epochs) == (0, 2)
    assert embedding.encoder is net.encoder
    before = weights(tmp_path / "cenet")
    after = weights(tmp_path / "xception")
    name = "cenet.encoder.dac.d1.weight"
    assert not torch.equal(before[name], after[name])


def test_a_frozen_cenet_stays_to_the_last_bit(
    tmp_path: Path, segmentation: SegmentationData, labelled: LabelledData
) -> None:
    first = train_cenet(cenet_options(tmp_path / "cenet", 1), segmentation)
    options = XceptionOptions(
        tmp_path, tmp_path / "x", first["checkpoint"], epochs=2, batch=4, middle=1, max_steps=2, freeze=True
    )
    second = train_xception(options, labelled, segmentation)
    assert "segmentation" not in second["curves"][0]
    before, after = weights(tmp_path / "cenet"), weights(tmp_path / "x")
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert load_trained(second["checkpoint"])[2]["freeze"] is True
    with pytest.raises(InputError, match="other options"):
        train_xception(replace(options, freeze=False), labelled, segmentation)


def test_freezing_without_a_cenet_is_refused(tmp_path: Path, labelled: LabelledData) -> None:
    with pytest.raises(UsageError, match="--freeze: needs a trained CE-Net"):
        train_xception(XceptionOptions(tmp_path, tmp_path, batch=4, freeze=True), labelled)


def test_a_pack_built_from_a_run_outlines_as_its_network_does(
    tmp_path: Path, segmentation: SegmentationData, labelled: LabelledData, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_cenet(cenet_options(tmp_path / "cenet", 1), segmentation)
    options = XceptionOptions(
        tmp_path, tmp_path / "xception", first["checkpoint"], epochs=1, batch=4, middle=1, max_steps=1
    )
    run = train_xception(options, labelled, segmentation)
    for name, data in (("covid_ct", labelled), ("sars", labelled), ("segmentation", segmentation)):
        monkeypatch.setattr(build, f"load_{name}", lambda _, data=data: data)  # the public data are not in the tests
    pack = build.build_pack(build.BuildOptions(tmp_path, tmp_path / "pack", run["checkpoint"], dim=8))
    trained, _, _, _ = load_trained(run["checkpoint"])
    build.as_shipped(trained)
    wanted = cenet_module.dice_by_volume(trained, segmentation)
    assert {n: {int(v): d for v, d in by.items()} for n, by in pack.manifest.about["dice_by_volume"].items()} == wanted
    assert pack.manifest.dice["lungs"] == pytest.approx(np.mean(list(wanted["lungs"].values())))
    found = Embedder(pack, "cpu").masks(segmentation.images[:4].astype(np.float32) / 255)
    with torch.inference_mode():
        logits = trained(standardise(torch.from_numpy(segmentation.images[:4]).float().div(255)[:, None]))
    np.testing.assert_array_equal(found, (logits > 0).numpy())
    assert "not findings" in (tmp_path / "pack" / CARD).read_text()


def test_joint_training_without_a_cenet_says_what_to_run(
    tmp_path: Path, segmentation: SegmentationData, labelled: LabelledData
) -> None:
    with pytest.raises(InputError, match="train cenet"):
        train_xception(XceptionOptions(tmp_path, tmp_path, tmp_path / "none.pt", batch=4), labelled, segmentation)


def test_one_class_alone_cannot_be_trained(
    tmp_path: Path, segmentation: SegmentationData, labelled: LabelledData
) -> None:
    one = labelled.part(labelled.labels == 1)
    with pytest.raises(InputError, match=r"of one class only, .*: two classes are needed"):
        train_xception(XceptionOptions(tmp_path, tmp_path, tmp_path / "x", batch=2), one, segmentation)


def test_augmentation_moves_masks_with_their_images() -> None:
    images = np.zeros((4, 224, 224), dtype=np.uint8)
    images[:, 60:160, 60:160] = 255
    masks = torch.from_numpy(images > 0).float()[:, None]
    moved, moved_masks = Augmenter(np.random.default_rng(5), Strength(1, 0, 0))(images, masks)
    assert moved_masks is not None
    assert ((moved > 0.5).float() - moved_masks).abs().mean() < 0.02
    assert (moved[:, 0] - torch.from_numpy(images).float() / 255).abs().mean() > 0.05


def test_augmentation_repeats_itself_with_its_seed() -> None:
    images = (np.random.default_rng(0).random((6, 224, 224)) * 255).astype(np.uint8)
    a, b = (Augmenter(np.random.default_rng(9), HEAVY)(images)[0] for _ in range(2))
    assert torch.equal(a, b)
    assert 0 <= float(a.min()) <= float(a.max()) <= 1


def test_a_perfect_segmentation_costs_next_to_nothing() -> None:
    masks = (torch.rand(2, 2, 32, 32) > 0.5).float()
    assert float(segmentation_loss((masks * 2 - 1) * 30, masks)) < 0.01
    assert float(segmentation_loss((1 - masks * 2) * 30, masks)) > 10


def test_contrast_prefers_classes_that_lie_together() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), dim=1)
    assert supervised_contrastive(apart, labels) < supervised_contrastive(apart[[0, 2, 1, 3]], labels)


def test_figures_of_a_perfect_and_a_useless_ranking() -> None:
    labels = np.array([0] * 60 + [1] * 60)
    x = np.stack([1 - labels, labels], 1).astype(np.float32)
    groups = np.array([f"p{i // 3}" for i in range(120)])
    perfect = figures.relevance(x, labels, x, labels)
    out = figures.with_interval(perfect, labels, groups)
    assert out["precision"]["10"] == {"mean": 1.0, "ci": [1.0, 1.0]}
    assert out["map"]["mean"] == 1.0
    noise = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)
    useless = figures.macro(figures.relevance(noise[:60], labels[::2], noise[60:], labels[::2]), labels[::2])
    assert useless[2] == pytest.approx(figures.chance(labels[::2], labels[::2]), abs=0.1)


def test_missing_data_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is missing"):
        load_covid_ct(tmp_path)


def shared() -> Path:
    import os

    root = Path(os.environ.get("DICOMNODE_SHARED", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (root / "covid-ct" / "labels.csv").is_file():
        pytest.skip(f"the shared data is not at {root} (set DICOMNODE_SHARED)")
    return root


def test_the_official_split_shares_no_patient() -> None:
    data = load_covid_ct(shared())
    assert (data.train.sum(), (~data.train).sum()) == (425, 118)
    assert not set(data.groups[data.train]) & set(data.groups[~data.train])


def test_held_out_volumes_are_whole() -> None:
    data = load_segmentation(shared())
    assert set(np.unique(data.volumes[data.held_out])) == set(HELD_OUT_VOLUMES)
    assert not set(data.volumes[~data.held_out]) & set(HELD_OUT_VOLUMES)


def test_no_held_out_volume_shows_a_patient_that_is_trained_on() -> None:
    """Slices of volume 10 and volume 11, one patient, are alike by .97 at 32x32 pixels; other pairs by .81 at most."""
    data = load_segmentation(shared())
    small = unit_rows(figures.raw_pixels(data.images))
    assert (small[data.held_out] @ small[~data.held_out].T).max() < 0.9

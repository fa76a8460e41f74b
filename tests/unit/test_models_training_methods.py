"""Early stopping, encoder weights, the U-Nets, the metric head, scans, and one way to every embedding."""

from __future__ import annotations

import csv
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from training_samples import command, labelled, picture, slices, write_csv, write_pictures

from dicomnode.errors import InputError, PackError, UsageError
from dicomnode.models.manifest import find_pack, read_manifest
from dicomnode.models.networks import CENet, CENetConfig, ResNet34Encoder, XceptionConfig
from dicomnode.models.pack import synthetic_images
from dicomnode.models.training import head as head_module
from dicomnode.models.training import unet as unet_module
from dicomnode.models.training.build import terms_of
from dicomnode.models.training.card import render_card
from dicomnode.models.training.cenet import CenetOptions, build_cenet, infected_area, train_cenet
from dicomnode.models.training.head import HeadOptions, train_head
from dicomnode.models.training.losses import manifold_embedding, segmentation_loss
from dicomnode.models.training.methods import METHODS, embedding_of
from dicomnode.models.training.run import BEST, CHECKPOINT, TABLE, Run, checkpoint_in, load_checkpoint
from dicomnode.models.training.sources import sample_scans
from dicomnode.models.training.tables import ScanData
from dicomnode.models.training.unet import UnetOptions, embedding_loss, pixel_kinds, train_unet
from dicomnode.models.training.weights import load_encoder_weights
from dicomnode.models.training.xception import XceptionOptions, train_xception


class Killed(Exception):
    pass


def dies(real: Callable[..., Any], at: int) -> Callable[..., Any]:
    """``real``, but for its call number ``at``."""
    done = 0

    def call(*args: Any, **named: Any) -> Any:
        nonlocal done
        done += 1
        if done == at:
            raise Killed
        return real(*args, **named)

    return call


def weights(path: Path) -> dict[str, torch.Tensor]:
    modules = load_checkpoint(path)["modules"]
    return {f"{m}.{k}": v for m, state in modules.items() for k, v in state.items()}


def equal(a: Path, b: Path) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def unit_images(n: int = 3) -> np.ndarray:
    return synthetic_images(n).astype(np.float32) / 255


def small_cenet(out: Path, **more: Any) -> CenetOptions:
    options = CenetOptions(out, out, "resnet34", 0.25, imagenet=False, epochs=2, batch=4, max_steps=1, seed=3)
    return replace(options, **more)


class TestEarlyStopping:
    def run(self, folder: Path, patience: int) -> Run:
        module = torch.nn.Linear(1, 1)
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
        return Run(folder, {"m": module}, optimiser, schedule, {"a": 1}, patience)

    def test_the_best_epoch_is_kept_and_a_stalled_run_ends(self, tmp_path: Path) -> None:
        run = self.run(tmp_path, 2)
        module, losses, seen = run.modules["m"], [3.0, 1.0, 2.0, 1.5, 0.5], []
        for epoch in run.epochs(5, 1):
            with torch.no_grad():
                module.weight.fill_(float(epoch))
            seen.append(epoch)
            run.end_epoch({"validation": losses[epoch]})
        assert seen == [0, 1, 2, 3]
        assert run.best_epoch() == 2
        assert run.result() == tmp_path / BEST
        assert module.weight.item() == 1.0
        assert checkpoint_in(tmp_path) == tmp_path / BEST

    def test_a_stopped_run_stays_stopped_when_called_again(self, tmp_path: Path) -> None:
        for _ in range(2):
            run, seen = self.run(tmp_path, 1), []
            for epoch in run.epochs(9, 1):
                seen.append(epoch)
                run.end_epoch({"validation": float(epoch)})
        assert seen == []
        assert len(run.curves) == 2

    def test_without_validation_the_last_epoch_counts(self, tmp_path: Path) -> None:
        run = self.run(tmp_path, 1)
        for _ in run.epochs(3, 1):
            run.end_epoch({"loss": 1.0})
        assert run.result() == checkpoint_in(tmp_path) == tmp_path / CHECKPOINT
        assert not (tmp_path / BEST).exists()
        with (tmp_path / TABLE).open() as f:
            assert [row["epoch"] for row in csv.DictReader(f)] == ["1", "2", "3"]

    def test_validation_volumes_are_not_trained_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from dicomnode.models.training import cenet as cenet_module

        data, seen, validated = slices(), set(), set()
        step, validate = cenet_module.segmentation_step, cenet_module.validation_loss

        def watched(net: CENet, d: Any, rows: Any, augmenter: Any) -> torch.Tensor:
            seen.update(d.volumes[rows].tolist())
            return step(net, d, rows, augmenter)

        def watched_validation(net: CENet, d: Any, rows: Any) -> float:
            validated.update(d.volumes[rows].tolist())
            return validate(net, d, rows)

        monkeypatch.setattr(cenet_module, "segmentation_step", watched)
        monkeypatch.setattr(cenet_module, "validation_loss", watched_validation)
        result = train_cenet(small_cenet(tmp_path, validate=0.2, max_steps=None), data)
        assert result["checkpoint"] == tmp_path / BEST
        assert result["best_epoch"] in (1, 2)
        assert all("validation" in c for c in result["curves"])
        assert seen
        assert validated
        assert not (seen | validated) & {3, 6}
        assert not seen & validated

    def test_a_killed_run_with_validation_ends_where_an_unbroken_one_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dicomnode.models.training import xception as module

        first = train_cenet(small_cenet(tmp_path / "cenet", epochs=1), slices())

        def go(folder: Path) -> Any:
            options = XceptionOptions(
                tmp_path, folder, first["checkpoint"], epochs=3, batch=4, middle=1, max_steps=1, validate=0.3
            )
            return train_xception(options, labelled(), slices())

        whole = go(tmp_path / "whole")
        monkeypatch.setattr(module, "supervised_contrastive", dies(module.supervised_contrastive, 3))
        with pytest.raises(Killed):
            go(tmp_path / "broken")
        monkeypatch.undo()
        resumed = go(tmp_path / "broken")
        assert equal(tmp_path / "whole" / CHECKPOINT, tmp_path / "broken" / CHECKPOINT)
        assert equal(whole["checkpoint"], resumed["checkpoint"])
        assert whole["best_epoch"] == resumed["best_epoch"]

    @pytest.mark.parametrize("share", [-0.1, 0.9])
    def test_an_odd_share_is_refused(self, tmp_path: Path, share: float) -> None:
        with pytest.raises(UsageError, match="--validate"):
            train_cenet(small_cenet(tmp_path / "run", validate=share), slices())
        assert not (tmp_path / "run").exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_a_device_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PackError, match="no CUDA device"):
            train_cenet(small_cenet(tmp_path / "run", device="cuda"), slices())
        assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_in_half_precision(tmp_path: Path) -> None:
    result = train_cenet(small_cenet(tmp_path, device="cuda", epochs=2), slices())
    assert all(np.isfinite(c["loss"]) for c in result["curves"])
    assert "scaler" in load_checkpoint(tmp_path / CHECKPOINT)


class TestEncoderWeights:
    def net(self) -> CENet:
        return CENet(CENetConfig("resnet34", 0.25, 1))

    def test_a_state_dict_of_ours_is_taken_from_either_format(self, tmp_path: Path) -> None:
        state = ResNet34Encoder(1, 0.25).state_dict()
        save_file(state, tmp_path / "a.safetensors")
        torch.save(state, tmp_path / "a.pth")
        for name in ("a.safetensors", "a.pth"):
            net = self.net()
            load_encoder_weights(net, tmp_path / name)
            assert torch.equal(net.encoder.backbone.state_dict()["stem.0.weight"], state["stem.0.weight"])

    def test_a_checkpoint_of_train_cenet_is_taken(self, tmp_path: Path) -> None:
        result = train_cenet(small_cenet(tmp_path, epochs=1), slices())
        net = self.net()
        load_encoder_weights(net, result["checkpoint"])
        ours = net.encoder.backbone.state_dict()
        theirs = weights(result["checkpoint"])
        assert all(torch.equal(v, theirs[f"cenet.encoder.backbone.{k}"]) for k, v in ours.items())

    def test_names_of_torchvision_are_understood(self, tmp_path: Path) -> None:
        state = torchvision_resnet34()
        torch.save(state, tmp_path / "r.pth")
        net = CENet(CENetConfig("resnet34", 1.0, 1))
        load_encoder_weights(net, tmp_path / "r.pth")
        ours = net.encoder.backbone
        torch.testing.assert_close(ours.stem[0].weight, state["conv1.weight"].sum(1, keepdim=True))
        assert torch.equal(ours.stages[3][2].body[3].weight, state["layer4.2.conv2.weight"])
        assert torch.equal(ours.stages[1][0].shortcut[1].running_var, state["layer2.0.downsample.1.running_var"])

    def test_values_that_are_not_numbers_are_refused(self, tmp_path: Path) -> None:
        state = ResNet34Encoder(1, 0.25).state_dict()
        state["stages.0.0.body.0.weight"][0, 0, 0, 0] = float("nan")
        torch.save(state, tmp_path / "nan.pth")
        before = self.net()
        kept = {k: v.clone() for k, v in before.state_dict().items()}
        with pytest.raises(InputError, match=r"not finite, in 'stages\.0\.0\.body\.0\.weight'"):
            load_encoder_weights(before, tmp_path / "nan.pth")
        assert all(torch.equal(v, kept[k]) for k, v in before.state_dict().items())

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (lambda s: s.pop("stem.0.weight"), "it lacks 'stem.0.weight'"),
            (lambda s: s.update({"head.weight": torch.zeros(1), "head.bias": torch.zeros(1)}), "and 1 more"),
            (lambda s: s.update({"stem.0.weight": torch.zeros(2, 1, 7, 7)}), "of another shape is 'stem.0.weight'"),
        ],
    )
    def test_names_that_do_not_fit_are_one_line(
        self, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], line: str
    ) -> None:
        state = dict(ResNet34Encoder(1, 0.25).state_dict())
        change(state)
        save_file(state, tmp_path / "x.safetensors")
        with pytest.raises(InputError) as e:
            load_encoder_weights(self.net(), tmp_path / "x.safetensors")
        assert line in str(e.value)
        assert "\n" not in str(e.value)

    def test_a_pickle_that_would_run_code_is_refused(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "ran"),)

        (tmp_path / "evil.pth").write_bytes(pickle.dumps({"stem": Evil()}, protocol=2))
        with pytest.raises(InputError, match="not a readable checkpoint"):
            load_encoder_weights(self.net(), tmp_path / "evil.pth")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("content", [b"", b"nonsense"])
    @pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
    def test_an_unreadable_file_is_one_line_and_nothing_is_written(
        self, tmp_path: Path, name: str, content: bytes
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="is not a readable"):
            train_cenet(small_cenet(tmp_path / "run", encoder_weights=tmp_path / name), slices())
        assert not (tmp_path / "run").exists()

    def test_a_missing_file_and_other_weights_of_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is missing"):
            build_cenet("resnet34", 0.25, imagenet=False, seed=0, encoder_weights=tmp_path / "none.pth")
        for name in ("a", "b"):
            torch.save(ResNet34Encoder(1, 0.25).state_dict(), tmp_path / f"{name}.pth")
        train_cenet(small_cenet(tmp_path / "run", epochs=1, encoder_weights=tmp_path / "a.pth"), slices())
        with pytest.raises(InputError, match="other options"):
            train_cenet(small_cenet(tmp_path / "run", epochs=1, encoder_weights=tmp_path / "b.pth"), slices())

    def test_a_width_that_does_not_exist_is_one_line(self) -> None:
        with pytest.raises(UsageError, match="lite2 has one width"):
            build_cenet("lite2", 0.5, imagenet=False, seed=0)


def torchvision_resnet34() -> dict[str, torch.Tensor]:
    """Names and shapes of torchvision's ResNet34, with random values."""
    out: dict[str, torch.Tensor] = {}

    def conv(name: str, o: int, i: int, k: int) -> None:
        out[f"{name}.weight"] = torch.randn(o, i, k, k)

    def norm(name: str, n: int) -> None:
        out.update({f"{name}.{s}": torch.rand(n) + 0.5 for s in ("weight", "bias", "running_mean", "running_var")})
        out[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    before = 64
    for stage, (width, n) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), start=1):
        for block in range(n):
            at = f"layer{stage}.{block}"
            conv(f"{at}.conv1", width, before, 3)
            norm(f"{at}.bn1", width)
            conv(f"{at}.conv2", width, width, 3)
            norm(f"{at}.bn2", width)
            if before != width:
                conv(f"{at}.downsample.0", width, before, 1)
                norm(f"{at}.downsample.1", width)
            before = width
    out["fc.weight"], out["fc.bias"] = torch.randn(1000, 512), torch.randn(1000)
    return out


class TestLosses:
    def test_unknown_masks_cost_nothing(self) -> None:
        g = torch.Generator().manual_seed(0)
        logits = torch.randn(3, 2, 8, 8, generator=g)
        masks = (torch.rand(3, 2, 8, 8, generator=g) > 0.5).float()
        known = torch.tensor([[True, True], [True, False], [False, False]])
        first = segmentation_loss(logits, masks, known)
        masks[1, 1] = 1 - masks[1, 1]
        masks[2] = 1 - masks[2]
        assert segmentation_loss(logits, masks, known) == first
        masks[0, 0] = 1 - masks[0, 0]
        assert segmentation_loss(logits, masks, known) != first

    def test_all_known_is_the_plain_loss(self) -> None:
        logits, masks = torch.randn(2, 2, 8, 8), (torch.rand(2, 2, 8, 8) > 0.5).float()
        assert segmentation_loss(logits, masks, torch.ones(2, 2, dtype=torch.bool)) == segmentation_loss(logits, masks)

    def test_the_manifold_draws_one_kind_together_and_pushes_others_to_the_margin(self) -> None:
        labels = torch.tensor([0, 0, 1, 1])
        apart = torch.tensor([[1.0, 0.0], [1, 0], [0, 1], [0, 1]])  # a right angle is the margin of a half
        assert float(manifold_embedding(apart, labels)) == pytest.approx(0, abs=1e-3)
        together = torch.ones(4, 2)
        assert float(manifold_embedding(together, labels)) == pytest.approx(0.5 * 8 / 12, abs=1e-3)

    def test_the_manifold_has_a_slope_where_samples_coincide(self) -> None:
        x = torch.ones(4, 3, requires_grad=True)
        manifold_embedding(x, torch.tensor([0, 0, 1, 1])).backward()
        assert bool(torch.isfinite(x.grad).all())

    def test_pixels_without_a_mask_are_what_the_network_is_sure_of(self) -> None:
        logits = torch.zeros(2, 2, 1, 3)
        logits[:, 0, 0] = torch.tensor([-5.0, 0.0, 5.0])
        masks = torch.zeros(2, 2, 1, 3)
        masks[:, 0, 0, 0] = 1
        kinds = pixel_kinds(logits, masks, torch.tensor([[True, True], [False, False]]))
        assert kinds[:, 0].tolist() == [[1, 0, 0], [0, -1, 1]]

    def test_at_most_a_hundred_pixels_eighty_of_lung(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def watched(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seen.append((tuple(features.shape), int(labels.sum())))
            return features.sum()

        monkeypatch.setattr(unet_module, "manifold_embedding", watched)
        kinds = torch.zeros(2, 32, 32, dtype=torch.int8)
        kinds[0, :16] = 1
        embedding_loss(torch.randn(2, 8, 32, 32), kinds, np.random.default_rng(0))  # the second has one kind only
        assert seen == [((100, 8), 80)]


class TestUnets:
    def options(self, out: Path, method: Any, **more: Any) -> UnetOptions:
        return replace(UnetOptions(out, out, method, base=8, epochs=1, batch=4, max_steps=1, seed=5), **more)

    @pytest.mark.parametrize(("method", "width"), [("unet-me", 8 * 49), ("unet-ml", 8 * 16)])
    def test_two_stages_resumed_and_embedded(
        self, tmp_path: Path, method: str, width: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def go(folder: Path) -> Any:
            return train_unet(self.options(folder, method, epochs=2), slices(), labelled())

        whole = go(tmp_path / "whole")
        stage = "_segment" if method == "unet-me" else "_classify"
        monkeypatch.setattr(unet_module, stage, dies(getattr(unet_module, stage), 4 if method == "unet-me" else 2))
        with pytest.raises(Killed):
            go(tmp_path / "broken")
        monkeypatch.undo()
        assert len(load_checkpoint(tmp_path / "broken" / CHECKPOINT)["curves"]) == 3
        go(tmp_path / "broken")
        assert equal(tmp_path / "whole" / CHECKPOINT, tmp_path / "broken" / CHECKPOINT)
        assert len(whole["curves"]) == 4
        assert ("embedding" if method == "unet-me" else "accuracy") in whole["curves"][-1]
        found = embedding_of(tmp_path / "whole")(unit_images())
        assert (found.shape, found.dtype) == ((3, width), np.float32)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-4)

    def test_slices_without_masks_take_part_in_the_second_stage_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = slices()
        drawn = np.ones((10, 2), dtype=bool)
        drawn[4:6] = False  # volume 2
        data = replace(data, drawn=drawn)
        sizes = []
        real = unet_module._segment

        def watched(run: Any, net: Any, parts: Any, *rest: Any, embed: bool) -> Any:
            sizes.append((embed, len(parts.train), len(parts.unlabelled)))
            return real(run, net, parts, *rest, embed=embed)

        monkeypatch.setattr(unet_module, "_segment", watched)
        train_unet(self.options(tmp_path, "unet-me", batch=2, max_steps=3), data)
        assert sizes == [(False, 6, 2), (True, 6, 2)]

    @pytest.mark.parametrize("method", ["unet-me", "unet-ml"])
    def test_the_second_stage_is_what_validates(self, tmp_path: Path, method: str) -> None:
        options = self.options(tmp_path, method, validate=0.3, epochs=2, batch=2)
        result = train_unet(options, slices(), labelled())
        assert ["validation" in c for c in result["curves"]] == [False, False, True, True]
        assert result["best_epoch"] >= 1
        assert result["checkpoint"].name == BEST

    def test_labels_alone_do_not_make_a_unet_ml(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--masks"):
            train_unet(UnetOptions(tmp_path / "LABELS.csv", tmp_path / "run", "unet-ml"))


class TestHead:
    def options(self, out: Path, **more: Any) -> HeadOptions:
        return replace(HeadOptions(out, out, views=1, epochs=3, batch=8, seed=2), **more)

    def test_it_learns_is_resumed_and_embeds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = train_head(self.options(tmp_path / "whole"), labelled())
        monkeypatch.setattr(head_module, "_loss", dies(head_module._loss, 8))
        with pytest.raises(Killed):
            train_head(self.options(tmp_path / "broken"), labelled())
        monkeypatch.undo()
        train_head(self.options(tmp_path / "broken"), labelled())
        assert equal(tmp_path / "whole" / CHECKPOINT, tmp_path / "broken" / CHECKPOINT)
        assert whole["curves"][-1]["loss"] < whole["curves"][0]["loss"]
        found = embedding_of(tmp_path / "whole")(unit_images())
        assert found.shape == (3, 128)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-4)

    def test_three_labels_and_validation(self, tmp_path: Path) -> None:
        data = labelled(18)
        data = replace(data, labels=np.arange(18) % 3, classes=("a", "b", "c"))
        result = train_head(self.options(tmp_path, validate=0.3), data)
        assert load_checkpoint(result["checkpoint"])["identity"]["classes"] == ["a", "b", "c"]
        assert result["best_epoch"] >= 1

    def test_a_pack_that_is_not_the_heads_is_refused(self, tmp_path: Path) -> None:
        train_head(self.options(tmp_path, epochs=1), labelled())
        state = load_checkpoint(tmp_path / CHECKPOINT)
        state["identity"]["model_id"] = "sha256:" + "0" * 64
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(InputError, match="another pack"):
            embedding_of(tmp_path / "other.pt", pack=find_pack("cenet-xception"))

    def test_an_unknown_pack_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(PackError, match="no model pack is called 'none'"):
            train_head(self.options(tmp_path / "run", pack="none"), labelled())
        assert not (tmp_path / "run").exists()

    def test_the_command_on_a_table(self, tmp_path: Path) -> None:
        names = write_pictures(tmp_path, 8)
        path = write_csv(tmp_path / "L.csv", ("path", "label"), [(n, "xy"[i % 2]) for i, n in enumerate(names)])
        run = tmp_path / "run"
        options = ["--out", run, "--epochs", 1, "--views", 0, "--device", "cpu", "--json"]
        done = command("train", "head", "--data", path, *options)
        assert done.returncode == 0
        assert json.loads(done.stdout)["best_epoch"] == 1
        assert "class x: 3 images of 3 patients (train), 1 images of 1 patients (validation)" in done.stderr


class TestScans:
    def test_the_most_infected_slices_of_each_scan_are_taken(self) -> None:
        data = labelled(8)
        sizes = np.array([5.0, 1, 9, 9, 0, 7, 0, 7])
        scans = ScanData(data, np.array([0, 0, 0, 0, 1, 1, 2, 2]))
        found = sample_scans(scans, lambda _images: sizes, 2)
        assert [int(np.flatnonzero((data.images == i).all((1, 2)))[0]) for i in found.images] == [2, 3, 4, 5, 6, 7]
        one = sample_scans(scans, lambda _images: sizes, 1)
        assert [int(np.flatnonzero((data.images == i).all((1, 2)))[0]) for i in one.images] == [2, 5, 7]
        with pytest.raises(InputError, match="--per-scan"):
            sample_scans(scans, lambda _images: sizes, 0)

    def test_the_area_is_that_of_the_infection_output(self) -> None:
        net = CENet(CENetConfig("resnet34", 0.25, 1))
        last = net.head[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.tensor([-1.0, 1.0]))
        images = np.stack([picture(1, (224, 224)), picture(2, (224, 224))])
        assert infected_area(net, images).tolist() == [224 * 224, 224 * 224]
        with torch.no_grad():
            last.bias.copy_(torch.tensor([1.0, -1.0]))
        assert infected_area(net, images).tolist() == [0, 0]

    def test_training_on_scans(self, tmp_path: Path) -> None:
        first = train_cenet(small_cenet(tmp_path / "cenet", epochs=1), slices())
        names = write_pictures(tmp_path, 12)
        rows = [(n, i // 3, "xy"[i // 3 % 2]) for i, n in enumerate(names)]
        table = write_csv(tmp_path / "scans.csv", ("path", "scan", "label"), rows)
        options = XceptionOptions(
            table, tmp_path / "run", first["checkpoint"], epochs=1, batch=4, middle=1, max_steps=1, scans=table
        )
        result = train_xception(replace(options, per_scan=2))
        identity = load_checkpoint(result["checkpoint"])["identity"]
        assert (identity["per_scan"], identity["classes"]) == (2, ["x", "y"])
        assert result["dice"] == {}  # nobody outlined a slice
        with pytest.raises(InputError, match="--cenet"):
            train_xception(replace(options, cenet=None))


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``train xception`` of two steps, in the literal form."""
    folder = tmp_path_factory.mktemp("joint")
    first = train_cenet(small_cenet(folder / "cenet", epochs=1), slices())
    options = XceptionOptions(
        folder, folder / "run", first["checkpoint"], epochs=1, batch=4, middle=1, max_steps=2, form="literal"
    )
    train_xception(options, labelled(), slices())
    return folder


class TestMethods:
    def test_every_row_of_a_joint_run(self, joint: Path) -> None:
        c = (128 + 4) * 49  # ResNet34 of a quarter of the width
        images = unit_images(6)
        full = embedding_of(joint / "run")(images)
        rmp = embedding_of(joint / "run", "cenet")(images)
        act = embedding_of(joint / "run", "xception")(images)
        assert (full.shape, rmp.shape, act.shape) == ((6, 2 * c), (6, c), (6, c))
        assert full == pytest.approx(np.concatenate([rmp, act], 1) / np.sqrt(2), abs=1e-5)
        compact = embedding_of(joint / "run", "compact", training=images, dim=4)(images)
        assert compact.shape == (6, 4)
        for x in (full, rmp, act, compact):
            assert np.linalg.norm(x, axis=1) == pytest.approx(1, abs=1e-4)
            assert x.dtype == np.float32

    def test_a_cenet_alone_and_a_row_that_does_not_depend_on_its_batch(self, joint: Path) -> None:
        embed = embedding_of(joint / "cenet")
        images = unit_images(3)
        assert embed(images) == pytest.approx(np.concatenate([embed(i[None]) for i in images]), abs=1e-5)
        assert embed(images[:0]).shape == (0, (128 + 4) * 49)
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        cells = embed(images).reshape(3, -1, 7, 7)
        assert embed(mirrored).reshape(3, -1, 7, 7) == pytest.approx(cells[..., ::-1], abs=1e-4)

    def test_references_need_no_checkpoint(self) -> None:
        images = unit_images(2)
        assert embedding_of(None, "efficientnet-lite0")(images).shape == (2, 1280)
        random = embedding_of(None, "random", seed=1)(images)
        assert random.shape == (2, 324 * 98)
        assert np.isfinite(random).all()
        assert np.array_equal(random, embedding_of(None, "random", seed=1)(images))
        assert not np.allclose(random, embedding_of(None, "random", seed=2)(images))

    def test_what_cannot_be_had_is_one_line(self, joint: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="gives cenet, not xception"):
            embedding_of(joint / "cenet", "xception")
        with pytest.raises(InputError, match="is missing"):
            embedding_of(tmp_path / "nothing")
        with pytest.raises(UsageError, match="unknown method"):
            embedding_of(joint / "cenet", "resnet")
        with pytest.raises(UsageError, match="a checkpoint is needed"):
            embedding_of(None, "cenet")
        with pytest.raises(UsageError, match="training images are needed"):
            embedding_of(joint / "run", "compact")
        with pytest.raises(UsageError, match="more training images than 2"):
            embedding_of(joint / "run", "compact", training=unit_images(2))
        torch.save({"modules": {}}, tmp_path / "x.pt")
        with pytest.raises(InputError, match="is not a checkpoint of"):
            embedding_of(tmp_path / "x.pt")
        with pytest.raises(InputError, match=r"must be \[n, 224, 224\]"):
            embedding_of(joint / "cenet")(np.zeros((1, 64, 64), dtype=np.float32))
        with pytest.raises(InputError, match="not finite"):
            embedding_of(joint / "cenet")(np.full((1, 224, 224), np.nan, dtype=np.float32))

    def test_every_method_is_in_the_table_of_its_module(self) -> None:
        from dicomnode.models.training import methods

        assert methods.__doc__ is not None
        for method in METHODS:
            assert f"\n{method} " in methods.__doc__


class TestCard:
    def test_terms_name_what_the_encoder_began_from(self) -> None:
        for encoder, name in (("lite0", "EfficientNet-Lite0"), ("lite2", "EfficientNet-Lite2")):
            data, licence = terms_of(encoder)
            assert name in data[-1]["name"]
            assert name in licence
        assert not any("ImageNet" in d["name"] for d in terms_of("resnet34")[0])
        data, licence = terms_of("resnet34", "ab12")
        assert "ab12" in data[-1]["name"]
        assert "terms of their own" in licence

    def test_the_card_of_the_shipped_pack_comes_out_with_its_figures(self) -> None:
        manifest = read_manifest(find_pack("cenet-xception"))
        card = render_card(manifest.name, manifest.status, manifest.about, manifest.identity["architecture"])
        assert "in its literal form" in card
        assert "joined (31,764 values)" in card
        assert "and the lesion profile" in card
        assert "the last epoch is shipped" in card
        about = {**manifest.about, "training": {**manifest.about["training"], "validate": 0.2}}
        x = XceptionConfig(516).as_json()
        other = render_card("x", "research", about, {"cenet": CENetConfig("resnet34").as_json(), "xception": x})
        assert "in its native form" in other
        assert "the epoch with the lowest loss on 20% of the patients" in other
        assert "weighted to a third" not in other
        assert f"joined ({2 * 49 * 516:,} values)" in other

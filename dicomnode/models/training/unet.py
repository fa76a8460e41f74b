"""``dicomnode train unet-me`` and ``unet-ml``: the rivals of CE-Net, each in two stages of five epochs.

**U-Net-ME**: segmentation of lungs and infection, then segmentation with a manifold-embedding loss on features of the
last layer at sampled pixels: up to 100 of each image, 80 of lung and 20 of the rest, pixels of one kind drawn together
and others apart, all pairs within an image. In the second stage slices without a mask take part: their pixels
are sampled by the network's own prediction, where it is sure (under .1 or over .9), after what the first stage learnt.

**U-Net-ML**: segmentation, then classification of the diagnosis by a linear layer on the pooled bottleneck.

Own code from Baur et al., arXiv 1703.06000, and the description of the published comparison.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dicomnode.errors import UsageError
from dicomnode.models.embedder import choose_device
from dicomnode.models.networks import UNet, UNetConfig
from dicomnode.models.tensors import standardise
from dicomnode.models.training.augment import HEAVY, SEGMENTATION, Augmenter, to_unit
from dicomnode.models.training.cenet import CLASSES, check_share, validation_identity
from dicomnode.models.training.data import LabelledData, SegmentationData
from dicomnode.models.training.losses import manifold_embedding, segmentation_loss
from dicomnode.models.training.run import PATIENCE, VALIDATION, Run, device_of, epoch_seed, mixed
from dicomnode.models.training.sources import is_table, labelled_of, segmentation_of
from dicomnode.models.training.splits import too_few, volumes_apart
from dicomnode.models.training.xception import split_training

Method = Literal["unet-me", "unet-ml"]
PIXELS = 100  # sampled of an image, at most
LUNG_SHARE = 0.8  # of them
SURE = 0.1  # predictions under this, or over one minus this, stand for a mask that nobody drew
LEAST = 5  # pixels of each kind; with fewer an image says nothing about the manifold


@dataclass(frozen=True, slots=True)
class UnetOptions:
    """Options of ``dicomnode train unet-me`` and ``unet-ml``; five and five epochs as published.

    Attributes
    ----------
    data : folder of data sets; or, for unet-me, a table of slices, for unet-ml, a LABELS.csv.
    out : folder of the run.
    method : "unet-me" or "unet-ml".
    masks : folder or table of outlined slices, where ``data`` is a LABELS.csv.
    base : channels of the first level. Published: 64; 16 is what a processor trains in reasonable time.
    epochs : of each stage.
    embedding : weight of the manifold-embedding loss. Published: .1 to 1.
    validate : share kept apart (whole volumes in the segmentation, whole patients in the diagnosis) whose loss picks
        the epoch of the second stage; 0 keeps the last.
    patience : epochs of the second stage without a lower validation loss after which to stop.
    device : "auto", "cpu" or "cuda".
    max_steps : steps an epoch at most; None for all (tests set it).
    """

    data: Path
    out: Path
    method: Method = "unet-me"
    masks: Path | None = None
    base: int = 16
    epochs: int = 5
    batch: int = 16
    lr: float = 2e-3
    second_lr: float = 5e-4
    weight_decay: float = 1e-2
    embedding: float = 0.5
    seed: int = 0
    validate: float = 0.0
    patience: int = PATIENCE
    device: str = "cpu"
    max_steps: int | None = None

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same; folders and device do not."""
        left_out = ("data", "out", "masks", "device", "validate", "patience")
        plain = {k: v for k, v in asdict(self).items() if k not in left_out}
        return {**plain, **validation_identity(self.validate, self.patience)}


@dataclass
class _Parts:
    """Rows of the outlined slices that train and validate, the labelled images that do, and both's fingerprints."""

    slices: SegmentationData
    train: npt.NDArray[np.int64]
    unlabelled: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    labelled: LabelledData | None
    held: LabelledData | None
    sources: dict[str, str]


def train_unet(
    options: UnetOptions, slices: SegmentationData | None = None, labelled: LabelledData | None = None
) -> dict[str, Any]:
    """Train both stages, or go on from the last checkpoint.

    Parameters
    ----------
    slices, labelled : given by tests; else read from ``options``.

    Returns
    -------
    dict
        ``checkpoint`` (path), ``curves``; with validation also ``best_epoch`` (from 1, of both stages together).

    Raises
    ------
    InputError
        The data cannot be used; nothing was written then.
    """
    check_share(options.validate)
    device = choose_device(options.device)
    parts = _parts(options, slices, labelled)
    labels = 0 if parts.labelled is None else len(parts.labelled.classes)
    torch.manual_seed(options.seed)
    net = UNet(UNetConfig(options.base, len(CLASSES), labels)).to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch annotates it for tensors only
    first = _limited(len(parts.train) // options.batch, options.max_steps)
    second = _limited(_size_of_second(parts) // options.batch, options.max_steps)
    optimiser = torch.optim.AdamW(net.parameters(), options.lr, weight_decay=options.weight_decay)
    ratio, border = options.second_lr / options.lr, options.epochs * first
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0 if step < border else ratio)
    identity = {**options.identity(), "unet": net.config.as_json()}
    if parts.labelled is not None:
        identity["classes"] = list(parts.labelled.classes)
    patience = options.patience if options.validate else 0
    run = Run(options.out, {"unet": net}, optimiser, schedule, identity, patience, sources=parts.sources)
    for epoch in run.epochs(2 * options.epochs, max(first, second)):
        rng = epoch_seed(options.seed, epoch)
        if epoch < options.epochs:
            figures = _segment(run, net, parts, rng, options, first, embed=False)
        elif parts.labelled is None:
            figures = _segment(run, net, parts, rng, options, second, embed=True)
        else:
            figures = _classify(run, net, parts.labelled, rng, options, second)
        if options.validate and epoch >= options.epochs:
            figures[VALIDATION] = _validate(net, parts, options)
        run.end_epoch(figures)
    best = {"best_epoch": run.best_epoch()} if options.validate else {}
    return {"checkpoint": run.result(), "curves": run.curves, **best}


def _limited(steps: int, most: int | None) -> int:
    return min(steps, most) if most else steps


def _size_of_second(parts: _Parts) -> int:
    """Images of an epoch of the second stage."""
    return len(parts.train) + len(parts.unlabelled) if parts.labelled is None else len(parts.labelled.labels)


def _parts(options: UnetOptions, slices: SegmentationData | None, labelled: LabelledData | None) -> _Parts:
    if slices is None:
        slices = segmentation_of(_where_masks_are(options))
    held, sources = None, {"other outlined slices": slices.fingerprint}
    if options.method == "unet-ml":
        labelled = labelled or labelled_of(options.data)
        sources["other labelled images"] = labelled.fingerprint
        labelled, held = split_training(labelled, options.validate, options.seed, options.batch, str(options.data))
    else:
        labelled = None
    usable, drawn = ~slices.held_out, slices.known.all(1)
    place, share = str(options.masks or options.data), options.validate
    apart = np.isin(slices.volumes, volumes_apart(slices, usable & drawn, share, options.seed, place))
    train, validation = np.flatnonzero(usable & drawn & ~apart), np.flatnonzero(usable & drawn & apart)
    if len(train) < options.batch:
        raise too_few(len(train), options.batch, "outlined slices", place, share, len(validation))
    unlabelled = np.flatnonzero(usable & ~drawn & ~apart)
    return _Parts(slices, train, unlabelled, validation, labelled, held, sources)


def _where_masks_are(options: UnetOptions) -> Path:
    if options.masks is not None:
        return options.masks
    if options.method == "unet-ml" and is_table(options.data):
        raise UsageError(
            "the first stage needs outlined slices", place="--masks", advice="name a folder of data sets or a table"
        )
    return options.data


def _ready(images: Tensor, device: str) -> Tensor:
    """Standardised, in the layout that convolutions are a quarter faster with on a processor."""
    return standardise(images.to(device)).contiguous(memory_format=torch.channels_last)


def _forward(net: UNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and last features, float32, of images [n, 1, H, W] in 0..1."""
    device = device_of(net)
    with mixed(device):
        logits, features, _ = net(_ready(images, device))
    return logits.float(), features.float()


def _segment(
    run: Run, net: UNet, parts: _Parts, rng: np.random.Generator, options: UnetOptions, steps: int, *, embed: bool
) -> dict[str, float]:
    """One epoch of segmentation, in the second stage with the manifold-embedding loss and unlabelled slices."""
    augmenter, data = Augmenter(rng, SEGMENTATION), parts.slices
    order = rng.permutation(np.concatenate([parts.train, parts.unlabelled]) if embed else parts.train)
    sums = {"loss": 0.0, **({"embedding": 0.0} if embed else {})}
    net.train()
    for step in range(steps):
        rows = order[step * options.batch : (step + 1) * options.batch]
        images, moved = augmenter(data.images[rows], torch.from_numpy(data.masks[rows]).float())
        assert moved is not None
        masks = moved.to(run.device)
        known = torch.from_numpy(data.known[rows]).to(run.device)
        logits, features = _forward(net, images)
        loss = segmentation_loss(logits, masks, known)
        if embed:
            part = embedding_loss(features, pixel_kinds(logits, masks, known), rng)
            loss = loss + options.embedding * part
            sums["embedding"] += float(part.item()) / steps
        sums["loss"] += run.step(loss) / steps
    return sums


def pixel_kinds(logits: Tensor, masks: Tensor, known: Tensor) -> Tensor:
    """What each pixel is: 1 lung, 0 the rest, -1 unsure; int8 [n, H, W].

    Parameters
    ----------
    logits, masks : [n, 2, H, W], lungs first.
    known : bool [n, 2]; where the lung mask was not drawn, the prediction decides, where it is sure.
    """
    drawn = masks[:, 0].round().to(torch.int8)
    p = torch.sigmoid(logits[:, 0].detach())
    guessed = torch.full_like(drawn, -1)
    guessed[p < SURE] = 0
    guessed[p > 1 - SURE] = 1
    return torch.where(known[:, :1, None], drawn, guessed)


def embedding_loss(features: Tensor, kinds: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean manifold-embedding loss of up to 100 sampled pixels of each image; 0 where no image has both kinds.

    Parameters
    ----------
    features : [n, C, H, W]. ``kinds`` : as ``pixel_kinds`` gives them.
    """
    most_lung = round(PIXELS * LUNG_SHARE)
    found = []
    for feature, kind in zip(features, kinds.cpu().numpy(), strict=True):
        lung, rest = np.flatnonzero(kind == 1), np.flatnonzero(kind == 0)
        if min(len(lung), len(rest)) < LEAST:
            continue
        a = rng.choice(lung, min(most_lung, len(lung)), replace=False)
        b = rng.choice(rest, min(PIXELS - most_lung, len(rest)), replace=False)
        chosen = torch.from_numpy(np.concatenate([a, b])).to(feature.device)
        labels = torch.cat([torch.ones(len(a)), torch.zeros(len(b))]).to(feature.device)
        found.append(manifold_embedding(feature.flatten(1)[:, chosen].T, labels))
    return torch.stack(found).mean() if found else features.sum() * 0


def _class_weights(labelled: LabelledData, device: str) -> Tensor:
    counts = np.bincount(labelled.labels, minlength=len(labelled.classes)).clip(min=1)
    return torch.tensor(counts.mean() / counts, dtype=torch.float32, device=device)


def _diagnosis(net: UNet, images: Tensor) -> Tensor:
    device = device_of(net)
    with mixed(device):
        logits = net.diagnosis(_ready(images, device))
    return logits.float()


def _classify(
    run: Run, net: UNet, labelled: LabelledData, rng: np.random.Generator, options: UnetOptions, steps: int
) -> dict[str, float]:
    """One epoch of classification."""
    augmenter, weights = Augmenter(rng, HEAVY), _class_weights(labelled, run.device)
    order = rng.permutation(len(labelled.labels))
    sums = {"loss": 0.0, "accuracy": 0.0}
    net.train()
    for step in range(steps):
        rows = order[step * options.batch : (step + 1) * options.batch]
        labels = torch.from_numpy(labelled.labels[rows]).to(run.device)
        logits = _diagnosis(net, augmenter(labelled.images[rows])[0])
        sums["loss"] += run.step(functional.cross_entropy(logits, labels, weights)) / steps
        sums["accuracy"] += float((logits.argmax(1) == labels).float().mean().item()) / steps
    return sums


def _validate(net: UNet, parts: _Parts, options: UnetOptions) -> float:
    """The loss of the second stage on what is kept apart, not augmented; sampled pixels are the same in each epoch."""
    net.eval()
    device, rng = device_of(net), np.random.default_rng(options.seed)
    rows = parts.validation if parts.held is None else np.arange(len(parts.held.labels))
    total = 0.0
    with torch.inference_mode():
        for at in range(0, len(rows), options.batch):
            mine = rows[at : at + options.batch]
            if parts.held is not None:
                labels = torch.from_numpy(parts.held.labels[mine]).to(device)
                weights = _class_weights(parts.labelled or parts.held, device)
                loss = functional.cross_entropy(_diagnosis(net, to_unit(parts.held.images[mine])), labels, weights)
            else:
                masks = torch.from_numpy(parts.slices.masks[mine]).float().to(device)
                known = torch.from_numpy(parts.slices.known[mine]).to(device)
                logits, features = _forward(net, to_unit(parts.slices.images[mine]))
                part = embedding_loss(features, pixel_kinds(logits, masks, known), rng)
                loss = segmentation_loss(logits, masks, known) + options.embedding * part
            total += float(loss.item()) * len(mine)
    return total / len(rows)

"""``dicomnode train xception``: CE-Net's encoder and the Xception, jointly, for diagnosis and segmentation.

Goes on from a ``train cenet`` checkpoint, or from the ImageNet encoder alone. Trains on the official training split
of COVID-CT and on the slices of ct-lung-seg outside the held-out volumes; the validation split is never read for
training or stopping. A frozen segmentation encoding is a poor input for diagnosis (AUC .58), so the encoder is
fine-tuned.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch.nn import functional

from dicomnode.errors import InputError
from dicomnode.models.networks import CENet, TrainingHeads, Xception, XceptionConfig
from dicomnode.models.tensors import standardise
from dicomnode.models.training.augment import HEAVY, SEGMENTATION, Augmenter
from dicomnode.models.training.cenet import build_cenet, dice_by_volume, segmentation_step
from dicomnode.models.training.data import LabelledData, SegmentationData, load_covid_ct, load_segmentation
from dicomnode.models.training.losses import supervised_contrastive
from dicomnode.models.training.run import CHECKPOINT, Run, epoch_seed, load_checkpoint

log = structlog.get_logger(__name__)

LABEL_SMOOTHING = 0.1
TEMPERATURE = 0.1
SEGMENTATION_BATCH = 12


@dataclass(frozen=True, slots=True)
class XceptionOptions:
    """Options of ``dicomnode train xception``; the defaults are the best measured recipe.

    Attributes
    ----------
    data : folder that holds ``covid-ct`` and ``ct-lung-seg``.
    out : folder of the run.
    cenet : checkpoint of ``train cenet`` to go on from; None starts from the ImageNet weights of the lite0 encoder.
    segmentation_every : a segmentation batch every so many steps.
    encoder_lr : factor of ``lr`` for everything of the CE-Net.
    segmentation : weight of the segmentation loss.
    max_steps : steps an epoch at most; None for all (tests set it).
    """

    data: Path
    out: Path
    cenet: Path | None = None
    epochs: int = 30
    batch: int = 32
    lr: float = 1e-3
    encoder_lr: float = 0.3
    weight_decay: float = 0.02
    warm_up: float = 0.2
    segmentation: float = 0.3
    segmentation_every: int = 2
    middle: int = 2
    seed: int = 0
    max_steps: int | None = None

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same; folders do not."""
        return {k: v for k, v in asdict(self).items() if k not in ("data", "out", "cenet")}


def load_cenet(path: Path) -> CENet:
    """The CE-Net of a ``train cenet`` checkpoint.

    Raises
    ------
    InputError
        Not such a checkpoint.
    """
    if not path.is_file():
        raise InputError("is missing", place=str(path), advice="run 'dicomnode train cenet' first")
    state = load_checkpoint(path)
    try:
        identity = state["identity"]
        net = build_cenet(identity["encoder"], identity["width"], imagenet=False, seed=0)
        net.load_state_dict(state["modules"]["cenet"])
    except (KeyError, RuntimeError) as e:
        raise InputError("is not a checkpoint of 'train cenet'", place=str(path)) from e
    return net


@dataclass
class _Batches:
    """The two sources of one epoch, each with its augmentation and the epoch's generator."""

    labelled: LabelledData
    segmentation: SegmentationData
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.heavy = Augmenter(self.rng, HEAVY)
        self.light = Augmenter(self.rng, SEGMENTATION)
        self.masked_rows = np.flatnonzero(~self.segmentation.held_out)


def train_xception(
    options: XceptionOptions, labelled: LabelledData | None = None, segmentation: SegmentationData | None = None
) -> dict[str, Any]:
    """Train, or go on from the last checkpoint.

    Returns
    -------
    dict
        ``checkpoint`` (path), ``dice`` and ``mean`` of the joint network on the held-out volumes, ``curves``.
    """
    labelled = labelled or load_covid_ct(options.data)
    labelled = labelled.part(labelled.train)
    segmentation = segmentation or load_segmentation(options.data)
    if len(labelled.labels) < options.batch or len(np.unique(labelled.labels)) < 2:
        raise InputError("needs both classes and at least one batch of training images", place="data")
    if options.cenet is None:
        net = build_cenet("lite0", 1.0, imagenet=True, seed=options.seed)
    else:
        net = load_cenet(options.cenet)
    torch.manual_seed(options.seed)
    xception = Xception(XceptionConfig(net.encoder.out_channels, middle=options.middle))
    heads = TrainingHeads(net.encoder.out_channels)
    steps = len(labelled.labels) // options.batch
    steps = min(steps, options.max_steps) if options.max_steps else steps
    new = [*xception.parameters(), *heads.parameters()]
    rates = [options.lr, options.lr * options.encoder_lr]
    optimiser = torch.optim.AdamW(
        [{"params": new, "lr": rates[0]}, {"params": list(net.parameters()), "lr": rates[1]}],
        weight_decay=options.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, total_steps=options.epochs * steps, pct_start=options.warm_up
    )
    modules = {"cenet": net, "xception": xception, "heads": heads}
    start = "imagenet" if options.cenet is None else "cenet"
    identity = {
        **options.identity(),
        "start": start,
        "cenet": net.config.as_json(),
        "xception": xception.config.as_json(),
    }
    run = Run(options.out, modules, optimiser, schedule, identity)
    counts = np.bincount(labelled.labels)
    weights = torch.tensor(counts.mean() / counts, dtype=torch.float32)
    for epoch in range(run.resume(), options.epochs):
        began = time.monotonic()
        batches = _Batches(labelled, segmentation, epoch_seed(options.seed, epoch))
        figures = _epoch(run, batches, options, steps, weights)
        run.end_epoch({**figures, "seconds": time.monotonic() - began})
    dice = dice_by_volume(net, segmentation)
    mean = {k: float(np.mean(list(v.values()))) for k, v in dice.items() if v}
    return {"checkpoint": options.out / CHECKPOINT, "dice": dice, "mean": mean, "curves": run.curves}


def _epoch(
    run: Run, batches: _Batches, options: XceptionOptions, steps: int, weights: torch.Tensor
) -> dict[str, float]:
    """One pass over the labelled images; mean losses and the training accuracy under augmentation."""
    net, xception, heads = run.modules["cenet"], run.modules["xception"], run.modules["heads"]
    assert isinstance(net, CENet)
    for module in run.modules.values():
        module.train()
    order = batches.rng.permutation(len(batches.labelled.labels))
    sums = {"classify": 0.0, "contrast": 0.0, "accuracy": 0.0}
    masked: list[float] = []
    for step in range(steps):
        rows = order[step * options.batch : (step + 1) * options.batch]
        labels = torch.from_numpy(batches.labelled.labels[rows])
        images, _ = batches.heavy(batches.labelled.images[rows])
        encoding = net.encoder(standardise(images).contiguous(memory_format=torch.channels_last))
        logits, unit = heads(xception(encoding))
        classify = functional.cross_entropy(logits, labels, weights, label_smoothing=LABEL_SMOOTHING)
        contrast = supervised_contrastive(unit, labels, TEMPERATURE)
        loss = classify + contrast
        if options.segmentation > 0 and step % options.segmentation_every == 0 and len(batches.masked_rows):
            size = min(SEGMENTATION_BATCH, len(batches.masked_rows))
            chosen = batches.rng.choice(batches.masked_rows, size, replace=False)
            part = segmentation_step(net, batches.segmentation, chosen, batches.light)
            masked.append(float(part.item()))
            loss = loss + options.segmentation * part
        run.step(loss)
        sums["classify"] += float(classify.item()) / steps
        sums["contrast"] += float(contrast.item()) / steps
        sums["accuracy"] += float((logits.argmax(1) == labels).float().mean().item()) / steps
    return {**sums, "segmentation": float(np.mean(masked))} if masked else sums

"""``dicomnode train xception``: CE-Net's encoder and the Xception, jointly, for diagnosis and segmentation.

Goes on from a ``train cenet`` checkpoint, or from the ImageNet encoder alone. Trains on the official training split
of COVID-CT and on the slices of ct-lung-seg outside the held-out volumes, or on a site's own; other splits are never
read for training or stopping: what validates is cut from the training split. A frozen segmentation encoding is a poor
input for diagnosis (AUC .58), so the encoder is fine-tuned.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
import torch
from torch.nn import functional

from dicomnode.errors import InputError, UsageError
from dicomnode.models.embedder import choose_device
from dicomnode.models.networks import (
    CENet,
    TrainingHeads,
    Xception,
    XceptionConfig,
    literal_xception,
    published_xception,
)
from dicomnode.models.tensors import standardise
from dicomnode.models.training.augment import HEAVY, SEGMENTATION, Augmenter, to_unit
from dicomnode.models.training.cenet import (
    build_cenet,
    check_share,
    dice_by_volume,
    infected_area,
    segmentation_step,
    validation_identity,
)
from dicomnode.models.training.data import CLASSES, LabelledData, SegmentationData, digest_of
from dicomnode.models.training.losses import supervised_contrastive
from dicomnode.models.training.run import (
    PATIENCE,
    VALIDATION,
    Run,
    check_finite,
    device_of,
    epoch_seed,
    load_checkpoint,
    mixed,
)
from dicomnode.models.training.sources import is_table, labelled_of, sample_scans, segmentation_of, tell_counts
from dicomnode.models.training.splits import too_few, validation_rows
from dicomnode.models.training.tables import load_scans

log = structlog.get_logger(__name__)

LABEL_SMOOTHING = 0.1
TEMPERATURE = 0.1
SEGMENTATION_BATCH = 12
VALIDATION_BATCH = 32


@dataclass(frozen=True, slots=True)
class XceptionOptions:
    """Options of ``dicomnode train xception``; the defaults are the best of several recipes, by
    figures on COVID-CT's validation split.

    Attributes
    ----------
    data : folder that holds ``covid-ct`` and ``ct-lung-seg``; or a LABELS.csv (``tables.load_labels``).
    out : folder of the run.
    cenet : checkpoint of ``train cenet`` to go on from; None starts from the ImageNet weights of the lite0 encoder.
    segmentation_every : a segmentation batch every so many steps.
    encoder_lr : factor of ``lr`` for everything of the CE-Net.
    segmentation : weight of the segmentation loss.
    max_steps : steps an epoch at most; None for all (tests set it).
    form : "native" or "literal" (``networks.xception``).
    widths : "narrow" (measured) or "published".
    masks : folder or table of outlined slices for the segmentation; None: those of a folder ``data``, else none.
    scans : table of labelled scans (``tables.load_scans``) instead of ``data``; needs ``cenet``.
    per_scan : slices of each scan, those with the largest infected area by that CE-Net.
    validate : share of the training images, whole patients, kept apart to stop early; 0 trains on all to the end.
    patience : epochs without a lower validation loss after which to stop.
    device : "auto", "cpu" or "cuda".
    freeze : the CE-Net stays as it is and the Xception learns on its encoding, as published; needs ``cenet``.
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
    form: Literal["native", "literal"] = "native"
    widths: Literal["narrow", "published"] = "narrow"
    masks: Path | None = None
    scans: Path | None = None
    per_scan: int = 4
    validate: float = 0.0
    patience: int = PATIENCE
    device: str = "cpu"
    freeze: bool = False

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same; folders and device do not. What is off is not named."""
        plain = {k: v for k, v in asdict(self).items() if k not in _NOT_IDENTITY}
        if self.scans is not None:
            plain["per_scan"] = self.per_scan
        if self.freeze:
            plain["freeze"] = True
        return {**plain, **validation_identity(self.validate, self.patience)}

    def architecture(self, channels: int) -> XceptionConfig:
        """The Xception on an encoding of so many channels."""
        if self.widths == "published":
            return published_xception(channels, self.form)
        if self.form == "literal":
            return literal_xception(channels, self.middle)
        return XceptionConfig(channels, middle=self.middle)


# Form and widths are told by the architecture, which is part of the identity too.
_NOT_IDENTITY = (
    "data",
    "out",
    "cenet",
    "form",
    "widths",
    "masks",
    "scans",
    "per_scan",
    "validate",
    "patience",
    "device",
    "freeze",
)


def load_cenet(path: Path) -> CENet:
    """The CE-Net of a ``train cenet`` checkpoint.

    Raises
    ------
    InputError
        Not such a checkpoint, or weights that are not finite.
    """
    if not path.is_file():
        raise InputError("is missing", place=str(path), advice="run 'dicomnode train cenet' first")
    state = load_checkpoint(path)
    try:
        identity = state["identity"]
        net = build_cenet(identity["encoder"], identity["width"], imagenet=False, seed=0)
        net.load_state_dict(state["modules"]["cenet"])
    except (KeyError, TypeError, RuntimeError) as e:
        raise InputError("is not a checkpoint of 'train cenet'", place=str(path)) from e
    check_finite(net.state_dict(), path)
    return net


@dataclass
class _Batches:
    """The two sources of one epoch, each with its augmentation and the epoch's generator."""

    labelled: LabelledData
    segmentation: SegmentationData | None
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.heavy = Augmenter(self.rng, HEAVY)
        self.light = Augmenter(self.rng, SEGMENTATION)
        usable = None if self.segmentation is None else ~self.segmentation.held_out & self.segmentation.known.any(1)
        self.masked_rows = np.flatnonzero(usable) if usable is not None else np.zeros(0, dtype=np.int64)


def labelled_for(options: XceptionOptions, net: CENet | None) -> tuple[LabelledData, str]:
    """The labelled slices of a run: a folder's or table's, or sampled from scans by the CE-Net it starts from.

    Returns
    -------
    tuple
        The slices, and the fingerprint of what they are from.
    """
    if options.scans is None:
        labelled = labelled_of(options.data)
        return labelled, labelled.fingerprint
    if net is None:
        raise InputError("needs a trained CE-Net that finds the infection", place="--scans", advice="give --cenet RUN")
    scans = load_scans(options.scans)
    return sample_scans(scans, partial(infected_area, net), options.per_scan), scans.fingerprint


def masks_for(options: XceptionOptions) -> SegmentationData | None:
    """The outlined slices of a run; None where a site has none."""
    if options.masks is not None:
        return segmentation_of(options.masks)
    return None if options.scans is not None or is_table(options.data) else segmentation_of(options.data)


def train_xception(
    options: XceptionOptions, labelled: LabelledData | None = None, segmentation: SegmentationData | None = None
) -> dict[str, Any]:
    """Train, or go on from the last checkpoint.

    Returns
    -------
    dict
        ``checkpoint`` (path), ``dice`` and ``mean`` of the joint network on the held-out volumes (empty without
        outlined slices), ``curves``; with validation also ``best_epoch`` (from 1).

    Raises
    ------
    InputError
        The data or the CE-Net cannot be used; nothing was written then.
    """
    check_share(options.validate)
    if options.freeze and options.cenet is None:
        raise UsageError("needs a trained CE-Net", place="--freeze", advice="give --cenet RUN")
    device = choose_device(options.device)
    net = None
    if options.scans is not None and options.cenet is not None:  # else the data is looked at first
        net = load_cenet(options.cenet).to(device)
    labelled, origin = (labelled, labelled.fingerprint) if labelled else labelled_for(options, net)
    segmentation = segmentation or masks_for(options)
    place = str(options.scans or options.data)
    training, held = split_training(labelled, options.validate, options.seed, options.batch, place)
    if net is None:
        net = (
            build_cenet("lite0", 1.0, imagenet=True, seed=options.seed)
            if options.cenet is None
            else load_cenet(options.cenet)
        ).to(device)
    sources = {"other labelled images": origin}
    if segmentation is not None:
        sources["other outlined slices"] = segmentation.fingerprint
    run, weights, steps = _prepare(options, net, training, sources)
    for epoch in run.epochs(options.epochs, steps):
        batches = _Batches(training, segmentation, epoch_seed(options.seed, epoch))
        figures = _epoch(run, batches, options, steps, weights)
        if options.validate:
            figures |= _validate(run, held, weights)
        run.end_epoch(figures)
    checkpoint = run.result()
    dice = {} if segmentation is None else dice_by_volume(net, segmentation)
    mean = {k: float(np.mean(list(v.values()))) for k, v in dice.items() if v}
    best = {"best_epoch": run.best_epoch()} if options.validate else {}
    return {"checkpoint": checkpoint, "dice": dice, "mean": mean, "curves": run.curves, **best}


def split_training(
    labelled: LabelledData, share: float, seed: int, batch: int, place: str, *, told: bool = True
) -> tuple[LabelledData, LabelledData]:
    """What is trained on, and what validates: both of the training split.

    Parameters
    ----------
    place : where the images are from, for the errors.
    told : tell the counts of each class.

    Raises
    ------
    InputError
        One class only, or less than a batch.
    """
    validation = np.zeros(len(labelled.labels), dtype=np.bool_)
    part = labelled.part(labelled.train)
    if share and len(part.labels):
        mine = validation_rows(part.labels, part.groups, share, seed, labelled.classes, place)
        validation[np.flatnonzero(labelled.train)] = mine
    training = labelled.part(labelled.train & ~validation)
    if len(training.labels) < batch:
        raise too_few(len(training.labels), batch, "images", place, share, int(validation.sum()))
    found = np.unique(training.labels)
    if len(found) < 2:
        line = f"leaves {len(training.labels)} images to train on, of one class only, {labelled.classes[found[0]]!r}"
        raise InputError(f"{line}: two classes are needed", place=place)
    if told:
        tell_counts(labelled, validation)
    return training, labelled.part(validation)


def _prepare(
    options: XceptionOptions, net: CENet, training: LabelledData, sources: dict[str, str]
) -> tuple[Run, torch.Tensor, int]:
    """The run with its networks and optimiser, the weights of the classes, and the steps of an epoch."""
    if options.cenet is not None:  # by its weights: a copy, or the same training done again, is no other one
        sources = {**sources, "another CE-Net": digest_of(v.cpu().numpy() for v in net.state_dict().values())}
    device = device_of(net)
    torch.manual_seed(options.seed)
    xception = Xception(options.architecture(net.encoder.out_channels)).to(device)
    heads = TrainingHeads(net.encoder.out_channels, len(training.classes)).to(device)
    steps = len(training.labels) // options.batch
    steps = min(steps, options.max_steps) if options.max_steps else steps
    learning = [[*xception.parameters(), *heads.parameters()], list(net.parameters())]
    rates = [options.lr, options.lr * options.encoder_lr]
    if options.freeze:
        net.requires_grad_(False)
        learning, rates = learning[:1], rates[:1]
    optimiser = torch.optim.AdamW(
        [{"params": group, "lr": rate} for group, rate in zip(learning, rates, strict=True)],
        weight_decay=options.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, total_steps=options.epochs * steps, pct_start=options.warm_up
    )
    identity = {
        **options.identity(),
        "start": "imagenet" if options.cenet is None else "cenet",
        "cenet": net.config.as_json(),
        "xception": xception.config.as_json(),
    }
    if training.classes != CLASSES:
        identity["classes"] = list(training.classes)
    modules = {"cenet": net, "xception": xception, "heads": heads}
    about = {} if options.cenet is None else {"cenet_run": load_checkpoint(options.cenet)["identity"]}
    patience = options.patience if options.validate else 0
    run = Run(options.out, modules, optimiser, schedule, identity, patience, about, sources)
    counts = np.bincount(training.labels, minlength=len(training.classes))
    return run, torch.tensor(counts.mean() / counts.clip(min=1), dtype=torch.float32, device=device), steps


def _forward(run: Run, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and unit projections, float32, of images [n, 1, H, W] in 0..1."""
    net, xception, heads = run.modules["cenet"], run.modules["xception"], run.modules["heads"]
    assert isinstance(net, CENet)
    with mixed(run.device):
        x = standardise(images.to(run.device)).contiguous(memory_format=torch.channels_last)
        logits, unit = heads(xception(net.encoder(x)))
    return logits.float(), unit.float()


def _epoch(
    run: Run, batches: _Batches, options: XceptionOptions, steps: int, weights: torch.Tensor
) -> dict[str, float]:
    """One pass over the labelled images; mean losses and the training accuracy under augmentation."""
    net = run.modules["cenet"]
    assert isinstance(net, CENet)
    for module in run.modules.values():
        module.train()
    if options.freeze:
        net.eval()  # its norms keep their statistics too
    order = batches.rng.permutation(len(batches.labelled.labels))
    sums = {"loss": 0.0, "classify": 0.0, "contrast": 0.0, "accuracy": 0.0}
    masked: list[float] = []
    outlines = options.segmentation > 0 and not options.freeze and len(batches.masked_rows) > 0
    for step in range(steps):
        rows = order[step * options.batch : (step + 1) * options.batch]
        labels = torch.from_numpy(batches.labelled.labels[rows]).to(run.device)
        images, _ = batches.heavy(batches.labelled.images[rows])
        logits, unit = _forward(run, images)
        classify = functional.cross_entropy(logits, labels, weights, label_smoothing=LABEL_SMOOTHING)
        contrast = supervised_contrastive(unit, labels, TEMPERATURE)
        loss = classify + contrast
        if outlines and step % options.segmentation_every == 0:
            assert batches.segmentation is not None
            size = min(SEGMENTATION_BATCH, len(batches.masked_rows))
            chosen = batches.rng.choice(batches.masked_rows, size, replace=False)
            part = segmentation_step(net, batches.segmentation, chosen, batches.light)
            masked.append(float(part.item()))
            loss = loss + options.segmentation * part
        sums["loss"] += run.step(loss) / steps
        sums["classify"] += float(classify.item()) / steps
        sums["contrast"] += float(contrast.item()) / steps
        sums["accuracy"] += float((logits.argmax(1) == labels).float().mean().item()) / steps
    return {**sums, "segmentation": float(np.mean(masked))} if masked else sums


def _validate(run: Run, held: LabelledData, weights: torch.Tensor) -> dict[str, float]:
    """Loss and accuracy, each class weighted alike, on images that are not trained on, not augmented."""
    for module in run.modules.values():
        module.eval()
    labels = torch.from_numpy(held.labels).to(run.device)
    found = []
    with torch.inference_mode():
        for at in range(0, len(labels), VALIDATION_BATCH):
            found.append(_forward(run, to_unit(held.images[at : at + VALIDATION_BATCH]))[0])  # noqa: PERF401
    logits = torch.cat(found)
    right = (logits.argmax(1) == labels).float()
    by_class = [float(right[labels == int(c)].mean().item()) for c in np.unique(held.labels)]
    loss = float(functional.cross_entropy(logits, labels, weights).item())
    return {VALIDATION: loss, "validation_accuracy": float(np.mean(by_class))}

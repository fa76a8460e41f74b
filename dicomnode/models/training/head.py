"""``dicomnode train head``: a small metric head on the vectors of any pack, for a site's own labels.

The pack stays as it is: its vectors of the training images, and of augmented views of them, are computed once; an MLP
learns to draw images of one label together (supervised contrastive loss) and to tell the labels apart (cross entropy).
Vectors of a head are its own: they are compared among themselves, and never go into an index of the pack's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomnode.models.embedder import Embedder, choose_device
from dicomnode.models.manifest import find_pack
from dicomnode.models.training.augment import HEAVY, Augmenter
from dicomnode.models.training.cenet import check_share, validation_identity
from dicomnode.models.training.data import LabelledData
from dicomnode.models.training.losses import supervised_contrastive
from dicomnode.models.training.run import PATIENCE, VALIDATION, Run, epoch_seed
from dicomnode.models.training.sources import labelled_of
from dicomnode.models.training.xception import split_training

Floats = npt.NDArray[np.float32]
HIDDEN = 256
DIM = 128  # of a head's vectors
DROPOUT = 0.3
VIEWS_SEED = 7919  # apart from the streams of the epochs
LEAST_SPREAD = 1e-6  # a feature that never varies is not blown up


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """Options of ``dicomnode train head``.

    Attributes
    ----------
    data : a LABELS.csv, or the folder of data sets (covid-ct).
    out : folder of the run.
    pack : name or folder of the pack whose vectors are refined.
    views : augmented views of each training image, beside the image itself.
    validate, patience, device : as in ``CenetOptions``.
    max_steps : steps an epoch at most; None for all (tests set it).
    """

    data: Path
    out: Path
    pack: str = "cenet-xception"
    views: int = 4
    epochs: int = 20
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    validate: float = 0.0
    patience: int = PATIENCE
    device: str = "cpu"
    max_steps: int | None = None

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same; folders and device do not. The pack stands there by its ``model_id``."""
        left_out = ("data", "out", "pack", "device", "validate", "patience")
        plain = {k: v for k, v in asdict(self).items() if k not in left_out}
        return {**plain, **validation_identity(self.validate, self.patience)}


class MetricHead(nn.Module):
    """Vectors [n, d] of a pack -> (logits [n, classes], unit vectors [n, 128])."""

    mean: Tensor
    spread: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))
        self.body = nn.Sequential(
            nn.Dropout(DROPOUT), nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, DIM)
        )
        self.classify = nn.Linear(DIM, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body((x - self.mean) / self.spread)
        return self.classify(y), functional.normalize(y, dim=1)


def train_head(options: HeadOptions, labelled: LabelledData | None = None) -> dict[str, Any]:
    """Train, or go on from the last checkpoint.

    Returns
    -------
    dict
        ``checkpoint`` (path), ``model_id`` of the pack, ``curves``; with validation also ``best_epoch`` (from 1).

    Raises
    ------
    InputError, PackError
        The data or the pack cannot be used; nothing was written then.
    """
    check_share(options.validate)
    device = choose_device(options.device)
    folder = find_pack(options.pack)
    labelled = labelled or labelled_of(options.data)
    training, held = split_training(labelled, options.validate, options.seed, 2, str(options.data))
    embedder = Embedder.load(folder, device)
    vectors = torch.from_numpy(_vectors(embedder, training, options)).to(device)
    labels = torch.from_numpy(np.tile(training.labels, options.views + 1)).to(device)
    validation = torch.from_numpy(embedder.embed(_unit(held.images))).to(device)
    torch.manual_seed(options.seed)
    head = MetricHead(embedder.dim, len(training.classes))
    head.mean.copy_(vectors.mean(0))
    head.spread.copy_(vectors.std(0).clamp(min=LEAST_SPREAD))
    head.to(device)
    optimiser = torch.optim.AdamW(head.parameters(), options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
    batch = min(options.batch, len(vectors))
    steps = len(vectors) // batch
    steps = min(steps, options.max_steps) if options.max_steps else steps
    identity = {
        **options.identity(),
        "model_id": embedder.model_id,
        "dim": embedder.dim,
        "classes": list(training.classes),
    }
    patience = options.patience if options.validate else 0
    about = {"pack": str(folder.resolve())}
    sources = {"other labelled images": labelled.fingerprint}
    run = Run(options.out, {"head": head}, optimiser, schedule, identity, patience, about, sources)
    counts = np.bincount(training.labels, minlength=len(training.classes)).clip(min=1)
    weights = torch.tensor(counts.mean() / counts, dtype=torch.float32, device=device)
    for epoch in run.epochs(options.epochs, steps):
        order = torch.from_numpy(epoch_seed(options.seed, epoch).permutation(len(vectors))).to(device)
        head.train()
        losses = []
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            losses.append(run.step(_loss(head, vectors[rows], labels[rows], weights)))
        figures = {"loss": float(np.mean(losses))}
        if options.validate:
            figures[VALIDATION] = _validation_loss(head, validation, held, weights)
        run.end_epoch(figures)
    best = {"best_epoch": run.best_epoch()} if options.validate else {}
    return {"checkpoint": run.result(), "model_id": embedder.model_id, "curves": run.curves, **best}


def _loss(head: MetricHead, x: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    logits, unit = head(x)
    return functional.cross_entropy(logits, labels, weights) + supervised_contrastive(unit, labels)


def _validation_loss(head: MetricHead, x: Tensor, held: LabelledData, weights: Tensor) -> float:
    head.eval()
    with torch.inference_mode():
        logits, _ = head(x)
        return float(functional.cross_entropy(logits, torch.from_numpy(held.labels).to(x.device), weights).item())


def _unit(images: npt.NDArray[np.uint8]) -> Floats:
    return images.astype(np.float32) / np.float32(255)


def _vectors(embedder: Embedder, training: LabelledData, options: HeadOptions) -> Floats:
    """Vectors of the images and of their views, float32 [(views + 1) n, dim]: first those of the images."""
    augmenter = Augmenter(np.random.default_rng([options.seed, VIEWS_SEED]), HEAVY)
    out = [embedder.embed(_unit(training.images))]
    for _ in range(options.views):
        views = [augmenter(training.images[at : at + 64])[0] for at in range(0, len(training.images), 64)]
        out.append(embedder.embed(torch.cat(views)[:, 0].numpy()))
    return np.concatenate(out)

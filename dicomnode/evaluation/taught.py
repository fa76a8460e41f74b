"""Negative controls that learn: what the labels of the index teach about metadata or a histogram.

A pack is taught with labels, so a control that nothing was taught is a low bar: width against height tells much of a
slice that was cut out of a paper, and a nearest neighbour among sizes does not find it. These two see no place in the
image, like the controls of the same features (``evaluation.controls``), and learn from the labels of the index rows.

Never learns from a query: not its label, and no index row of the same image or patient. The setting is fixed: one
hidden layer of 32 ReLU, AdamW with weight decay .01 and learning rate .01, 200 epochs, 8 fits, whose class
probabilities are the vector. Of 29 settings it had the highest sum of P@10 and mAP of both controls when patients of
the index of *in-domain* (the training split of COVID-CT) were left out in five folds; no query was read. Hidden layers
as vectors reach less there: they keep much that has nothing to do with the label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dicomnode.evaluation import controls
from dicomnode.evaluation.labels import METADATA, Row, numbers
from dicomnode.evaluation.metrics import Bools, Floats, Strings
from dicomnode.evaluation.task import Rules
from dicomnode.models.training.figures import unit_rows

NAMES = ("metadata, taught", "histogram, taught")
HIDDEN = 32  # units of the one hidden layer
FITS = 8  # networks, each with a seed of its own, whose class probabilities are joined
EPOCHS = 200  # each of all rows at once
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.01  # of AdamW
MIN_ROWS = 5  # of a class: fewer teach nothing of it
RECIPE: Final[Mapping[str, Any]] = {
    "learner": "MLP, ReLU, AdamW, cross entropy with classes of equal weight; vector: class probabilities",
    "hidden": HIDDEN,
    "fits": FITS,
    "epochs": EPOCHS,
    "learning_rate": LEARNING_RATE,
    "weight_decay": WEIGHT_DECAY,
}

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Taught:
    """A control that was taught.

    Attributes
    ----------
    name : without "control: ".
    index, queries : float32 [n, FITS * classes] and [m, FITS * classes], unit vectors.
    note : what it sees, and what it was taught with.
    """

    name: str
    index: Vectors
    queries: Vectors
    note: str


def teach(
    index: Sequence[Row],
    queries: Sequence[Row],
    means: tuple[Vectors, Vectors],
    histograms: tuple[Vectors, Vectors],
    rules: Rules,
) -> tuple[list[Taught], list[str]]:
    """Both controls, and a line for what is left out: no column of metadata, too few rows to learn from.

    Parameters
    ----------
    index, queries : rows; of the queries the label is not read.
    means : mean intensity of index and queries, float32 [n, 1] and [m, 1].
    histograms : ``controls.histogram`` of both, float32 [n, 32] and [m, 32].
    rules : where groups are open, as in *leaky*, index rows of a group that asks teach as well.
    """
    names = np.array([r.label for r in index])
    teaching = teachers(index, queries, rules)
    if len(np.unique(names[teaching])) < 2:
        which = " and ".join(f"control: {name}" for name in NAMES)
        needs = f"two classes of at least {MIN_ROWS} rows each, of images and patients that ask nothing, to learn from"
        return [], [f"{which} are left out: the index has not {needs}"]
    how = f"taught with the labels of {teaching.sum()} of {len(index)} index rows: MLP, {FITS} fits, cosine"
    found, lines = [], []
    a, b, seen = metadata(index, queries, means)
    if set(seen) & set(METADATA):
        found.append(Taught(NAMES[0], *vectors(a, b, names, teaching), f"{', '.join(seen)}; {how}"))
    else:
        lines.append(f"control: {NAMES[0]} is left out: not every row has one of the columns {', '.join(METADATA)}")
    a, b = (h.astype(np.float64) for h in histograms)
    found.append(Taught(NAMES[1], *vectors(a, b, names, teaching), f"{controls.BINS} bins; {how}"))
    return found, lines


def teachers(index: Sequence[Row], queries: Sequence[Row], rules: Rules) -> Bools:
    """Index rows that teach, bool [n]: of no image and no patient that asks, and of no class that is too small.

    Else the control would know the answer to a query by its own label, as where an index asks itself. Near copies
    under another patient do teach: a pack meets them, too.
    """
    images = {r.path.resolve() for r in queries}
    patients = {r.cluster for r in queries} if rules.close_group else set()
    free = np.array([r.path.resolve() not in images and r.cluster not in patients for r in index])
    names = np.array([r.label for r in index])
    classes, counts = np.unique(names[free], return_counts=True)
    return np.asarray(free & np.isin(names, classes[counts >= MIN_ROWS]))


def metadata(
    index: Sequence[Row], queries: Sequence[Row], means: tuple[Vectors, Vectors]
) -> tuple[Floats, Floats, list[str]]:
    """``controls.metadata``, and the aspect ratio (logarithm of width / height) where both are there.

    Returns
    -------
    float64 [n, d], float64 [m, d], list of str
    """
    a, b, names = controls.metadata(index, queries, means)
    if not {"width", "height"} <= set(names):
        return a, b, names
    aspect = [np.log(numbers(rows, "width") / numbers(rows, "height"))[:, None] for rows in (index, queries)]
    return np.concatenate([a, aspect[0]], axis=1), np.concatenate([b, aspect[1]], axis=1), [*names, "aspect ratio"]


def vectors(index: Floats, queries: Floats, names: Strings, teaching: Bools) -> tuple[Vectors, Vectors]:
    """What ``FITS`` networks make of features: their class probabilities, each fit's of length 1, joined.

    The cosine of two such vectors is the mean of the fits' cosines. Features become z scores of all index rows; one
    that has a single value in the index (a word that only queries have) is left out, as nothing can be learnt of it.
    Runs on the CPU on one thread; the same rows give the same vectors.

    Parameters
    ----------
    index, queries : float64 [n, d] and [m, d].
    names : str [n], labels of the index rows.
    teaching : bool [n], the rows whose labels are used.

    Returns
    -------
    float32 [n, FITS * classes], float32 [m, FITS * classes]
        Of length 1.
    """
    spread = index.std(axis=0)
    varies = spread > 1e-9
    both = ((np.concatenate([index, queries]) - index.mean(axis=0)) / np.where(varies, spread, 1.0))[:, varies]
    x = torch.from_numpy(both.astype(np.float32))
    learn = torch.from_numpy(np.flatnonzero(teaching))
    _, label = np.unique(names[teaching], return_inverse=True)
    with _alone():
        said = [unit_rows(_fit(x[learn], torch.from_numpy(label), seed)(x).numpy()) for seed in range(FITS)]
    joined = unit_rows(np.concatenate(said, axis=1))
    return joined[: len(index)], joined[len(index) :]


def _fit(x: torch.Tensor, label: torch.Tensor, seed: int) -> nn.Module:
    """A network that learnt ``label`` int64 [n] from ``x`` float32 [n, d]: features -> class probabilities."""
    torch.manual_seed(seed)
    counts = torch.bincount(label)
    network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(counts)))
    loss = nn.CrossEntropyLoss(weight=len(label) / (len(counts) * counts))  # figures are macro over classes
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        loss(network(x), label).backward()
        optimizer.step()
    return nn.Sequential(network, nn.Softmax(dim=1)).requires_grad_(False)


@contextmanager
def _alone() -> Iterator[None]:
    """One thread, and a random state that is the process's own again afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)

"""Negative controls: what a method reaches without knowledge of disease. Every figure of a pack stands beside them.

metadata (size, file type, mean intensity), raw 32x32 pixels, a histogram of 32 bins, random weights of the first pack's
architecture, the first pack with the lungs masked out, the first pack on the border only, and permuted labels. A pack
is good only as far as it is better than these, and than what labels teach about metadata and the histogram
(``evaluation.taught``). Works on prepared images, float32 [n, 224, 224] in 0..1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dicomnode.errors import InputError
from dicomnode.evaluation.candidates import Extractor, Pixels, Vectors
from dicomnode.evaluation.labels import METADATA, Row, numbers
from dicomnode.evaluation.metrics import Bools, Floats
from dicomnode.models.embedder import Embedder
from dicomnode.models.networks import Compaction, EmbeddingNet
from dicomnode.models.tensors import standardise
from dicomnode.models.training.build import MASK_DILATION
from dicomnode.models.training.cenet import build_cenet
from dicomnode.models.training.figures import raw_pixels, unit_rows
from dicomnode.models.training.run import load_checkpoint, not_finite

BINS = 32
BORDER = 28  # pixels of each side that the border control keeps: an eighth of 224
BATCH = 16
NORM_BATCHES = 4  # from which the batch norms of a random network take their statistics
NUMERIC = ("width", "height")


def small(images: Pixels) -> Vectors:
    """Raw pixels: centred 32x32 of length 1, float32 [n, 1024]."""
    return unit_rows(raw_pixels(np.rint(images * 255).astype(np.uint8)))


def histogram(images: Pixels) -> Vectors:
    """Square root of the share of pixels in each of 32 bins, float32 [n, 32], length 1 (cosine: Bhattacharyya)."""
    counts = [np.histogram(i, bins=BINS, range=(0.0, 1.0))[0] for i in images]
    return np.asarray(np.sqrt(np.array(counts) / images[0].size), dtype=np.float32)


def intensity(images: Pixels) -> Vectors:
    """Mean intensity of each image, float32 [n, 1]."""
    return np.asarray(images.mean(axis=(1, 2))[:, None], dtype=np.float32)


def metadata(
    index: Sequence[Row], queries: Sequence[Row], means: tuple[Vectors, Vectors]
) -> tuple[Floats, Floats, list[str]]:
    """What a file tells without its image, as z scores of the index, and the names of what was there.

    Parameters
    ----------
    index, queries : rows whose columns are read: width and height (logarithms), source_format and source_mode (one
        column for each word). A column counts only where every row has it.
    means : mean intensity of index and queries, [n, 1] and [m, 1].

    Returns
    -------
    float64 [n, d], float64 [m, d], list of str
    """
    both = [*index, *queries]
    parts: list[Floats] = [np.concatenate(means).astype(np.float64)]
    names = ["mean intensity"]
    for column in METADATA:
        if not all(r.columns.get(column) for r in both):
            continue
        if column in NUMERIC:
            values = numbers(both, column)
            if not (np.isfinite(values) & (values > 0)).all():
                continue
            parts.append(np.log(values)[:, None])
        else:
            words = np.array([r.columns[column] for r in both])
            parts.append((words[:, None] == np.unique(words)[None]).astype(np.float64))
        names.append(column)
    features = np.concatenate(parts, axis=1)
    of_index = features[: len(index)]
    spread = of_index.std(axis=0)
    scaled = (features - of_index.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return scaled[: len(index)], scaled[len(index) :], names


def border_only(images: Pixels) -> Pixels:
    """The images with all but their border set to the border's mean."""
    out = images.copy()
    inside = np.zeros(images.shape[1:], dtype=bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    out[:, inside] = images[:, ~inside].mean(axis=1, keepdims=True)
    return out


def lungs_masked(images: Pixels, find: Callable[[Pixels], Bools]) -> Pixels:
    """The images with the lungs that ``find`` finds, widened by 4 pixels, set to the mean of the rest."""
    found = torch.from_numpy(find(images).astype(np.float32))[:, None]
    wide = nn.functional.max_pool2d(found, MASK_DILATION, 1, MASK_DILATION // 2)[:, 0].numpy() > 0
    out = images.copy()
    for image, mask in zip(out, wide, strict=True):
        image[mask] = image[~mask].mean() if (~mask).any() else 0
    return out


class Lungs:
    """A way to find lungs, which counts the images on which it found none.

    Attributes
    ----------
    without : number of such images so far.
    """

    def __init__(self, find: Callable[[Pixels], Bools]) -> None:
        self._find = find
        self.without = 0

    def __call__(self, images: Pixels) -> Bools:
        """bool [n, 224, 224] of images float32 [n, 224, 224]."""
        found = self._find(images)
        self.without += int((~found.any(axis=(1, 2))).sum())
        return found


def cenet_lungs(checkpoint: Path) -> Callable[[Pixels], Bools]:
    """Finds lungs with the CE-Net of a ``train cenet`` or ``train xception`` checkpoint: bool [n, 224, 224].

    Raises
    ------
    InputError
        No such file, not such a checkpoint, or weights that are NaN or infinite.
    """
    if not checkpoint.is_file():
        raise InputError("no such file", place=str(checkpoint), advice="--lung-model RUN/checkpoint.pt")
    state = load_checkpoint(checkpoint)
    try:
        identity = state["identity"]
        made = identity.get("cenet", identity)
        net = build_cenet(made["encoder"], made["width"], imagenet=False, seed=0)
        net.load_state_dict(state["modules"]["cenet"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as e:
        raise InputError("is not a checkpoint of 'train cenet' or 'train xception'", place=str(checkpoint)) from e
    if not_finite(net.state_dict()):
        raise InputError("holds weights that are NaN or infinite", place=str(checkpoint))
    net.eval()

    def find(images: Pixels) -> Bools:
        found = []
        with torch.inference_mode():
            for at in range(0, len(images), BATCH):
                x = torch.from_numpy(images[at : at + BATCH])[:, None]
                found.append((net(standardise(x))[:, 0] > 0).numpy())
        return np.concatenate(found)

    return find


def classical_lungs(images: Pixels) -> Bools:
    """Finds lungs without a model: bool [n, 224, 224].

    At half the size: dark regions (Otsu's threshold of each image) that are not connected to the border of the image
    (that is the air around the body), opened by 3x3 so that specks go. Lungs that a crop has opened to the border are
    missed.
    """
    halved = nn.functional.avg_pool2d(torch.from_numpy(images)[:, None], 2)
    dark = [image < _otsu(image) for image in halved[:, 0].numpy()]
    x = torch.from_numpy(np.stack(dark).astype(np.float32))[:, None]
    outside = torch.zeros_like(x)
    for edge in (outside[..., 0, :], outside[..., -1, :], outside[..., :, 0], outside[..., :, -1]):
        edge.fill_(1.0)
    outside *= x
    while True:  # what is dark and touches what is outside is outside too
        grown = nn.functional.max_pool2d(outside, 3, 1, 1) * x
        if torch.equal(grown, outside):
            break
        outside = grown
    inside = x - outside
    eroded = -nn.functional.max_pool2d(-inside, 3, 1, 1)
    opened = nn.functional.max_pool2d(eroded, 3, 1, 1)
    return np.asarray(nn.functional.interpolate(opened, scale_factor=2.0)[:, 0].numpy() > 0)


def _otsu(image: Pixels) -> float:
    """The threshold that parts an image's histogram best (Otsu 1979)."""
    counts, edges = np.histogram(image, bins=256, range=(0.0, 1.0))
    share = counts / counts.sum()
    middle = (edges[:-1] + edges[1:]) / 2
    below = share.cumsum()
    mass = (share * middle).cumsum()
    both = below * (1 - below)
    between = np.divide((mass[-1] * below - mass) ** 2, both, out=np.zeros_like(both), where=both > 0)
    return float(edges[int(between.argmax()) + 1])


def random_twin(embedder: Embedder, images: Pixels, seed: int) -> Extractor:
    """The first pack's architecture with random weights: prepared images -> unit vectors.

    Batch norms take the statistics, and the compaction (PCA, at most the pack's dimension) the axes, of ``images``,
    which belong to the index: the twin lacks nothing but what training taught.

    Raises
    ------
    InputError
        The pack's network is of a kind that cannot be drawn anew.
    """
    net = copy.deepcopy(embedder.pack.network)
    if not isinstance(net, EmbeddingNet):
        raise InputError("random weights are not possible for this kind of network", place=str(embedder.pack.folder))
    batches = [torch.from_numpy(images[at : at + BATCH]).to(embedder.device) for at in range(0, len(images), BATCH)]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in net.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None  # torch: a plain average over the batches that follow
            norm.train()
        for batch in batches[:NORM_BATCHES]:
            net.full(batch)
        net.eval()
        full = torch.cat([net.full(batch).cpu() for batch in batches])
        net.compaction = Compaction(full.shape[1], min(embedder.dim, len(full) - 1))
        net.fit(full)
        net.compaction.to(embedder.device)

    def embed(batch: Pixels) -> Vectors:
        with torch.inference_mode():
            parts = [
                net(torch.from_numpy(batch[at : at + BATCH]).to(embedder.device)).cpu().numpy()
                for at in range(0, len(batch), BATCH)
            ]
        return np.concatenate(parts)

    return embed

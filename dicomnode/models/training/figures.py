"""The figures on a model card: retrieval with patient-clustered confidence intervals, and the controls beside it.

Index is COVID-CT's training split, queries its validation split; no patient is in both. Every figure stands beside
controls that see no lungs, because much of the signal in this data set is not disease. Pure functions on arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

KS = (1, 5, 10, 50)
BOOTSTRAP = 1000
LOW, HIGH = 2.5, 97.5
SMALL = 32  # side of the raw-pixel control

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def unit_rows(x: npt.NDArray[Any]) -> Floats:
    """Each row divided by its length."""
    y = x.astype(np.float32)
    return np.asarray(y / (np.linalg.norm(y, axis=1, keepdims=True) + 1e-9), dtype=np.float32)


def relevance(index: Floats, index_labels: Ints, queries: Floats, query_labels: Ints) -> npt.NDArray[np.float64]:
    """P@1, P@5, P@10, P@50 and average precision of each query [n, 5], by cosine."""
    order = np.argsort(-(unit_rows(queries) @ unit_rows(index).T), axis=1, kind="stable")
    hit = (index_labels[order] == query_labels[:, None]).astype(np.float64)
    found = hit.cumsum(1)
    precision = found / np.arange(1, hit.shape[1] + 1)
    average = (precision * hit).sum(1) / hit.sum(1).clip(min=1)
    return np.stack([*(precision[:, min(k, hit.shape[1]) - 1] for k in KS), average], axis=1)


def macro(rows: npt.NDArray[np.float64], labels: Ints) -> npt.NDArray[np.float64]:
    """Mean over classes of the mean over queries."""
    means: npt.NDArray[np.float64] = np.stack([rows[labels == c].mean(0) for c in np.unique(labels)])
    return np.asarray(means.mean(0), dtype=np.float64)


def with_interval(rows: npt.NDArray[np.float64], labels: Ints, groups: npt.NDArray[np.str_], seed: int = 0) -> Any:
    """Macro figures with 95 % intervals from a bootstrap over patients within each class.

    Returns
    -------
    dict
        ``{"precision": {"1": V, ...}, "map": V}`` with V = {"mean", "ci"}.
    """
    rng = np.random.default_rng(seed)
    draws = []
    for c in np.unique(labels):
        mine = [rows[(groups == g) & (labels == c)] for g in np.unique(groups[labels == c])]
        sums, counts = np.stack([m.sum(0) for m in mine]), np.array([len(m) for m in mine])
        chosen = rng.integers(0, len(mine), (BOOTSTRAP, len(mine)))
        draws.append(sums[chosen].sum(1) / counts[chosen].sum(1)[:, None])
    low, high = np.percentile(np.mean(draws, axis=0), [LOW, HIGH], axis=0)
    mean = macro(rows, labels)
    v = [
        {"mean": round(float(m), 4), "ci": [round(float(a), 4), round(float(b), 4)]}
        for m, a, b in zip(mean, low, high, strict=True)
    ]
    return {"precision": {str(k): v[i] for i, k in enumerate(KS)}, "map": v[-1]}


def chance(index_labels: Ints, query_labels: Ints) -> float:
    """Expected macro P@k of a random order: the mean over classes of the class's share of the index."""
    return float(np.mean([(index_labels == c).mean() for c in np.unique(query_labels)]))


def raw_pixels(images: npt.NDArray[np.uint8]) -> Floats:
    """The control every model must beat: 32x32 grey pixels, centred."""
    small = [Image.fromarray(i).resize((SMALL, SMALL), Image.Resampling.BOX) for i in images]
    x = np.stack([np.asarray(i, dtype=np.float32).ravel() for i in small])
    return np.asarray(x - x.mean(1, keepdims=True), dtype=np.float32)


def table(rows: Mapping[str, Any]) -> str:
    """A Markdown table of named figures."""
    lines = ["| | P@1 | P@10 [95 % CI] | P@50 | mAP [95 % CI] |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        p, m = row["precision"], row["map"]
        lines.append(
            f"| {name} | {p['1']['mean']:.3f} | {_interval(p['10'])} | {p['50']['mean']:.3f} | {_interval(m)} |"
        )
    return "\n".join(lines)


def _interval(v: Mapping[str, Any]) -> str:
    return f"{v['mean']:.3f} [{v['ci'][0]:.2f}, {v['ci'][1]:.2f}]"

"""Two models side by side on this repository, before one of them is put in force; neither is, by looking.

Vectors that are kept are used; what a model lacks is embedded for the comparison and not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dicomnode.domain import FindingStatus, PseudoUid
from dicomnode.evaluation.findings import MIN_PATIENTS, Precision, precision_at
from dicomnode.workflow.captures import LABELS, capture_pixels
from dicomnode.workflow.context import Context, Progress

K = 10
NO_FINDING = "stated: none"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two models make of one repository.

    Attributes
    ----------
    overlap : share of common studies among the ten nearest of other patients, 0..1; None under three studies.
    studies : compared; ``skipped``: without a vector of one of the two.
    precision : of each model, by findings; None with fewer than ``MIN_PATIENTS`` labelled patients.
    """

    overlap: float | None
    studies: int
    skipped: int
    precision: tuple[Precision | None, Precision | None]

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The object of ``models compare --json``."""
        said = {n: None if p is None else asdict(p) for n, p in zip(("one", "other"), self.precision, strict=True)}
        return {
            "overlap_at_10": self.overlap,
            "studies": self.studies,
            "skipped": self.skipped,
            "models": {"one": names[0], "other": names[1]},
            "precision_at_10": said,
            "needed_labelled_patients": MIN_PATIENTS,
        }


def compare(one: Context, other: Context, progress: Progress | None = None) -> Comparison:
    """Compare two models by one vector a study, the mean over its slices."""
    studies = one.catalogue.study_sources()
    means: tuple[list[Floats], list[Floats]] = ([], [])
    kept: list[tuple[PseudoUid, str]] = []
    for done, (study, patient, source) in enumerate(studies):
        if progress:
            progress(done, len(studies))
        pair = [_mean(ctx, study, source) for ctx in (one, other)]
        if pair[0] is None or pair[1] is None:
            continue
        kept.append((study, patient))
        means[0].append(pair[0])
        means[1].append(pair[1])
    if progress:
        progress(len(studies), len(studies))
    owner = [patient for _, patient in kept]
    rows = [np.stack(m) if m else np.empty((0, 1), dtype=np.float32) for m in means]
    stated = [_stated(one, study) for study, _ in kept]
    precision = [precision_at(r, owner, stated, K) for r in rows]
    return Comparison(
        overlap_at(rows[0], rows[1], owner), len(kept), len(studies) - len(kept), (precision[0], precision[1])
    )


def overlap_at(one: Floats, other: Floats, patients: Sequence[str], k: int = K) -> float | None:
    """Mean share of common rows among the ``k`` nearest of other patients; None under three rows.

    Parameters
    ----------
    one, other : float32 [n, dim]
        Unit vectors, a row a study; the dimensions may differ.
    """
    owner = np.asarray(patients)
    if len(owner) < 3:
        return None
    nearest = []
    for rows in (one, other):
        score = rows @ rows.T
        score[owner[:, None] == owner[None]] = -np.inf
        nearest.append(np.argsort(-score, axis=1, kind="stable")[:, :k])
    allowed = [int((owner != p).sum()) for p in owner]
    shares = [
        len(set(a[:n].tolist()) & set(b[:n].tolist())) / min(k, n)
        for a, b, n in zip(*nearest, allowed, strict=True)
        if n
    ]
    return float(np.mean(shares)) if shares else None


def _mean(ctx: Context, study: PseudoUid, source: str) -> Floats | None:
    vectors = ctx.vectors.vectors_of(study)
    if not len(vectors):
        paths = [ctx.objects.path(k.path) for k in ctx.catalogue.known_instances(study)]
        paths = [p for p in paths if p.exists()]
        if source == LABELS and paths:
            vectors = ctx.embedder.embed_images(np.stack([capture_pixels(p) for p in paths]))
        elif paths:
            vectors = ctx.embedder.embed_study(paths, gated=not ctx.catalogue.was_chosen(study)).vectors
    if not len(vectors):
        return None
    mean = vectors.mean(axis=0)
    unit: Floats = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return unit


def _stated(ctx: Context, study: PseudoUid) -> frozenset[str]:
    """What sources state of a study; empty where its status is unknown."""
    status = ctx.catalogue.status_of(study)
    if status is FindingStatus.NONE:
        return frozenset({NO_FINDING})
    if status is not FindingStatus.PRESENT:
        return frozenset()
    return frozenset(f"{f.system} {f.code}" for f in ctx.catalogue.findings(study))

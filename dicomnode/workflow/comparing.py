"""Two models side by side on this repository, before one of them is put in force; neither is, by looking.

Vectors that are kept are used; what a model lacks is embedded for the comparison and not kept. Opens no vault and no
spool. Precision stands beside what a random order of the same studies reaches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dicomnode.domain import FindingStatus, PseudoUid
from dicomnode.evaluation.findings import MIN_PATIENTS, Precision, precision_at
from dicomnode.evaluation.labels import TRAINED_ON
from dicomnode.workflow.captures import LABELS, capture_pixels
from dicomnode.workflow.context import EmbedPort, Progress, VectorPort
from dicomnode.workflow.embedding import StudyEmbedder

if TYPE_CHECKING:
    from dicomnode.archive.catalogue import Catalogue
    from dicomnode.archive.objects import ObjectStore
    from dicomnode.workflow.models import Model

K = 10
NO_FINDING = "stated: none"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Side:
    """One model beside the repository: what is read for a comparison."""

    catalogue: Catalogue
    objects: ObjectStore
    vectors: VectorPort
    embedder: EmbedPort

    @classmethod
    def of(cls, catalogue: Catalogue, objects: ObjectStore, model: Model) -> Side:
        """Of a model, whose networks are loaded where a study lacks vectors."""
        embedder = StudyEmbedder(model.model_id, model.embedder, model.manifest.taught)
        return cls(catalogue, objects, model.index, embedder)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two models make of one repository.

    Attributes
    ----------
    overlap : share of common studies among the ten nearest of other patients, 0..1; None under three studies.
    studies : compared; ``skipped``: without a vector of one of the two.
    precision : of each model, by findings; None with fewer than ``MIN_PATIENTS`` labelled patients.
    random_order : expected precision of a random order of the same studies; None where there is no precision.
    """

    overlap: float | None
    studies: int
    skipped: int
    precision: tuple[Precision | None, Precision | None]
    random_order: float | None

    @property
    def notes(self) -> list[str]:
        """Lines to read the figures by, as ``dicomnode evaluate`` has them."""
        return [] if self.random_order is None else [TRAINED_ON]

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The object of ``models compare --json``."""
        said = {n: None if p is None else asdict(p) for n, p in zip(("one", "other"), self.precision, strict=True)}
        return {
            "overlap_at_10": self.overlap,
            "studies": self.studies,
            "skipped": self.skipped,
            "models": {"one": names[0], "other": names[1]},
            "precision_at_10": said,
            "random_order_at_10": self.random_order,
            "needed_labelled_patients": MIN_PATIENTS,
            "notes": self.notes,
        }


def compare(one: Side, other: Side, progress: Progress | None = None) -> Comparison:
    """Compare two models by one vector a study, the mean over its slices."""
    studies = one.catalogue.study_sources()
    means: tuple[list[Floats], list[Floats]] = ([], [])
    kept: list[tuple[PseudoUid, str]] = []
    for done, (study, patient, source) in enumerate(studies):
        if progress:
            progress(done, len(studies))
        pair = [_mean(side, study, source) for side in (one, other)]
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
    precision = (precision_at(rows[0], owner, stated, K), precision_at(rows[1], owner, stated, K))
    chance = None if None in precision else random_precision(owner, stated)
    overlap = overlap_at(rows[0], rows[1], owner)
    return Comparison(overlap, len(kept), len(studies) - len(kept), precision, chance)


def random_precision(patients: Sequence[str], findings: Sequence[frozenset[str]]) -> float:
    """What ``precision_at`` expects of a random order of the same studies; exact, and the same at every k.

    Of each labelled study the share of labelled studies of other patients that share a finding with it; their mean.
    At least two patients are labelled.
    """
    labelled = [(p, f) for p, f in zip(patients, findings, strict=True) if f]
    kinds = Counter(f for _, f in labelled)
    sharing = {kind: sum(n for other, n in kinds.items() if kind & other) for kind in kinds}
    own: dict[str, list[frozenset[str]]] = {}
    for patient, stated in labelled:
        own.setdefault(patient, []).append(stated)
    shares = [
        (sharing[stated] - sum(bool(stated & mine) for mine in own[patient])) / (len(labelled) - len(own[patient]))
        for patient, stated in labelled
    ]
    return float(np.mean(shares))


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


def _mean(side: Side, study: PseudoUid, source: str) -> Floats | None:
    vectors = side.vectors.vectors_of(study)
    if not len(vectors):
        paths = [side.objects.path(k.path) for k in side.catalogue.known_instances(study)]
        paths = [p for p in paths if p.exists()]
        if source == LABELS and paths:
            vectors = side.embedder.embed_images(np.stack([capture_pixels(p) for p in paths]))
        elif paths:
            vectors = side.embedder.embed_study(paths, gated=not side.catalogue.was_chosen(study)).vectors
    if not len(vectors):
        return None
    mean = vectors.mean(axis=0)
    unit: Floats = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return unit


def _stated(side: Side, study: PseudoUid) -> frozenset[str]:
    """What sources state of a study; empty where its status is unknown."""
    status = side.catalogue.status_of(study)
    if status is FindingStatus.NONE:
        return frozenset({NO_FINDING})
    if status is not FindingStatus.PRESENT:
        return frozenset()
    return frozenset(f"{f.system} {f.code}" for f in side.catalogue.findings(study))

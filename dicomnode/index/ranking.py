"""From similar slices to similar studies: candidates, late interaction, one study a patient.

Candidates are fused by reciprocal rank (Cormack et al. 2009) from a normalised count of hits and the best hit; they are
ranked by MaxSim (Khattab and Zaharia 2020) in both directions with a prior on the position in the volume. Works on a
Resident alone: never asks the catalogue, never writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain import NOT_TOLD, Shows
from dicomnode.index import exact
from dicomnode.index.build import SEARCH_K
from dicomnode.index.resident import Resident
from dicomnode.index.search import Searcher
from dicomnode.index.segments import Vectors

RRF_K = 60  # Cormack, Clarke and Buettcher 2009
CANDIDATES = 200  # studies re-ranked: 32 x 200 x 32 cosines of 256 values take some milliseconds
RANKED_PATIENTS = 20  # ranked at least, whatever k: the verdict must not depend on it; copies take some
NEAR_COPY = 0.98  # query slices this alike have one vote (neighbouring slices of a thin series)
SPREAD = 8  # query slices that look through the whole repository where the nearest slices show too few patients
Z_BAND = 0.1  # of the volume: slices this near in height match freely
Z_PENALTY = 0.2  # cosine lost per unit of height beyond the band: .18 from one end to the other
UNLIKE = 0.5  # share of its score that a study keeps whose headers name another modality or region than the query's
SAME_IMAGES = 0.9995  # MaxSim between two cases that show the same images under two pseudonyms
SAME_SCORE = 0.005  # cases that are copies score alike: only these are compared
DECIMALS = 6
ROUNDING = 1e-5  # of a cosine in float32, whatever the order of its sum


@dataclass(frozen=True)
class Probe:
    """What is searched for.

    Attributes
    ----------
    vectors : float32 [m, dim]
        Unit vectors.
    z : float32 [m]
        Positions in the volume, NaN if unknown.
    shows : Shows
        Modality and region of the body, as the headers say.
    """

    vectors: Vectors
    z: NDArray[np.float32]
    shows: Shows = NOT_TOLD


class Ranked(NamedTuple):
    """A study (number in ``Resident.names``) and its score: a mean of cosines less the prior's penalty (``rank``)."""

    study: int
    score: float


def rank(
    searcher: Searcher, now: Resident, probe: Probe, mask: NDArray[np.bool_], patients: int, *, depth: int = CANDIDATES
) -> list[Ranked]:
    """Best study of each patient that is open, best first.

    No network here was taught to compare a CT with an MR, or a head with a chest, so where the headers say that a study
    is of another modality or of other regions than the probe its score is halved (``UNLIKE``), and it is looked for
    only where too few patients have the probe's own.

    Parameters
    ----------
    searcher, now : Searcher, Resident
        The repository at one revision.
    probe : Probe
    mask : bool [n]
        Rows that may be answers; whole studies.
    patients : int
        How many patients are wanted; more may come back, fewer only where fewer are open.
    depth : int
        Studies to re-rank.

    Returns
    -------
    list of Ranked
        Equal scores (to six decimals): the smaller study UID first.
    """
    if not len(probe.vectors) or not mask.any():
        return []
    depth = max(depth, 4 * patients)
    owner = np.asarray(now.names.study_patient, dtype=np.int64)
    other = now.unlike(probe.shows)
    same = mask & ~other[now.study] if other.any() else mask
    candidates = _candidates_of(searcher, now, probe.vectors, same, patients, depth)
    if other.any() and len(np.unique(owner[candidates])) < patients:
        more = _candidates_of(searcher, now, probe.vectors, mask & other[now.study], patients, depth)
        candidates = np.union1d(candidates, more)
    scores = rerank(now, probe, candidates)
    scores = np.where(other[candidates], np.minimum(scores, UNLIKE * scores), scores).round(DECIMALS)
    names = now.names.studies
    order = sorted(range(len(candidates)), key=lambda i: (-scores[i], names[candidates[i]]))
    seen: set[int] = set()
    ranked = []
    for i in order:
        patient = int(owner[candidates[i]])
        if patient not in seen:
            seen.add(patient)
            ranked.append(Ranked(int(candidates[i]), float(scores[i])))
    return ranked


def similarities(now: Resident, probe: Probe, rows: NDArray[np.int64]) -> tuple[Vectors, Vectors]:
    """Cosines of the probe with ``rows`` [m, r], and the same less the prior's penalty for height."""
    cosines = probe.vectors @ now.matrix[rows].T
    apart = np.abs(probe.z[:, None] - now.z[rows][None, :])
    penalty = Z_PENALTY * np.maximum(apart - Z_BAND, 0.0)
    return cosines, cosines - np.nan_to_num(penalty, nan=0.0).astype(np.float32)


def rerank(now: Resident, probe: Probe, studies: NDArray[np.int64]) -> NDArray[np.float64]:
    """Late-interaction score of each study.

    The mean over query slices of their best match in the study, and the mean over the study's slices of their best
    match in the query. Both weigh the same, but where the query has fewer slices than the study (one image asked about)
    the second weighs less in that proportion: slices nobody asked about are no evidence against the study.
    """
    counts = now.study_count[studies]
    rows = np.concatenate([now.rows_of(int(study)) for study in studies])
    starts = np.cumsum(counts) - counts
    _, scores = similarities(now, probe, rows)
    forward = np.maximum.reduceat(scores, starts, axis=1).mean(axis=0, dtype=np.float64)
    backward = np.add.reduceat(scores.max(axis=0).astype(np.float64), starts) / counts
    weight = 0.5 * np.minimum(1.0, len(probe.vectors) / counts)
    mixed: NDArray[np.float64] = (1.0 - weight) * forward + weight * backward
    return mixed


def without_copies(now: Resident, ranked: list[Ranked], wanted: int) -> list[Ranked]:
    """The first ``wanted`` cases, near copies of a better one left out unless too few would remain."""
    kept: list[Ranked] = []
    copies: list[Ranked] = []
    first = 0  # kept cases before this one score too much better to be compared: the best come first
    for case in ranked:
        if len(kept) == wanted:
            break
        while first < len(kept) and kept[first].score - case.score >= SAME_SCORE:
            first += 1
        same = _among(now, case.study, [other.study for other in kept[first:]])
        (copies if same else kept).append(case)
    kept += copies[: wanted - len(kept)]
    place = {case.study: i for i, case in enumerate(ranked)}
    return sorted(kept, key=lambda case: place[case.study])


def best_pairs(now: Resident, probe: Probe, study: int, wanted: int) -> list[tuple[int, int, float]]:
    """Best matching pairs (query slice, position, cosine), each slice in one pair at most, best first."""
    rows = now.rows_of(study)
    cosines, scores = similarities(now, probe, rows)
    order = np.lexsort((np.arange(scores.size), -np.round(scores, DECIMALS).ravel()))
    pairs: list[tuple[int, int, float]] = []
    used_queries: set[int] = set()
    used_rows: set[int] = set()
    for flat in order:
        q, r = divmod(int(flat), len(rows))
        if q in used_queries or r in used_rows:
            continue
        used_queries.add(q)
        used_rows.add(r)
        pairs.append((q, int(rows[r]), float(cosines[q, r])))
        if len(pairs) == wanted:
            break
    return pairs


def _candidates_of(
    searcher: Searcher, now: Resident, vectors: Vectors, mask: NDArray[np.bool_], patients: int, depth: int
) -> NDArray[np.int64]:
    """Studies of the rows in ``mask`` to re-rank: the nearest, of at least ``patients`` patients where there are."""
    if not mask.any():
        return np.empty(0, dtype=np.int64)
    candidates = _candidates(searcher, now, vectors, mask, depth)
    if len(np.unique(now.study_patient[candidates])) < patients:
        candidates = np.union1d(candidates, _nearest_patients(now, vectors, mask, depth))
    return candidates


def _candidates(
    searcher: Searcher, now: Resident, vectors: Vectors, mask: NDArray[np.bool_], depth: int
) -> NDArray[np.int64]:
    """Studies hit by the nearest slices, fused from normalised count and best hit; at most ``depth``."""
    votes = vectors[_distinct(vectors)]
    positions, similarity = searcher.search_rows(now, votes, SEARCH_K, mask)
    query, column = np.nonzero(positions >= 0)
    studies = now.study[positions[query, column]].astype(np.int64)
    hit, where = np.unique(studies, return_inverse=True)
    best = np.full(len(hit), -np.inf)
    np.maximum.at(best, where, similarity[query, column])
    pairs = np.unique(np.stack([where, query], axis=1), axis=0)  # a query slice votes once for a study
    count = np.bincount(pairs[:, 0], minlength=len(hit)) / np.sqrt(now.study_count[hit])
    fused = 1.0 / (RRF_K + _ranks(count)) + 1.0 / (RRF_K + _ranks(best))
    return hit[np.lexsort((hit, -fused))[:depth]]


def _nearest_patients(now: Resident, vectors: Vectors, mask: NDArray[np.bool_], depth: int) -> NDArray[np.int64]:
    """Where the nearest slices belong to too few patients: the best study of each patient by its best slice.

    Looks at every open row, but with at most ``SPREAD`` of the query's slices, evenly spread.
    """
    few = vectors[:: -(-len(vectors) // SPREAD)]
    nearest = np.full(now.n, -np.inf, dtype=np.float32)
    step = max(1, exact.BLOCK_VALUES // now.n)
    for start in range(0, len(few), step):
        np.maximum(nearest, (few[start : start + step] @ now.matrix.T).max(axis=0), out=nearest)
    nearest = np.where(mask, np.round(nearest, DECIMALS), -np.inf)
    by_study = np.maximum.reduceat(nearest[now.by_study], now.study_start)
    order = np.lexsort((np.arange(len(by_study)), -by_study))
    order = order[np.isfinite(by_study[order])]
    _, first = np.unique(np.asarray(now.names.study_patient, dtype=np.int64)[order], return_index=True)
    return order[np.sort(first)[:depth]]


def _distinct(vectors: Vectors) -> list[int]:
    """Query slices that are no near copy of an earlier one."""
    cosines = vectors @ vectors.T
    kept: list[int] = []
    for i in range(len(vectors)):
        if not kept or float(cosines[i, kept].max()) <= NEAR_COPY:
            kept.append(i)
    return kept


def _ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank of each value, the largest 1, equal ones alike."""
    _, inverse = np.unique(-np.round(values, DECIMALS), return_inverse=True)
    return inverse + 1


def _among(now: Resident, study: int, others: list[int]) -> bool:
    """Whether a study shows the same images as one of the others."""
    count = now.study_count[study]
    likely = [other for other in others if now.study_count[other] == count]
    if count == 1 and likely:  # plain pictures: hundreds may be compared for one answer
        rows = [now.by_study[now.study_start[other]] for other in likely]
        return bool((now.matrix[rows] @ now.matrix[now.by_study[now.study_start[study]]]).max() >= SAME_IMAGES)
    return any(_alike(now, other, study) for other in likely)


def _alike(now: Resident, a: int, b: int) -> bool:
    rows_a, rows_b = now.rows_of(a), now.rows_of(b)
    # One slice alone tells nearly all pairs apart, at a tenth of the cost; rounding may differ in the last places.
    if float((now.matrix[rows_b] @ now.matrix[rows_a[0]]).max()) < SAME_IMAGES - ROUNDING:
        return False
    cosines = now.matrix[rows_a] @ now.matrix[rows_b].T
    return bool(min(cosines.max(axis=0).min(), cosines.max(axis=1).min()) >= SAME_IMAGES)

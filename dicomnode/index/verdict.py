"""Whether the nearest cases may be called similar: a conformal p value against the repository's own patients.

For each patient of the repository (a fixed sample of a large one) the distance to its k-th nearest other patient is
what a study that belongs here looks like; a query farther out than nearly all of them has no similar case
(inductive conformal prediction, Vovk et al. 2005). Never looks at findings. Below 20 other patients the smallest p,
1/(n+1), cannot be under .05, and none is given.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from dicomnode.domain import MIN_PATIENTS_FOR_P, P_NONE, ModelId, Pseudonym, Verdict, VerdictKind, too_few
from dicomnode.index import segments as files
from dicomnode.index.ranking import RANKED_PATIENTS, Probe, Ranked, rank
from dicomnode.index.resident import Resident
from dicomnode.index.search import Searcher

log = structlog.get_logger(__name__)

NEIGHBOUR = 5  # the k of "k-th nearest patient": fixed, so that -k does not change the verdict
SAMPLE = 200  # patients in the reference of a large repository: p in steps of .005
STALE_SHARE = 0.05  # patients that may have come since, before a large reference is computed again
LARGE = 100  # patients from which a reference may be that old
BUCKETS = (1, 2, 4, 8, 16, 32)  # slices of a probe: few slices give noisier distances, so like is compared with like
CACHES = "reference-*.json"  # one a model
SCORING = 3  # of ``ranking``: distances by another rule are computed again


class Reference(NamedTuple):
    """Leave-one-patient-out distances, one a patient, aligned with the pseudonyms."""

    patients: tuple[Pseudonym, ...]
    distances: tuple[float, ...]


@dataclass(frozen=True)
class _Stamp:
    """What a reference was computed from."""

    model: str
    removals: int
    excluded: str
    last: int  # the newest vector of the model: another model's coming changes nothing
    patients: int
    scoring: int

    def fits(self, now: _Stamp) -> bool:
        """Whether it still serves ``now``: nothing removed or excluded since, and few patients more."""
        if (self.model, self.removals, self.excluded, self.scoring) != (
            now.model,
            now.removals,
            now.excluded,
            now.scoring,
        ):
            return False
        grown = now.patients - self.patients
        return self.last == now.last or (self.patients >= LARGE and grown <= STALE_SHARE * self.patients)


def distance(ranked: list[Ranked]) -> float:
    """Distance of the ``NEIGHBOUR``-th nearest patient (the last, where there are fewer): 1 - score."""
    return 1.0 - ranked[min(NEIGHBOUR, len(ranked)) - 1].score if ranked else np.inf


def decide(query: float, reference: NDArray[np.float64], patients: int) -> Verdict:
    """The verdict for a query at distance ``query``, with ``patients`` others open to the search."""
    if patients < MIN_PATIENTS_FOR_P or len(reference) < MIN_PATIENTS_FOR_P:
        return Verdict(VerdictKind.REPOSITORY_TOO_SMALL, None, too_few(patients))
    p = (1 + int(np.count_nonzero(reference >= query))) / (len(reference) + 1)
    if p < P_NONE:
        return Verdict(
            VerdictKind.NONE, p, "farther from its nearest cases than the repository's patients are from theirs"
        )
    return Verdict(VerdictKind.SIMILAR, p, "as near to its nearest cases as the repository's patients are to theirs")


class References:
    """Computes references, keeps them in memory and beside the index for the next process."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self._path = cache_path(searcher.store.folder, searcher.store.model_id)
        self._lock = threading.Lock()
        self._held: dict[int, tuple[_Stamp, Reference]] = {}

    def verdict(
        self, now: Resident, ranked: list[Ranked], slices: int, own: Pseudonym | None, patients: int
    ) -> Verdict:
        """Verdict on a query of ``slices`` slices whose unfiltered ranking is ``ranked``.

        The query's own patient does not count, neither among ``patients`` nor in the reference.
        """
        if patients < MIN_PATIENTS_FOR_P:
            return decide(distance(ranked), np.empty(0), patients)
        reference = self.reference(now, slices)
        kept = [d for name, d in zip(*reference, strict=True) if name != own]
        return decide(distance(ranked), np.asarray(kept), patients)

    def reference(self, now: Resident, slices: int) -> Reference:
        """Reference for probes of ``slices`` slices; cached. Cost: a retrieval a sampled patient (docs/index.md)."""
        bucket = max(size for size in BUCKETS if size <= max(1, slices))
        mask = now.open_rows()
        stamp = self._stamp(now, mask)
        with self._lock:
            for look in (self._held.get, self._read):
                source = look(bucket)
                if source is not None and source[0].fits(stamp):
                    self._held[bucket] = source
                    return source[1]
            made = self._compute(now, mask, bucket)
            self._held[bucket] = (stamp, made)
            self._write()
        return made

    def _compute(self, now: Resident, mask: NDArray[np.bool_], bucket: int) -> Reference:
        names = now.names
        patients = sorted((names.patients[p] for p in now.patients_in(mask)), key=_shuffled)[:SAMPLE]
        own_studies: dict[int, list[int]] = {}
        for study in now.studies_in(mask):
            own_studies.setdefault(names.study_patient[study], []).append(int(study))
        distances = []
        for name in patients:
            patient = names.patient_of[name]
            study = min(own_studies[patient], key=lambda s: _shuffled(names.studies[s]))
            ranked = rank(
                self._searcher, now, _probe(now, study, bucket), mask & (now.patient != patient), RANKED_PATIENTS
            )
            distances.append(float(distance(ranked)))
        log.info("reference_computed", patients=len(patients), slices=bucket)
        return Reference(tuple(patients), tuple(distances))

    def _stamp(self, now: Resident, mask: NDArray[np.bool_]) -> _Stamp:
        excluded = hashlib.sha256("\n".join(sorted(now.state.excluded)).encode()).hexdigest()
        patients = len(now.patients_in(mask))
        last = int(now.ids[-1]) if now.n else -1
        return _Stamp(self._searcher.store.model_id, now.state.removals, excluded, last, patients, SCORING)

    def _read(self, bucket: int) -> tuple[_Stamp, Reference] | None:
        """The reference that another process left; a file that cannot be read is computed again."""
        try:
            entry = json.loads(self._path.read_bytes())[str(bucket)]
            patients = tuple(Pseudonym(name) for name in entry["patients"])
            return _Stamp(**entry["stamp"]), Reference(patients, tuple(map(float, entry["distances"])))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            log.info("reference_not_reused", slices=bucket)
            return None

    def _write(self) -> None:
        entries = {
            str(bucket): {"stamp": stamp.__dict__, "patients": made.patients, "distances": made.distances}
            for bucket, (stamp, made) in self._held.items()
        }
        files.write_file(self._path, json.dumps(entries).encode())


def remove_cache(folder: Path) -> None:
    """Forget the references on disk: they name patients, and one of them was removed."""
    for path in folder.glob(CACHES):
        path.unlink(missing_ok=True)


def cache_path(folder: Path, model_id: ModelId) -> Path:
    """Where the references of one model lie."""
    return folder / CACHES.replace("*", hashlib.sha256(model_id.encode()).hexdigest()[:16])


def _probe(now: Resident, study: int, slices: int) -> Probe:
    """A study of the repository as a query of at most ``slices`` slices, evenly spread over it."""
    rows = now.rows_of(study)
    rows = rows[np.lexsort((rows, np.nan_to_num(now.z[rows], nan=0.0)))]
    if len(rows) > slices:
        rows = rows[((np.arange(slices) + 0.5) * len(rows) / slices).astype(np.int64)]
    return Probe(now.matrix[rows], now.z[rows], now.shows(study))


def _shuffled(name: str) -> bytes:
    """A fixed random order that additions barely disturb."""
    return hashlib.sha256(name.encode()).digest()

"""Generated repositories for the tests of the index: patients in clusters, in a real catalogue and index folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert, select, update

from dicomnode.archive.database import open_engine
from dicomnode.archive.schema import findings, instances, metadata, patients, series, studies
from dicomnode.domain import Finding, ModelId, Pseudonym, PseudoUid, SliceRef
from dicomnode.index.repository import VectorIndex

MODEL = ModelId("model-a")
DIM = 32


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of length 1, float32."""
    rows = np.asarray(rows, dtype=np.float64)
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def open_index(folder: Path, *, dim: int = DIM, model: ModelId = MODEL, **options: object) -> VectorIndex:
    """An index in ``folder`` with its catalogue beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = open_engine(folder / "catalogue.sqlite")
    metadata.create_all(engine)
    return VectorIndex(folder / "index", engine, model, dim, **options)  # type: ignore[arg-type]


def slices(patient: str, study: str, n: int, *, spread: bool = True) -> list[SliceRef]:
    """References to the ``n`` slices of one series of a study."""
    return [
        SliceRef(
            instance=PseudoUid(f"{study}.1.{i + 1}"),
            series=PseudoUid(f"{study}.1"),
            study=PseudoUid(study),
            patient=Pseudonym(patient),
            z=i / max(1, n - 1) if spread else None,
        )
        for i in range(n)
    ]


def catalogue(
    index: VectorIndex,
    refs: Sequence[SliceRef],
    *,
    modality: str = "CT",
    described: str | None = None,
    status: str = "unknown",
    coded: Sequence[Finding] = (),
) -> None:
    """Rows of the catalogue for the study of ``refs``."""
    first, now = refs[0], time.time()
    with index.store.engine.begin() as c:
        patient_id = c.scalar(select(patients.c.id).where(patients.c.pseudonym == first.patient))
        if patient_id is None:
            row = insert(patients).values(pseudonym=first.patient, created=now).returning(patients.c.id)
            patient_id = c.execute(row).scalar_one()
        values = {"uid": first.study, "patient_id": patient_id, "modality": modality, "source": "labels"}
        row = insert(studies).values(**values, status=status, created=now).returning(studies.c.id)
        study_id = c.execute(row).scalar_one()
        row = insert(series).values(uid=first.series, study_id=study_id, modality=modality, description=described)
        row = row.returning(series.c.id)
        series_id = c.execute(row).scalar_one()
        stored = {"series_id": series_id, "sop_class": "1.2", "transfer_syntax": "1.2", "path": "p", "sha256": "0"}
        c.execute(insert(instances), [{**stored, "uid": r.instance, "bytes": 1} for r in refs])
        for finding in coded:
            values = {"system": finding.system, "code": finding.code, "display": finding.display}
            c.execute(insert(findings).values(study_id=study_id, **values, source="test"))


def add_series(index: VectorIndex, refs: Sequence[SliceRef], modality: str) -> None:
    """Another series of a study that the catalogue has."""
    with index.store.engine.begin() as c:
        study_id = c.scalar(select(studies.c.id).where(studies.c.uid == refs[0].study))
        row = insert(series).values(uid=refs[0].series, study_id=study_id, modality=modality).returning(series.c.id)
        stored = {"series_id": c.execute(row).scalar_one(), "sop_class": "1.2", "transfer_syntax": "1.2"}
        c.execute(
            insert(instances), [{**stored, "path": "p", "sha256": "0", "uid": r.instance, "bytes": 1} for r in refs]
        )


def exclude(index: VectorIndex, patient: str, excluded: bool = True) -> None:
    """What ``index exclude`` does to the catalogue."""
    with index.store.engine.begin() as c:
        c.execute(update(patients).where(patients.c.pseudonym == patient).values(excluded=excluded))


@dataclass
class Clusters:
    """Patients around common centres: each patient a cluster's centre with a deviation of its own."""

    random: np.random.Generator
    centres: NDArray[np.float32]

    @classmethod
    def make(cls, seed: int = 0, clusters: int = 4, dim: int = DIM) -> Clusters:
        random = np.random.default_rng(seed)
        return cls(random, unit(random.standard_normal((clusters, dim))))

    def study(
        self, cluster: int, n: int, patient_spread: float = 0.6, slice_spread: float = 0.3
    ) -> NDArray[np.float32]:
        """Vectors of one study of a new patient, float32 [n, dim]."""
        dim = self.centres.shape[1]
        patient = self.centres[cluster] + patient_spread * unit(self.random.standard_normal(dim))
        return unit(patient + slice_spread * unit(self.random.standard_normal((n, dim))))


def fill(index: VectorIndex, clusters: Clusters, patients_: int, n: int = 4, *, prefix: str = "p") -> None:
    """Index ``patients_`` patients with one study of ``n`` slices each."""
    for i in range(patients_):
        refs = slices(f"{prefix}{i:04d}", f"2.25.{1000 + i}", n)
        catalogue(index, refs)
        index.add(refs, clusters.study(i % len(clusters.centres), n))

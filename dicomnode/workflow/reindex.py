"""Embeds anew what the archive holds, and checks the archive's files: ``index rebuild`` and ``index verify``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from dicomnode.archive.catalogue import Catalogue
from dicomnode.archive.objects import ObjectStore, sha256_of
from dicomnode.archive.records import read_record
from dicomnode.domain import Pseudonym, PseudoUid, SliceRef
from dicomnode.errors import DicomnodeError, NotFound
from dicomnode.models.embedder import Embedder
from dicomnode.models.study import embed_study
from dicomnode.workflow.context import Context
from dicomnode.workflow.ingest import Progress
from dicomnode.workflow.labels import capture_pixels
from dicomnode.workflow.process_study import embed_paths, index_folder

log = structlog.get_logger(__name__)


def reindex(ctx: Context, progress: Progress | None = None) -> int:
    """Embed every archived study that has no vectors of the active model. Returns how many were embedded."""
    studies = ctx.catalogue.study_sources()
    embedded = 0
    for done, (study, patient, source) in enumerate(studies):
        if progress:
            progress(done, len(studies))
        if ctx.vectors.has_study(study):
            continue
        try:
            embedded += _embed_again(ctx, study, patient, source)
        except DicomnodeError as exc:
            log.warning("study_not_embedded", code=exc.code, line=exc.line)
    if progress:
        progress(len(studies), len(studies))
    return embedded


def _embed_again(ctx: Context, study: PseudoUid, patient: Pseudonym, source: str) -> bool:
    paths = [ctx.objects.path(k.path) for k in ctx.catalogue.known_instances(study)]
    if source == "labels":
        records = [read_record(p) for p in paths]
        vectors = ctx.embedder.embed_images(np.stack([capture_pixels(p) for p in paths]))
        refs = [SliceRef(r.uid, r.series_uid, study, patient) for r in records]
        return ctx.vectors.add(refs, vectors) > 0
    folder = ctx.folders.work / f"rebuild-{paths[0].parent.name[-12:]}" if paths else Path()
    if not paths:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        embed_paths(ctx, paths, folder, study)
        return index_folder(ctx, folder, study, patient) > 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def verify_archive(ctx: Context, progress: Progress | None = None) -> list[str]:
    """One line for each archived object that is missing or changed."""
    problems = []
    studies = ctx.catalogue.study_sources()
    for done, (study, _, _) in enumerate(studies):
        if progress:
            progress(done, len(studies))
        for known in ctx.catalogue.known_instances(study):
            try:
                path = ctx.objects.path(known.path)
            except NotFound:
                problems.append(f"{known.path}: not a file of the archive")
                continue
            if not path.exists():
                problems.append(f"{known.path}: the file is missing; add the study again")
            elif sha256_of(path) != known.sha256:
                problems.append(f"{known.path}: the file was changed; add the study again")
    return problems


def overlap_at_ten(catalogue: Catalogue, objects: ObjectStore, one: Embedder, other: Embedder) -> tuple[float, int]:
    """Mean share of common studies among the ten nearest of each study, by the mean vector of its key slices.

    Returns
    -------
    float, int
        overlap@10 in 0..1 (nan under three studies), and the number of studies compared.
    """
    means: list[list[npt.NDArray[np.float32]]] = [[], []]
    patients: list[str] = []
    for study, patient, source in catalogue.study_sources():
        paths = [objects.path(k.path) for k in catalogue.known_instances(study)]
        vectors = [_vectors(e, paths, source) for e in (one, other)]
        if any(len(v) == 0 for v in vectors):
            continue
        patients.append(patient)
        for side, v in zip(means, vectors, strict=True):
            side.append(v.mean(axis=0))
    if len(patients) < 3:
        return float("nan"), len(patients)
    owner = np.array(patients)
    nearest = []
    for side in means:
        rows = np.stack(side)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        score = rows @ rows.T
        score[owner[:, None] == owner[None]] = -np.inf
        nearest.append(np.argsort(-score, axis=1)[:, :10])
    allowed = [int((owner != p).sum()) for p in owner]
    shares = [
        len(set(a[:n].tolist()) & set(b[:n].tolist())) / min(10, n)
        for a, b, n in zip(*nearest, allowed, strict=True)
        if n
    ]
    return float(np.mean(shares)), len(patients)


def _vectors(embedder: Embedder, paths: list[Path], source: str) -> npt.NDArray[np.float32]:
    if source == "labels":
        return embedder.embed(np.stack([capture_pixels(p) for p in paths]))
    return embed_study(paths, embedder).vectors

"""Embeds anew what the archive holds, and checks the archive's files: ``index rebuild`` and ``index verify``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import structlog

from dicomnode.archive.objects import sha256_of
from dicomnode.archive.records import read_record
from dicomnode.domain import Pseudonym, PseudoUid, SliceRef
from dicomnode.errors import DicomnodeError, NotFound
from dicomnode.workflow.captures import LABELS, capture_pixels
from dicomnode.workflow.context import Context, Progress
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
    if source == LABELS:
        records = [read_record(p) for p in paths]
        vectors = ctx.embedder.embed_images(np.stack([capture_pixels(p) for p in paths]))
        refs = [SliceRef(r.uid, r.series_uid, study, patient) for r in records]
        return ctx.vectors.add(refs, vectors) > 0
    folder = ctx.folders.work / f"rebuild-{paths[0].parent.name[-12:]}" if paths else Path()
    if not paths:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        embed_paths(ctx, paths, folder, study, gated=not ctx.catalogue.was_chosen(study))
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

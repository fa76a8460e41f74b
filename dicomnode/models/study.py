"""A study's files to vectors: series choice, key slices, preprocessing, embedding; and one plain picture likewise.

Works on de-identified files only. One slice is decoded at a time and only key slices are kept (at most 64, 13 MB; CT
without lung twice that), so memory does not grow with the study. A slice that cannot be used is recorded with the
reason and passed over; the input gate judges what is left together, and refuses the study where most of it shows no CT
or MR slice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from dicomnode.domain import ModelId, PseudoUid
from dicomnode.models.gate import Seen, decide
from dicomnode.models.preprocess import Prepared, UnusableImage, prepare_dicom, prepare_file
from dicomnode.models.series import KEY_SLICES, NoSearch, Passed, SeriesChoice, choose

log = structlog.get_logger(__name__)

BATCH = 16  # prepared slices held at once

Floats = npt.NDArray[np.float32]
See = Callable[[PseudoUid, int, Floats], None]  # instance, frame, prepared slice float32 [224, 224]


class Embeds(Protocol):
    """What is needed of an embedder; see ``dicomnode.models.embedder.Embedder``."""

    model_id: ModelId
    dim: int

    def embed(self, images: Floats) -> Floats:
        """float32 [n, 224, 224] -> unit vectors float32 [n, dim]."""
        ...


class Sees(Protocol):
    """What is needed of the input gate; see ``dicomnode.models.gate.Gate``."""

    def see(
        self, images: Floats, *, claimed: bool = False, modality: str = "", taught: Set[str] = frozenset()
    ) -> tuple[Seen, ...]:
        """float32 [n, 224, 224] -> what each image is, and whether it passes."""
        ...


@dataclass(frozen=True, slots=True)
class EmbeddedSlice:
    """The slice a row of ``vectors`` belongs to; frame from 0; z in 0..1 from feet to head."""

    instance_uid: PseudoUid
    series_uid: PseudoUid
    frame: int
    z: float


@dataclass(frozen=True, slots=True)
class SkippedSlice:
    """A key slice without a vector: a stable reason and a sentence, both free of identifying text."""

    instance_uid: PseudoUid
    series_uid: PseudoUid
    frame: int
    reason: str
    why: str


@dataclass(frozen=True, slots=True)
class StudyEmbedding:
    """A study as vectors.

    Attributes
    ----------
    slices : one a row of ``vectors``.
    vectors : float32 [n, dim], each of length 1.
    choices : the series taken and why; ``passed`` those that were not.
    skipped : key slices that could not be decoded or hold nothing.
    not_searchable : set where there is no vector at all; ``why_not`` is the sentence for the answer.
    """

    model_id: ModelId
    slices: tuple[EmbeddedSlice, ...]
    vectors: Floats
    choices: tuple[SeriesChoice, ...]
    passed: tuple[Passed, ...]
    skipped: tuple[SkippedSlice, ...]
    notes: tuple[str, ...] = ()
    not_searchable: NoSearch | None = None
    why_not: str = ""


def embed_study(
    paths: Iterable[Path],
    embedder: Embeds,
    key_slices: int = KEY_SLICES,
    see: See | None = None,
    gate: Sees | None = None,
    taught: Set[str] = frozenset(),
) -> StudyEmbedding:
    """Embed the key slices of one study.

    Parameters
    ----------
    paths : the study's de-identified files, in any order.
    key_slices : slices a series, 16 to 32.
    see : called with the picture of each slice that is embedded (``Prepared.picture``).
    gate : judges the key slices together; None: every kind of image passes, by headers and by pixels.
    taught : modalities beside CT and MR whose images the gate lets pass.

    Returns
    -------
    StudyEmbedding
        Never raises for bad images: they are in ``skipped``, and ``not_searchable`` says where nothing was left.
    """
    began = time.monotonic()
    chosen = choose(paths, key_slices, gated=gate is not None, taught=taught)
    slices: list[EmbeddedSlice] = []
    skipped: list[SkippedSlice] = []
    notes: dict[str, None] = {}
    prepared_slices: list[Prepared] = []
    modalities: list[str] = []
    for series in chosen.choices:
        for key in series.key:
            try:
                prepared = prepare_dicom(key.path, key.frame)
            except UnusableImage as e:
                skipped.append(SkippedSlice(key.instance_uid, series.series_uid, key.frame, e.reason, e.line))
                continue
            notes.update(dict.fromkeys(prepared.notes))
            slices.append(EmbeddedSlice(key.instance_uid, series.series_uid, key.frame, key.z))
            prepared_slices.append(prepared)
            modalities.append(series.modality)
    no_search, why_not = chosen.not_searchable, chosen.why_not
    if not slices and no_search is None:
        no_search, why_not = NoSearch.UNREADABLE, _nothing_left(skipped)
    if gate is not None and slices:
        refused = decide(_seen(gate, prepared_slices, modalities, taught))
        if refused is not None:
            no_search, why_not = NoSearch.NO_SLICE, refused.why
            log.info("study_refused", kind=refused.kind.value, slices=refused.of)
            slices, prepared_slices = [], []
            chosen = replace(chosen, choices=())
    vectors: list[Floats] = []
    for at in range(0, len(slices), BATCH):
        batch = prepared_slices[at : at + BATCH]
        vectors.append(embedder.embed(np.stack([p.pixels for p in batch])))
        if see is not None:
            for one, prepared in zip(slices[at : at + BATCH], batch, strict=True):
                see(one.instance_uid, one.frame, prepared.picture)
    seconds = round(time.monotonic() - began, 3)
    log.info("study_embedded", series=len(chosen.choices), slices=len(slices), skipped=len(skipped), seconds=seconds)
    return StudyEmbedding(
        embedder.model_id,
        tuple(slices),
        np.concatenate(vectors) if vectors else np.empty((0, embedder.dim), dtype=np.float32),
        chosen.choices,
        chosen.passed,
        tuple(skipped),
        tuple(notes),
        no_search,
        why_not,
    )


def _seen(gate: Sees, slices: Sequence[Prepared], modalities: Sequence[str], taught: Set[str]) -> list[Seen]:
    """What the gate says of each slice, modality by modality."""
    seen: list[Seen] = []
    for modality in dict.fromkeys(modalities):
        pixels = [p.pixels for p, its in zip(slices, modalities, strict=True) if its == modality]
        seen += gate.see(np.stack(pixels), claimed=True, modality=modality, taught=taught)
    return seen


def _nothing_left(skipped: list[SkippedSlice]) -> str:
    reasons = ", ".join(sorted({s.why for s in skipped}))
    return f"None of the {len(skipped)} chosen slices could be used: {reasons}."


def embed_image(path: Path, embedder: Embeds) -> Floats:
    """One picture (PNG, JPEG, WebP) or the first frame of a DICOM file as a unit vector float32 [dim].

    Raises
    ------
    UnusableImage
        It cannot be decoded or holds nothing.
    """
    vector: Floats = embedder.embed(prepare_file(path).pixels[None])[0]
    return vector


def embed_images(paths: Iterable[Path], embedder: Embeds) -> tuple[Floats, list[tuple[Path, str]]]:
    """Many pictures in batches: vectors float32 [n, dim] of the good ones in order, and (path, why) of the others."""
    pending: list[Floats] = []
    vectors: list[Floats] = [np.empty((0, embedder.dim), dtype=np.float32)]
    bad: list[tuple[Path, str]] = []
    for path in paths:
        try:
            pending.append(prepare_file(path).pixels)
        except UnusableImage as e:
            bad.append((path, e.line))
        if len(pending) == BATCH:
            vectors.append(embedder.embed(np.stack(pending)))
            pending = []
    if pending:
        vectors.append(embedder.embed(np.stack(pending)))
    return np.concatenate(vectors), bad

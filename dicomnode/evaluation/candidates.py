"""What is measured: a name and a way to the vectors of prepared images; from packs and from checkpoints of trainings.

A pack of CE-Net and Xception gives four rows that share one pass through its networks: the vector that is indexed, the
full embedding before compaction, and each half alone. A U-Net gives the row it was trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dicomnode.domain import ModelId
from dicomnode.models.embedder import Embedder
from dicomnode.models.networks import EmbeddingNet
from dicomnode.models.training.figures import unit_rows
from dicomnode.models.training.methods import embedding_of

Pixels = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]
Extractor = Callable[[Pixels], Vectors]  # prepared images [n, 224, 224] -> features [n, d]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One method to be measured.

    Attributes
    ----------
    embed : prepared images float32 [n, 224, 224] in 0..1 -> unit vectors float32 [n, d].
    model_id : under which the index keeps the vectors.
    seed : of its training.
    recipe : how it was made, for the ledger.
    note : what a reader must know of its row.
    twin : the pack whose architecture the control with random weights takes; None: that control is left out.
    """

    name: str
    embed: Extractor
    model_id: ModelId
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    twin: Embedder | None = None


def of_pack(name: str, embedder: Embedder, note: str = "") -> Candidate:
    """A pack as a node runs it."""
    manifest = embedder.pack.manifest
    training = manifest.about.get("training", {}) if isinstance(manifest.about, Mapping) else {}
    recipe = {"model_id": manifest.model_id, "status": manifest.status, "training": training}
    seed = training.get("seed", 0) if isinstance(training, Mapping) else 0
    twin = embedder if isinstance(embedder.pack.network, EmbeddingNet) else None  # only these can be drawn anew
    return Candidate(name, embedder.embed, manifest.model_id, int(seed), recipe, note, twin)


PARTS = {  # rows of a pack's full embedding beside its vector: name -> parts
    "CE-Net + Xception (full)": ("rmp", "activation"),
    "CE-Net (RMP), fine-tuned": ("rmp",),
    "Xception": ("activation",),
    "lesion profile alone": ("lesion",),
}


def rows_of_pack(name: str, embedder: Embedder, rows: Mapping[str, tuple[str, ...]] = PARTS) -> list[Candidate]:
    """The pack's vector, and parts of its full embedding, from one pass over a batch.

    Parameters
    ----------
    rows : name -> parts (``EmbeddingNet.parts``) that make the row; left out where the pack lacks one of them.

    Raises
    ------
    PackError
        The pack is of a kind that has no parts.
    """
    whole = of_pack(name, embedder)
    network = embedder.pack.embedding_net
    full = _last_remembered(embedder.full)

    def compact(images: Pixels) -> Vectors:
        with torch.inference_mode():
            out: torch.Tensor = network.compaction(torch.from_numpy(full(images)).to(embedder.device))
        return np.asarray(out.cpu().numpy(), dtype=np.float32)

    def of_parts(parts: Sequence[str]) -> Extractor:
        at = [network.parts[part] for part in parts]
        return lambda images: _unit(np.concatenate([full(images)[:, s] for s in at], axis=1))

    extractors: dict[str, Extractor] = {name: compact}
    for row, parts in rows.items():
        if all(part in network.parts for part in parts):
            extractors[row] = of_parts(parts)
    return [
        Candidate(n, embed, ModelId(f"{whole.model_id} {n}"), whole.seed, whole.recipe, twin=embedder)
        for n, embed in extractors.items()
    ]


def _unit(rows: Vectors) -> Vectors:
    """Each row of length 1; rows of nothing (a lesion profile without a lung) are all alike."""
    something = rows.any(axis=1, keepdims=True)
    return unit_rows(np.where(something, rows, np.float32(1)))


def of_checkpoint(name: str, checkpoint: Path | None, method: str, seed: int, recipe: Mapping[str, Any]) -> Candidate:
    """A checkpoint of a training as a method of ``models.training.methods``.

    Raises
    ------
    InputError
        No such checkpoint, or one that does not give this method.
    """
    return Candidate(name, embedding_of(checkpoint, method, device="cpu"), ModelId(f"{method} {seed}"), seed, recipe)


def _last_remembered(extract: Extractor) -> Extractor:
    """The same features, computed once for a batch that several rows ask for one after another."""
    held: list[tuple[Pixels, Vectors]] = []

    def remembered(images: Pixels) -> Vectors:
        if not held or held[0][0] is not images:
            held[:] = [(images, extract(images))]
        return held[0][1]

    return remembered

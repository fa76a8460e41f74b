"""The embedder as the workflow calls it: whole studies and prepared images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.domain import ModelId, Shows
from dicomnode.models.embedder import Embedder
from dicomnode.models.gate import Seen, fitted
from dicomnode.models.headers import beyond_slices
from dicomnode.models.study import See, StudyEmbedding, embed_study


class StudyEmbedder:
    """``EmbedPort`` over networks that are loaded when they are first needed, behind the input gate.

    ``taught``: what the model's training images showed, nothing where its pack does not say; ``modalities``: of
    these, without CT and MR, whose slices are always searched and always judged.
    """

    def __init__(self, model_id: ModelId, load: Callable[[], Embedder], taught: tuple[Shows, ...] = ()) -> None:
        self.model_id = model_id
        self.taught = taught
        self.modalities = beyond_slices(taught)
        self._load = load

    def embed_study(self, paths: Sequence[Path], see: See | None = None, *, gated: bool = True) -> StudyEmbedding:
        """Series choice, key slices and vectors of de-identified files of one study; ``see`` gets each slice.

        ``gated`` False: what the repository holds already, which the input gate leaves alone.
        """
        gate = fitted() if gated else None
        return embed_study(paths, self._load(), see=see, gate=gate, taught=self.modalities)

    def embed_images(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32 [n, dim] of prepared images float32 [n, 224, 224] in 0..1."""
        return self._load().embed(images)

    def judge(
        self,
        images: npt.NDArray[np.float32],
        *,
        claimed: bool = False,
        colours: Sequence[float] = (),
        modality: str = "",
    ) -> tuple[Seen, ...]:
        """What the input gate sees in each of them: see ``Gate.see``."""
        return fitted().see(images, claimed=claimed, colours=colours, modality=modality, taught=self.modalities)

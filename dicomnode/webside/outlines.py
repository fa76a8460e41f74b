"""Lungs and infection as the network of an answer outlines them, laid on the frames that a viewer shows.

The network sees a square around the body, 224 pixels a side; what it draws there is laid back on the frame by the same
box. Only kinds of images that the shipped networks were trained on are offered. It never measures and never judges: an
outline is the network's own, not a finding.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicomnode.archive.cases import CaseRow
from dicomnode.domain import ModelId
from dicomnode.errors import Busy, NotFound
from dicomnode.models.display import DisplaySeries, FrameAt
from dicomnode.models.manifest import MASKS
from dicomnode.models.preprocess import mask_on_frame
from dicomnode.web.options import FrameData
from dicomnode.webside.images import Images, Kept, Shown

KEPT_BYTES = 8 << 20  # of made pictures, each some kilobytes
WAITING = 8  # that compute or wait for it; each holds a thread of the server
# Chest CT, and pictures that say no modality of their own: slices cut out of papers, as the training images are.
MODALITIES: Final[frozenset[str]] = frozenset({"CT", "OT", ""})
# One bit a mask: red is the first, green the second, yellow both.
PALETTE: Final = (0, 0, 0, 255, 0, 0, 0, 255, 0, 255, 255, 0)

Compute = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Outliner:
    """What outlines for one model.

    Attributes
    ----------
    checksum : of the file that decides the outlines beside the model's own weights.
    dice : of each mask on held-out volumes, where the pack says it.
    masks : prepared slices float32 [n, 224, 224] to bool [n, 2, 224, 224]; loads the networks when first called.
    """

    checksum: str
    dice: Mapping[str, float]
    masks: Compute


class Outlines:
    """Pictures of masks; safe for threads.

    Parameters
    ----------
    outliner : callable
        Of a model; None where it is no longer here or outlines nothing.
    """

    def __init__(self, images: Images, outliner: Callable[[ModelId], Outliner | None]) -> None:
        self._images = images
        self._outliner = outliner
        self._computing = threading.Lock()  # one at a time has the processor
        self._places = threading.BoundedSemaphore(WAITING)
        self._kept: Kept[tuple[str, Path], bytes] = Kept(KEPT_BYTES, len)

    def said(self, model_id: ModelId) -> dict[str, Any] | None:
        """``Outlines`` of the API: Dice by mask; None where nothing is outlined."""
        found = self._outliner(model_id)
        return None if found is None else {name: found.dice.get(name) for name in MASKS}

    def offered(self, model_id: ModelId, series: DisplaySeries) -> bool:
        """Whether the frames of a series are outlined."""
        return series.modality in MODALITIES and self._outliner(model_id) is not None

    def png(
        self, model_id: ModelId, shown: Shown, series: DisplaySeries, at: FrameAt, row: CaseRow | None
    ) -> FrameData:
        """The masks of a frame as one picture of two bits, made when it is asked for.

        Raises
        ------
        NotFound
            The model outlines nothing, or not this kind of image.
        """
        outliner = self._outliner(model_id)
        if outliner is None:
            raise NotFound("the model that gave this answer outlines nothing, or is no longer here")
        if series.modality not in MODALITIES:
            raise NotFound("only slices of chest CT are outlined")
        said = f"{model_id}/{outliner.checksum}/{self._images.tag(shown, series, at)}"
        tag = hashlib.sha256(said.encode()).hexdigest()[:32]
        return FrameData(tag, lambda: self._made((tag, at.path), outliner, at, row))

    def _made(self, key: tuple[str, Path], outliner: Outliner, at: FrameAt, row: CaseRow | None) -> bytes:
        held = self._kept.get(key)
        if held is not None:
            return held
        if not self._places.acquire(blocking=False):
            raise Busy("other outlines are being computed", advice="try again in a moment")
        try:
            with self._computing:
                held = self._kept.get(key)  # who came first may have just computed it
                if held is not None:
                    return held
                slice_ = self._images.prepared(at, row)
                masks = outliner.masks(slice_.pixels[None])[0]
                laid = [mask_on_frame(mask, slice_.box, slice_.frame) for mask in masks]
                return self._kept.put(key, masks_png(laid))
        finally:
            self._places.release()


def masks_png(masks: list[npt.NDArray[np.bool_]]) -> bytes:
    """Two masks as one PNG: the first red, the second green."""
    image = Image.fromarray((masks[0] + 2 * masks[1]).astype(np.uint8), "P")
    image.putpalette(PALETTE)
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

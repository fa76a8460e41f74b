"""Pixels of the cases of a LABELS.csv, as they were when they were indexed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import dcmread

from dicomnode.models.preprocess import picture_pixels

LABELS = "labels"  # source of such a case in the catalogue: pictures, prepared in another way than slices


def capture_pixels(path: Path) -> npt.NDArray[np.float32]:
    """float32 [224, 224] of a case's stored capture, the same that it was indexed with."""
    pixels: npt.NDArray[np.float32] = picture_pixels(Image.fromarray(dcmread(path).pixel_array))
    return pixels

"""Pixels of the cases of a LABELS.csv, as they were when they were indexed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import dcmread

from dicomnode.models.preprocess import Prepared, picture_pixels, whole_picture

LABELS = "labels"  # source of such a case in the catalogue: pictures, prepared in another way than slices


def prepare_capture(path: Path) -> Prepared:
    """A case's stored capture, the same that it was indexed with."""
    image = Image.fromarray(dcmread(path).pixel_array)
    return whole_picture(picture_pixels(image), image)


def capture_pixels(path: Path) -> npt.NDArray[np.float32]:
    """Its pixels alone, float32 [224, 224]."""
    return prepare_capture(path).pixels

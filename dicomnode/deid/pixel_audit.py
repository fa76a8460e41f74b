"""Independent audit of masked pixels: equal outside what was declared, blank inside, and no name or id to be read.

Part of the audit (audit.py); shares no code with the masking. It decodes original and result anew and reads the
result with the recogniser as its makers deliver it, without the masking's thresholds, magnifications and renderings.
It compares what it reads with the original's names and ids and never says what that was. Sources: PS3.15 E.3.1, PS3.3
C.7.6.3.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import DeflatedExplicitVRLittleEndian

READ_FRAMES = 8  # of a multi-frame image, evenly spread: reading takes half a second each
_LIKE = 0.85  # of two words of six signs and more: one sign of seven may be misread
_MIN_LIKE = 6
_WORD = re.compile(r"[^\W_]+")
# Signs that the recogniser takes for each other.
_ALIKE = str.maketrans({"o": "0", "q": "0", "i": "1", "l": "1", "|": "1", "s": "5", "b": "8", "z": "2", "g": "9"})
Edges = tuple[int, int, int, int]  # top, left, bottom, right; the ends excluded
Masked = tuple[tuple[Edges, ...], ...]  # of each frame


@dataclass(frozen=True, slots=True)
class Seen:
    """What a person who looked at the original asked for: rectangles of each frame, and that it shows no face."""

    asked: Masked = ()
    no_face: bool = False

    def findings(self, before: Dataset, after: Dataset, masked: Masked) -> Iterator[tuple[str, str]]:
        """Place and rule of what was not done as asked, and of a statement about faces that nobody made."""
        if rule := self._features(before, after):
            yield "(0028,0302)", rule
        if any(self.asked) and not (len(masked) == len(self.asked) and all(map(_cover, masked, self.asked))):
            yield "pixel data", "what was to be masked by hand was not masked"

    def _features(self, before: Dataset, after: Dataset) -> str:
        """A NO has to come from the original or from a person; a YES of the original stays unless a person says NO."""
        old, new = (str(ds.get("RecognizableVisualFeatures") or "").strip().upper() for ds in (before, after))
        if self.no_face:
            return "" if new == "NO" else "it must say NO as a person said"
        if new not in ("", "YES", "NO"):
            return "it is neither YES nor NO"
        unsaid = (new == "NO" and old != "NO") or (old == "YES" and new != "YES")
        return "nobody has said that there are no recognizable features" if unsaid else ""


UNSEEN = Seen()


def _cover(masked: tuple[Edges, ...], asked: tuple[Edges, ...]) -> bool:
    """Whether each rectangle of ``asked`` lies in one of ``masked``."""
    return all(any(m[0] <= a[0] and m[1] <= a[1] and m[2] >= a[2] and m[3] >= a[3] for m in masked) for a in asked)


def compare(original: Path, written: Path, masked: tuple[tuple[Edges, ...], ...]) -> str:
    """What is wrong with the pixels of ``written``, or an empty string.

    ``masked`` holds the declared rectangles of each frame, as (top, left, bottom, right).
    """
    count = 0
    before, after = iter_pixels(_opened(original), raw=True), iter_pixels(_opened(written), raw=True)
    for old, new in zip(before, after, strict=True):
        if count >= len(masked):
            return "there are more frames than were declared"
        inside = np.zeros(old.shape[:2], bool)
        for top, left, bottom, right in masked[count]:
            inside[top:bottom, left:right] = True
        if old.shape != new.shape or not np.array_equal(old[~inside], new[~inside]):
            return "pixels outside the masked rectangles differ from the original ones"
        blank = new[inside]
        if len(blank) and (blank != blank[0]).any():
            return "a masked rectangle is not of one colour"
        count += 1
    return "" if count == len(masked) else "frames are missing"


def reads(written: Path, names: set[str], ids: set[str]) -> bool:
    """Whether a name or an id (lower case, ids without separators) can be read in the pixels of ``written``."""
    wanted = {_alike("".join(_WORD.findall(one))) for one in names | ids}
    if not wanted:
        return False
    return any(_matches(line, wanted) for picture in _pictures(written) for line in _lines(picture))


def _opened(path: Path) -> Path | Dataset:
    """The file itself, so that its frames are read one by one; a deflated one must be inflated first."""
    deflated = read_file_meta_info(path).TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    return dcmread(path) if deflated else path


def _alike(text: str) -> str:
    return text.casefold().translate(_ALIKE)


def _matches(line: str, wanted: set[str]) -> bool:
    words = [_alike(word) for word in _WORD.findall(line)]
    joined = "".join(words)
    for needle in wanted:
        if needle in words or (len(needle) >= _MIN_LIKE and needle in joined):
            return True
        near = (word for word in words if len(needle) >= _MIN_LIKE and abs(len(word) - len(needle)) <= 1)
        if any(difflib.SequenceMatcher(None, word, needle).ratio() >= _LIKE for word in near):
            return True
    return False


@functools.cache
def _reader() -> Any:
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=2, inter_op_num_threads=1)


def _lines(picture: NDArray[np.uint8]) -> Iterator[str]:
    result, _ = _reader()(picture)
    for _box, text, _confidence in result or ():
        yield str(text)


def _pictures(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames as pictures of 8 bits, (rows, columns, 3)."""
    count = sum(1 for _ in iter_pixels(_opened(path), raw=True))
    chosen = sorted({round(step) for step in np.linspace(0, count - 1, min(count, READ_FRAMES))})
    header = dcmread(path, stop_before_pixels=True)
    for frame in iter_pixels(_opened(path), indices=chosen):
        coloured = header.PhotometricInterpretation == "PALETTE COLOR"
        yield _picture(apply_color_lut(frame, header)[..., :3] if coloured else frame)


def _picture(frame: NDArray[Any]) -> NDArray[np.uint8]:
    values = frame.astype(np.float32)
    low, high = float(np.quantile(values, 0.002)), float(np.quantile(values, 0.998))
    if frame.dtype == np.uint8 and frame.ndim == 3:
        low, high = 0.0, 255.0
    scaled = np.clip((values - low) * (255.0 / max(high - low, 1.0)), 0, 255).astype(np.uint8)
    return scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, axis=2)

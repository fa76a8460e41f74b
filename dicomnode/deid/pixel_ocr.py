"""The engine that looks for text and reads it: PP-OCR (RapidOCR, ONNX Runtime) on this machine.

One engine a process. It proposes places and reads parts of a picture; what counts as text is decided in pixel_text.py.
Pictures are uint8, (rows, columns, 3). What is read is for that decision alone and goes nowhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import QuarantineError

THREADS = 2  # of one worker process; more bring little for images of this size
_BIT_THRESHOLD, _PROPOSAL_THRESHOLD = 0.2, 0.35  # DB detector: of a pixel, and of the mean inside a proposal
_WHOLE = 2600  # longest side up to which a picture is looked at in one piece
_TILE, _OVERLAP = 1024, 128  # of larger images; the detector's memory grows with the area
_STEP = 8  # pixels of the reader's picture that one of its steps stands for
Proposal = tuple[NDArray[np.float64], float]  # corners (4 x 2, x and y in pixels) and score


class Sign(NamedTuple):
    """A letter or digit in a line: where its middle is, in pixels from the left, and the reader's confidence."""

    at: float
    confidence: float


@functools.cache
def _recogniser() -> Any:
    """The one engine of this process.

    Raises
    ------
    QuarantineError
        ``burned-in``: the package or a system library that it needs is missing, so nothing can be examined.
    """
    try:
        import cv2
        from rapidocr_onnxruntime import RapidOCR
    except ImportError:
        advice = "see 'dicomnode doctor'; install libgl1 and libglib2.0-0 (Debian), then 'dicomnode quarantine release'"
        line = "the pixels were not examined: the recognition of text cannot be loaded"
        raise QuarantineError("burned-in", line, advice=advice) from None
    cv2.setNumThreads(1)
    engine = RapidOCR(intra_op_num_threads=THREADS, inter_op_num_threads=1, det_limit_side_len=32, det_limit_type="min")
    engine.text_det.postprocess_op.thresh = _BIT_THRESHOLD
    engine.text_det.postprocess_op.box_thresh = _PROPOSAL_THRESHOLD
    return engine


def load() -> None:
    """Load the recogniser now rather than with the first image; ``QuarantineError`` where that fails."""
    _recogniser()


def proposals(view: NDArray[np.uint8], scale: float) -> Iterator[Proposal]:
    """Corners (4 x 2, x and y in pixels of ``view``) and score of each place that the detector proposes."""
    import cv2

    detector = _recogniser().text_det
    rows, columns = view.shape[:2]
    size = (max(32, round(columns * scale)), max(32, round(rows * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = view if scale == 1.0 and min(rows, columns) >= 32 else cv2.resize(view, size, interpolation=method)
    picture = np.asarray(scaled, dtype=np.uint8)
    ratio = np.array((columns / picture.shape[1], rows / picture.shape[0]))
    for top, left, tile in _tiles(picture):
        prepared = detector.get_preprocess(max(tile.shape[:2]))(tile)
        boxes, scores = detector.postprocess_op(detector.infer(prepared)[0], tile.shape[:2])
        for box, score in zip(boxes, scores, strict=True):
            yield (box.astype(np.float64) + np.array((left, top))) * ratio, float(score)


def _tiles(picture: NDArray[np.uint8]) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Overlapping parts of a large picture, less those of one grey level; a small one as a whole."""
    rows, columns = picture.shape[:2]
    if max(rows, columns) <= _WHOLE and rows * columns <= 2 * _TILE * _TILE:
        yield 0, 0, picture
        return
    step = _TILE - _OVERLAP
    for top in range(0, max(1, rows - _OVERLAP), step):
        for left in range(0, max(1, columns - _OVERLAP), step):
            tile = picture[top : top + _TILE, left : left + _TILE]
            if int(tile.max()) - int(tile.min()) > 2:
                yield top, left, np.ascontiguousarray(tile)


def read(part: NDArray[np.uint8]) -> tuple[str, float]:
    """What a picture of one line reads, and the reader's confidence, 0 to 1."""
    lines, _ = _recogniser().text_rec([part])
    text, confidence = lines[0][:2]
    return str(text), float(confidence)


def signs(line: NDArray[np.uint8]) -> list[Sign]:
    """The letters and digits that the reader makes out in a picture of one line, from left to right."""
    reader = _recogniser().text_rec
    height, width = line.shape[:2]
    prepared = reader.resize_norm_img(line, width / height)[np.newaxis].astype(np.float32)
    steps = np.asarray(reader.session(prepared)[0])[0]
    best, confidence = steps.argmax(axis=1), steps.max(axis=1)
    characters = reader.postprocess_op.character
    pixels = _STEP * height / prepared.shape[2]
    first = np.concatenate(([True], best[1:] != best[:-1]))  # the same sign in the next step is the same one
    return [
        Sign((step + 0.5) * pixels, float(confidence[step]))
        for step in np.flatnonzero(first & (best > 0))
        if str(characters[int(best[step])]).isalnum()
    ]

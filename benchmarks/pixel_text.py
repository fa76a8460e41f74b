"""How much planted text de-identification finds and removes.

``python benchmarks/pixel_text.py [-n N] [--seed S] [--tuning]`` plants names, ids and dates in images (shared DICOM
slices where present, else those of pydicom and its data package) and lets the node examine and mask them. It prints
images and lines found, words that a reader of its own still makes out, what is masked of clean CT, and the time for
512 x 512. Fonts and names are others than those that the rules were tuned on (--tuning: those).
"""

from __future__ import annotations

import argparse
import difflib
import functools
import os
import re
import statistics
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dicomnode.deid.pixel_mask import PixelCleaner
from dicomnode.deid.pixel_text import find_text
from dicomnode.deid.rectangles import Rectangle
from dicomnode.deid.source import open_source
from dicomnode.errors import QuarantineError
from dicomnode.evaluation.metrics import wilson
from dicomnode.testing.burned_in import REPORT_FONTS, REPORT_NAMES, TUNING_FONTS, TUNING_NAMES, PlantedText, plant

SHARED = Path(os.environ.get("DICOMNODE_SHARED", Path(__file__).parents[2] / "shared" / "data")) / "dicom"
PACKAGED = ("CT_small.dcm", "MR_small.dcm", "693_UNCR.dcm", "MR2_UNCR.dcm", "RG3_UNCR.dcm")
COVERED = 0.9  # share of a line's strokes that must be masked for it to count as found
WORD, LIKE = 3, 0.8  # letters of a word that counts, and how alike a reading must be
_WORD = re.compile(rf"[^\W_]{{{WORD},}}")


@dataclass
class Figures:
    """Counts over the planted images."""

    images: int = 0
    found: int = 0
    kept_out: int = 0
    lines: int = 0
    lines_found: int = 0
    words: int = 0
    readable_before: int = 0
    readable: int = 0
    seconds: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)
    missed: Counter[str] = field(default_factory=Counter)


def share(hits: int, n: int) -> str:
    """Share with its 95 % interval (Wilson)."""
    if not n:
        return "none"
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.2f} % [{100 * low:.2f}, {100 * high:.2f}], n = {n}"


def picture(path: str | Path) -> tuple[str, NDArray[np.uint8]] | None:
    """Modality and the image in 8 bits; None where it is no single grey image."""
    ds = dcmread(path)
    values = ds.pixel_array.astype(np.float64)
    if values.ndim != 2:
        return None
    low, high = np.percentile(values, (0.5, 99.5))
    return str(ds.Modality), np.clip((values - low) * 255 / max(high - low, 1), 0, 255).astype(np.uint8)


def backgrounds(folder: Path) -> list[Path]:
    """DICOM images without text: the shared ones, unpacked into ``folder``, and those of the packages."""
    for archive in sorted(SHARED.glob("*.tar.xz")) if SHARED.is_dir() else []:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    packaged = [Path(found) for name in PACKAGED if (found := get_testdata_file(name))]
    return [*sorted(folder.rglob("*.dcm")), *packaged]


def capture(image: NDArray[np.uint8], path: Path) -> Path:
    """The image as a secondary capture."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", generate_uid()
    ds.Modality, (ds.Rows, ds.Columns) = "OT", image.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.add_new(0x7FE00010, "OB", image.tobytes() + b"\0" * (image.size % 2))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(path, ds, enforce_file_format=True)
    return path


@functools.cache
def reader() -> Any:
    """The recogniser as its makers deliver it."""
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=2, inter_op_num_threads=1)


def read_words(image: NDArray[np.uint8]) -> set[str]:
    """Words that the reader makes out, as the image is and twice as large."""
    import cv2

    words: set[str] = set()
    for scale in (1, 2):
        shown = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        result, _ = reader()(np.repeat(shown[..., None], 3, axis=2))
        words.update(word.casefold() for _, text, _ in result or () for word in _WORD.findall(str(text)))
    return words


def readable(planted: list[PlantedText], words: set[str]) -> int:
    """How many planted words are among those read."""
    wanted = [word.casefold() for line in planted for word in _WORD.findall(line.text)]
    return sum(any(difflib.SequenceMatcher(None, one, word).ratio() >= LIKE for one in words) for word in wanted)


def examine(image: NDArray[np.uint8], folder: Path) -> tuple[tuple[Rectangle, ...] | None, float, float]:
    """What the node masks (None: it keeps the image out), the seconds it took, and those of the processors."""
    source = open_source(capture(image, folder / "in.dcm"))
    started, computed = time.perf_counter(), time.process_time()
    try:
        outcome = PixelCleaner().clean(source, folder)
    except QuarantineError:
        return None, time.perf_counter() - started, time.process_time() - computed
    finally:
        source.stream.close()
    seconds, computed = time.perf_counter() - started, time.process_time() - computed
    outcome.close()
    return (outcome.masked[0] if outcome.masked else ()), seconds, computed


def measure(image: NDArray[np.uint8], planted: list[PlantedText], folder: Path, figures: Figures) -> None:
    """Add one image to the figures."""
    places, seconds, computed = examine(image, folder)
    figures.images += 1
    figures.lines += len(planted)
    figures.words += sum(len(_WORD.findall(line.text)) for line in planted)
    figures.readable_before += readable(planted, read_words(image))
    if image.shape == (512, 512):
        figures.seconds.append(seconds)
        figures.computed.append(computed)
    if places is None:
        figures.kept_out += 1
        figures.found += 1
        figures.lines_found += len(planted)
        return
    mask = np.zeros(image.shape, bool)
    for place in places:
        mask[place.window] = True
    shares = [float(mask[line.strokes].mean()) for line in planted]
    figures.found += any(share > 0 for share in shares)
    figures.lines_found += sum(share >= COVERED for share in shares)
    pairs = zip(planted, shares, strict=True)
    figures.missed.update(f"{line.text} {share:.2f}" for line, share in pairs if share < COVERED)
    figures.readable += readable(planted, read_words(np.where(mask, np.uint8(0), image)))


def clean_share(paths: list[Path]) -> tuple[int, float, int]:
    """Clean CT images: how many, the share of their pixels that would be masked, and in how many of them any."""
    pixels = masked = touched = count = 0
    for path in paths:
        shown = picture(path)
        if shown is None or shown[0] != "CT":
            continue
        view = np.repeat(shown[1][..., None], 3, axis=2)
        mask = np.zeros(shown[1].shape, bool)
        for place in find_text(view):
            mask[place.window] = True
        count += 1
        pixels, masked, touched = pixels + mask.size, masked + int(mask.sum()), touched + bool(mask.any())
    return count, masked / max(pixels, 1), touched


def _chosen(paths: list[Path], n: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    shown = [one for path in paths if (one := picture(path)) is not None]
    for _ in range(n):
        yield shown[int(rng.integers(len(shown)))][1]


def _progress(f: Figures) -> None:
    line = (
        f"{f.images} images, {f.found} found, {f.lines_found} of {f.lines} lines, {f.readable} of {f.words} words left"
    )
    print(line, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=400, help="images with planted text")
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--tuning", action="store_true", help="the fonts and names that the rules were tuned on")
    parser.add_argument("--clean", type=int, default=0, help="clean CT images looked at; 0: all")
    arguments = parser.parse_args()
    fonts, names = (TUNING_FONTS, TUNING_NAMES) if arguments.tuning else (REPORT_FONTS, REPORT_NAMES)
    rng = np.random.default_rng(arguments.seed)
    figures = Figures()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = backgrounds(folder)
        for background in _chosen(paths, arguments.n, rng):
            image, planted = plant(background, rng, fonts=fonts, names=names, lines=int(rng.integers(1, 4)))
            if planted:
                measure(image, planted, folder, figures)
                _progress(figures)
        order = [paths[number] for number in rng.permutation(len(paths))]
        count, masked, touched = clean_share(order[: arguments.clean or None])
    f = figures
    print(f"images in which text was found      {share(f.found, f.images)}")
    print(f"  kept out, as text stayed readable  {share(f.kept_out, f.images)}")
    print(f"lines of text masked                {share(f.lines_found, f.lines)}")
    print(f"words readable before masking       {share(f.readable_before, f.words)}")
    print(f"words readable after masking        {share(f.readable, f.words)}")
    print(f"pixels masked of clean CT           {100 * masked:.4f} %, n = {count} images, {touched} of them touched")
    if f.seconds:
        middle, computed = statistics.median(f.seconds), statistics.median(f.computed)
        print(f"seconds for 512 x 512 with text     median {middle:.2f}, n = {len(f.seconds)}, with the second look")
        print(f"  of the processors, all threads    median {computed:.2f}")
    for line, times in f.missed.most_common(20):
        print(f"  missed: {line} ({times})")
    load = os.getloadavg()[0]
    print(f"load of the machine at the end {load:.1f}, {os.cpu_count()} processors")


if __name__ == "__main__":
    main()

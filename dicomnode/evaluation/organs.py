"""The organs protocol: DICOM slices are similar when they show the same body region in the same modality.

Reads the archives of a data set and the test files that come with pydicom and pydicom-data where they are installed.
The region comes from the words of the series, else of the study, else from BodyPartExamined, wrong in about 15 % of
images; a series whose words name two regions is left out. Localizers are left out. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import re
import tarfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicomnode.errors import InputError
from dicomnode.evaluation.labels import Checks, Row
from dicomnode.models.headers import READ_ERRORS
from dicomnode.models.preprocess import prepare_file

TAGS = [
    "PatientID", "Modality", "BodyPartExamined", "StudyDescription", "SeriesDescription", "SeriesInstanceUID",
    "StudyInstanceUID", "ImageType", "Rows", "InstanceNumber", "NumberOfFrames",
]  # fmt: skip
MODALITIES = ("CT", "MR", "CR", "DX", "US")
REGIONS: Final[dict[str, str]] = {
    "CHEST": r"CHEST|THORAX|LUNG|PULMONARY",
    "ABDOMEN": r"ABD|ABDOMEN|LIVER|PANCREAS|KIDNEY|PEL|PELVIS",
    "HEAD": r"HEAD|BRAIN",
    "NECK": r"NECK|CSPINE|CERVICAL|CAROTIDS?",
    "LIMB": r"EXTREMITY|SHOULDER|KNEE|TIBIA",
}
_PACKAGES = (("pydicom", "data/test_files"), ("data_store", "data"))


def region_of(ds: Dataset) -> str:
    """Body region of a series; "" where nothing names exactly one."""
    for keyword in ("SeriesDescription", "StudyDescription", "BodyPartExamined"):
        words = re.split(r"[^A-Z]+", str(ds.get(keyword) or "").upper())
        named = {r for r, pattern in REGIONS.items() if any(re.fullmatch(pattern, w) for w in words)}
        if len(named) == 1:
            return named.pop()
        if named:
            return ""
    return ""


@contextmanager
def organ_rows(data: Path, part: Mapping[str, Any], checks: Checks) -> Iterator[list[Row]]:
    """One row a slice, label "REGION MODALITY", grouped by patient; at most ``per_series`` slices of a series, evenly.

    Raises
    ------
    InputError
        No archive, or one that cannot be unpacked.
    """
    archives = sorted(data.glob(part["archives"]))
    if not archives:
        raise InputError(f"no file matches {part['archives']}", place=str(data), advice="--data DIR")
    with TemporaryDirectory(prefix="dicomnode-organs-") as folder:
        for archive in archives:
            _unpack(archive, Path(folder) / archive.name.split(".")[0])
        roots = [Path(folder)]
        for package, inside in _PACKAGES:
            spec = importlib.util.find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                checks.notes.append(f"package {package} is not installed: its test files are not among the images")
            else:
                roots.append(Path(spec.submodule_search_locations[0]) / inside)
        yield _rows([p for root in roots for p in sorted(root.rglob("*")) if p.is_file()], part["per_series"], checks)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")  # what leaves the folder is refused
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise InputError("cannot be unpacked", place=str(archive)) from exc


def _rows(files: list[Path], per_series: int, checks: Checks) -> list[Row]:
    series: dict[tuple[str, str], list[tuple[int, Row]]] = defaultdict(list)
    unnamed = 0
    for path in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values are judged here
            try:
                ds = dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
            except (InvalidDicomError, *READ_ERRORS):
                continue
            if ds.get("Modality") not in MODALITIES or not ds.get("Rows"):
                continue
            if "LOCALIZER" in [str(v).upper() for v in ds.get("ImageType") or ()]:
                continue
            region = region_of(ds)
            if not region:
                unnamed += 1
                continue
            group = str(ds.get("PatientID") or ds.get("StudyInstanceUID") or "")
            row = Row(path, f"{region} {ds.Modality}", group)
            key = (str(ds.get("SeriesInstanceUID") or path), row.label)
            series[key].append((int(ds.get("InstanceNumber") or 0), row))
    if unnamed:
        checks.notes.append(f"{unnamed} slices name no body region, or two, and are left out")
    chosen: list[Row] = []
    unusable = 0
    for key in sorted(series):
        ordered = [row for _, row in sorted(series[key], key=lambda item: (item[0], str(item[1].path)))]
        n = min(per_series, len(ordered))
        for row in (ordered[int((i + 0.5) * len(ordered) / n)] for i in range(n)):
            try:
                prepare_file(row.path)
            except InputError:  # test files are damaged on purpose, some of them
                unusable += 1
            else:
                chosen.append(row)
    if unusable:
        checks.notes.append(f"{unusable} slices cannot be embedded and are left out")
    return chosen

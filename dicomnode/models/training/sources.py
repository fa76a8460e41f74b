"""Where a training's data comes from: the folder of data sets, or a table of a site's own; and what is in it, told.

Also the sampling of slices from scans. It writes nothing but lines with counts on standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.errors import InputError
from dicomnode.models.training.data import LabelledData, SegmentationData, load_covid_ct, load_segmentation
from dicomnode.models.training.progress import tell
from dicomnode.models.training.tables import ScanData, load_labels, load_slices

VALIDATE_OWN = 0.2  # share of a site's own training images that validates, unless said otherwise


def is_table(path: Path) -> bool:
    """Whether ``--data`` names a table (.csv) and not a folder of data sets."""
    return path.suffix.lower() == ".csv"


def validation_share(path: Path, asked: float | None) -> float:
    """What ``--validate`` means: as asked; else none for the folder of data sets, a fifth of a site's own data."""
    if asked is not None:
        return asked
    return VALIDATE_OWN if is_table(path) else 0.0


def labelled_of(path: Path) -> LabelledData:
    """Labelled slices: covid-ct below a folder, or a LABELS.csv."""
    return load_labels(path) if is_table(path) else load_covid_ct(path)


def segmentation_of(path: Path) -> SegmentationData:
    """Outlined slices: ct-lung-seg below a folder, or a table of slices."""
    data = load_slices(path) if is_table(path) else load_segmentation(path)
    volumes = len(np.unique(data.volumes))
    lungs, infection = (int(n) for n in data.known.sum(0))
    tell(
        f"{path}: {len(data.images)} slices of {volumes} volumes, {lungs} with a lung mask, {infection} with an"
        f" infection mask, {int(data.held_out.sum())} held out"
    )
    return data


def tell_counts(data: LabelledData, validation: npt.NDArray[np.bool_]) -> None:
    """A line for each class: images and patients for training, for validation, and outside the training split.

    Parameters
    ----------
    validation : bool [n], rows of the training split that validate.
    """
    for i, word in enumerate(data.classes):
        mine = data.labels == i
        parts = {
            "train": mine & data.train & ~validation,
            "validation": mine & validation,
            "other splits": mine & ~data.train,
        }
        told = [
            f"{int(r.sum())} images of {len(np.unique(data.groups[r]))} patients ({name})" for name, r in parts.items()
        ]
        tell(f"class {word}: {', '.join(told)}")


def sample_scans(
    scans: ScanData, area: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64]], per_scan: int
) -> LabelledData:
    """The slices of each scan with the largest infected area, as published; ties go to the earlier row.

    Parameters
    ----------
    area : images uint8 [n, 224, 224] -> infected area float64 [n]; the CE-Net's, as ``cenet.infected_area``.
    per_scan : slices of each scan, at most.

    Raises
    ------
    InputError
        ``per_scan`` is not positive.
    """
    if per_scan < 1:
        raise InputError("at least one slice of each scan is needed", place="--per-scan")
    sizes = area(scans.labelled.images)
    keep = np.zeros(len(sizes), dtype=np.bool_)
    for scan in np.unique(scans.scans):
        rows = np.flatnonzero(scans.scans == scan)
        keep[rows[np.argsort(-sizes[rows], kind="stable")][:per_scan]] = True
    return scans.labelled.part(keep)

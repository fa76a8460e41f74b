"""The lesion protocol: slices are similar as far as infection lies in the same parts of the lung.

Reads ``slices.csv`` (slice, volume_guess) and lung and infection masks of the same name. The lung of a slice is parted
into six regions: left and right of the middle of the lungs, and three bands of equal height from the top of the lungs
to their bottom in the image. The profile of a slice is the infected fraction of the lung in each; two slices agree as
``task.agreement`` tells. Volumes never share index and queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicomnode.csvrows import needed_rows
from dicomnode.errors import InputError
from dicomnode.evaluation.labels import Checks, Row
from dicomnode.evaluation.task import PROFILE_FLOOR

SIDES, BANDS = 2, 3
INFECTED, CLEAR = "infection", "no infection"

Mask = npt.NDArray[np.bool_]


def lesion_profile(lungs: Mask, infection: Mask) -> tuple[float, ...] | None:
    """Infected fraction of the lung in six regions (left top, right top, left middle ...), None without a lung.

    Parameters
    ----------
    lungs, infection : bool [h, w]
        Infection outside of the lungs does not count.
    """
    ys, xs = np.nonzero(lungs)
    if not len(ys):
        return None
    infected = infection[ys, xs]
    side = (xs >= (xs.min() + xs.max() + 1) / 2).astype(np.int64)
    height = ys.max() - ys.min() + 1
    band = (ys - ys.min()) * BANDS // height
    region = band * SIDES + side
    lung = np.bincount(region, minlength=SIDES * BANDS)
    ill = np.bincount(region, weights=infected, minlength=SIDES * BANDS)
    return tuple(float(v) for v in ill / np.maximum(lung, 1))


def lesion_rows(data: Path, part: Mapping[str, Any], checks: Checks) -> tuple[list[Row], list[Row]]:
    """Index and query rows; a slice without a lung in its mask is left out and counted in a note.

    Raises
    ------
    InputError
        ``slices.csv``, a column, an image or a mask is missing.
    """
    folder = data / part["folder"]
    table = folder / "slices.csv"
    if not table.is_file():
        raise InputError("is missing", place=str(table), advice="--data DIR")
    held_out, left_out = ({str(v) for v in part.get(k, ())} for k in ("held_out_volumes", "left_out_volumes"))
    index: list[Row] = []
    queries: list[Row] = []
    without = 0
    for number, record in needed_rows(table, ("slice", "volume_guess")):
        name, volume = record["slice"], record["volume_guess"]
        if volume in left_out:
            continue
        lungs, infection = (_mask(_one(folder / kind, name)) for kind in ("lung-masks", "infection-masks"))
        profile = lesion_profile(lungs, infection)
        if profile is None:
            without += 1
            continue
        share = float((infection & lungs).sum() / lungs.sum())
        label = INFECTED if share >= PROFILE_FLOOR else CLEAR
        row = Row(_one(folder / "images", name), label, f"volume {volume}", number, profile=profile)
        (queries if volume in held_out else index).append(row)
    if without:
        checks.notes.append(f"{without} slices show no lung in their mask and are left out")
    return index, queries


def _one(folder: Path, stem: str) -> Path:
    found = sorted(folder.glob(f"{stem}.*"))
    if not found:
        raise InputError(f"has no file for slice {stem}", place=str(folder))
    return found[0]


def _mask(path: Path) -> Mask:
    try:
        with Image.open(path) as image:
            return np.asarray(np.asarray(image.convert("L")) > 127)
    except (OSError, ValueError, SyntaxError) as exc:
        raise InputError("is not a mask that can be read", place=str(path)) from exc

"""Checks of ``dicomnode deid`` over files of other packages: pydicom, pydicom-data and deid-data.

Each file is de-identified with equal pixels, or quarantined with a reason that is documented.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.node import Node
from dicomnode.workflow.batch.journal import Journal, Row
from dicomnode.workflow.batch.page import MEANINGS
from dicomnode.workflow.deidentify import Request, deidentified

PACKAGES = ("pydicom", "data_store", "deid_data")  # pydicom-data is called data_store


def folders() -> list[Path]:
    """Where the packages keep their files."""
    found = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        found.append(Path(spec.origin).parent / ("data" if name == "pydicom" else ""))
    return found


def deidentified_pairs(node: Node, paths: Sequence[Path], out: Path) -> Iterator[tuple[Row, Path]]:
    """What became of each file, with the place of its original; entries of archives are left out."""
    roots = [path if path.is_dir() else path.parent for path in paths]
    with deidentified(node.deid_context, Request(paths, out)) as run:
        for row in run.rows():
            places = [root / row.shown for root in roots if (root / row.shown).exists()]
            if places:
                yield row, _the_one(run.journal, row, places)


def _the_one(journal: Journal, row: Row, places: list[Path]) -> Path:
    from dicomnode.workflow.batch.inputs import Input

    (place,) = {p.resolve() for p in places if journal.input_id(Input(p.parent, p.resolve())) == row.input_id}
    return place


def assert_settled(row: Row, original: Path) -> None:
    """A file has passed with its pixels, or is a duplicate of one, or says by a documented word why not."""
    assert row.status in ("ok", "quarantined"), (original.name, row.reason)
    assert "\n" not in row.reason
    if row.status == "quarantined":
        assert row.reason.split(":")[0] in MEANINGS, (original.name, row.reason)
        assert row.output is None
    elif row.output is not None:
        assert_same_pixels(original, Path(row.output))


def assert_same_pixels(original: Path, written: Path) -> None:
    """The decoded pixels are equal unless text was masked; the encoded ones where the original cannot be decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = dcmread(original), dcmread(written)
        try:
            decoded = before.pixel_array
        except Exception:  # noqa: BLE001 - what pydicom cannot decode before it need not after
            assert _encoded(before) == _encoded(after), original.name
        else:
            same = np.array_equal(decoded, after.pixel_array, equal_nan=decoded.dtype.kind == "f")
            masked = after.get("BurnedInAnnotation") == "NO" and decoded.shape == after.pixel_array.shape
            assert same or masked, original.name


def _encoded(ds: Dataset) -> bytes:
    names = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    return next(bytes(ds[name].value) for name in names if name in ds)

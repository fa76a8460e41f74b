"""Every row of Table E.1-1, planted in each place: gone or replaced as its column says, for each option offered."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from deid_report import table_rows
from planted import CT, element_of, marker_of, plant
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import compile_recipe
from dicomnode.domain import Pseudonym

SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
MODIFIED, FULL = table_rows.MODIFIED, table_rows.FULL
OFFERED = (
    MODIFIED, FULL, "clean-descriptors", "retain-patient-characteristics", "retain-device-identity",
    "retain-institution-identity", "retain-uids", "clean-pixel-data", "retain-safe-private",
)  # fmt: skip
DEFAULT = (MODIFIED, "clean-descriptors", "clean-pixel-data", "retain-patient-characteristics")
OPTIONS = {
    "basic": (),
    **{option: (option,) for option in OFFERED},
    "default": DEFAULT,
    "everything-modified": tuple(option for option in OFFERED if option != FULL),
    "everything-full": tuple(option for option in OFFERED if option != MODIFIED),
}
# Where the planted attributes stand in the file that tests/planted.py writes.
PLACES = {
    "top": [()],
    "nested": [(0x00081115, 0), (0x00081115, 1, 0x0008114A, 0)],
    "un": [(0x00082218, 0)],
    "private": [],
}
IN_EACH_RUN = ("basic", "default")  # the others take a minute more: make test-all
FRAME = {0x00080016, 0x00080018, 0x0020000D, 0x0020000E}  # of the object itself: not planted at its top level
STAMPED = {0x00120063, 0x00120064}  # at the top level they hold what the node says of itself


def test_n_rows_can_be_planted() -> None:
    assert len(table_rows.rows()) == 648  # 652 less those of commands, file meta and DICOMDIR


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    for place in PLACES:
        plant(folder / f"{place}.dcm", table_rows.rows(), [place])
    return {place: folder / f"{place}.dcm" for place in PLACES}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_EACH_RUN else [pytest.mark.slow]) for name in OPTIONS]
)
def test_each_row_becomes_what_its_column_says(planted: dict[str, Path], name: str, place: str, tmp_path: Path) -> None:
    options = frozenset(OPTIONS[name])
    out = tmp_path / "out.dcm"
    Deidentifier(compile_recipe("basic", options), bytes(32), fsync=False).deidentify(planted[place], out, SUBJECT)
    result, raw = dcmread(out), out.read_bytes()
    fates = list(itertools.chain.from_iterable(_fates(result, path, options) for path in PLACES[place]))
    assert [f"{fate.tag:08X}: {fate.wrong}" for fate in fates if fate.wrong] == []
    assert len(fates) >= len(PLACES[place]) * (len(table_rows.rows()) - len(FRAME) - len(STAMPED))
    stays = {fate.tag for fate in fates if fate.outcome == "kept"}
    assert [f"{tag:08X}" for tag in table_rows.rows() if tag not in stays and _marker_in(raw, tag)] == []


def _fates(result: Dataset, path: tuple[int, ...], options: frozenset[str]) -> list[table_rows.Fate]:
    item = table_rows.at(result, path)
    assert item is not None, "the sequence around the planted attributes is gone"
    tags = [tag for tag in table_rows.rows() if path or tag not in FRAME | STAMPED]
    return [table_rows.fate(element_of(tag), item.get(tag), tag, options, SUBJECT.days) for tag in tags]


def _marker_in(raw: bytes, tag: int) -> bool:
    """Whether the bytes hold what was planted; dates and sequences are looked for elsewhere in the tests."""
    if table_rows.rows()[tag]["vr"] in ("DA", "DT", "SQ"):
        return False
    marker = marker_of(tag)
    return marker is not None and re.search(re.escape(marker) + rb"(?!\d)", raw) is not None


def test_the_judge_itself_finds_what_was_left(planted: dict[str, Path]) -> None:
    original = dcmread(planted["nested"])
    wrong = [fate for fate in _fates(original, (0x00081115, 0), frozenset()) if fate.wrong]
    assert len(wrong) == len(table_rows.rows()) - 2  # the two sequences of which the table wants the UIDs replaced
    assert original.SOPClassUID == CT

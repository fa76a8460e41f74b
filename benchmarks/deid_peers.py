"""De-identification side by side: ``python benchmarks/deid_peers.py [-n FILES]``; peers: ``pip install --group bench``.

One planted CT (a marker in each attribute of Table E.1-1 and each other attribute that holds a UID, date, time or name;
at the top, in sequences, in a sequence encoded as UN, in a private block; overlays, file meta, preamble, padding) goes
through dicomnode, deid with its own recipe, dicognito and Kitware's dicom-anonymizer, each as its manual says and
without settings. Counted is what is still there. Then the time of one 512 x 512 CT, files of all tools in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataelem import DataElement

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.deid_speed import OPTIONS, SUBJECT, generated_ct  # noqa: E402
from dicomnode.deid.engine import Deidentifier  # noqa: E402
from dicomnode.deid.recipe import compile_recipe  # noqa: E402
from tests.planted import PLACES, WORD, Planted, plant, plantable, value_of  # noqa: E402

Tool = Callable[[Path, Path], None]
# Places where every attribute is planted (counted by value), the others hold markers (counted in the bytes).
ELEMENTS = {
    "top": "at the top", "nested": "in sequences", "un": "in a sequence inside UN", "private": "in a private block",
}  # fmt: skip
OTHERS = {
    "groups": "overlays, curves, unknown", "meta": "file meta", "preamble": "preamble", "trailing": "padding",
}  # fmt: skip
FRAME = {0x00080016, 0x00080018, 0x0020000D, 0x0020000E}  # what makes the file an image: not planted at the top
QUIET = -5  # level of deid's own messages
OWN, AUDITED = "dicomnode", "dicomnode, without its audit"


def own(options: tuple[str, ...], *, audited: bool = True) -> Tool:
    """Recipe, engine and audit of a node, without fsync: the others do not sync either."""
    engine = Deidentifier(compile_recipe("basic", options), bytes(32), fsync=False, audited=audited)

    def run(source: Path, target: Path) -> None:
        engine.deidentify(source, target, SUBJECT)

    return run


def deid() -> Tool:
    """The deid package with the recipe that it comes with, as its page "getting started" calls it."""
    importlib.import_module("deid.logger").bot.level = QUIET  # else it tells of each file
    dicom = importlib.import_module("deid.dicom")
    fields = importlib.import_module("deid.dicom.fields")

    def run(source: Path, target: Path) -> None:
        found = dicom.get_identifiers([str(source)])
        cleaned = dicom.replace_identifiers(dicom_files=[str(source)], ids=found, save=False, strip_sequences=False)
        cleaned[0].save_as(target)
        for cached in ("_get_fields_inner", "get_fields_inner"):  # it keeps every data set it ever saw
            if clear := getattr(getattr(fields, cached, None), "cache_clear", None):
                clear()

    return run


def dicognito() -> Tool:
    """dicognito's ``Anonymizer``, one for all files."""
    anonymizer = importlib.import_module("dicognito.anonymizer").Anonymizer()

    def run(source: Path, target: Path) -> None:
        ds = dcmread(source)
        anonymizer.anonymize(ds)
        ds.save_as(target)

    return run


def kitware() -> Tool:
    """``anonymize_dicom_file`` of dicom-anonymizer with its default table."""
    module = importlib.import_module("dicomanonymizer")

    def run(source: Path, target: Path) -> None:
        module.anonymize_dicom_file(str(source), str(target))

    return run


PEERS: tuple[tuple[str, str, Callable[[], Tool]], ...] = (
    ("deid, its own recipe", "deid", deid),
    ("dicognito", "dicognito", dicognito),
    ("dicom-anonymizer (Kitware)", "dicom-anonymizer", kitware),
)


def tools() -> Iterator[tuple[str, Tool]]:
    """Name with version, and the tool; peers that are not installed are named and left out."""
    yield f"{OWN} {version('dicomnode')}, default options", own(OPTIONS)
    yield f"{OWN} {version('dicomnode')}, no options", own(())
    yield AUDITED, own(OPTIONS, audited=False)
    for name, package, make in PEERS:
        try:
            yield f"{name} {version(package)}", make()
        except (PackageNotFoundError, ImportError):
            print(f"- {package} is not installed: pip install --group bench")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Tools that print and warn for each file would time the terminal."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(logging.NOTSET)


def held(path: Path) -> set[int]:
    """Tags of the elements, at any depth, whose value is the planted one; a sequence by the name in its item."""
    planted, found = values(), set()
    with quiet():
        for element in dcmread(path, force=True).iterall():
            tag = int(element.tag)
            if tag in planted and is_planted(element, planted[tag]):
                found.add(tag)
    return found


@functools.cache
def values() -> dict[int, Any]:
    """What is planted, by tag."""
    return {tag: value_of(tag) for tag in plantable() if tag not in FRAME}


def is_planted(element: DataElement, value: Any) -> bool:
    """Whether the element has the planted value."""
    if element.VR == "SQ":
        names = {str(item.get("PersonName", "")) for item in element.value or ()}
        return any(name.startswith(f"{WORD}SQ{int(element.tag):08X}") for name in names)
    return bool(element.value == value)


def left(planted: Planted, target: Path, place: str) -> str:
    """A cell of the table: how many of what was planted the written file holds."""
    if place in ELEMENTS:
        there = held(planted.path)
        return f"{len(held(target) & there)} of {len(there)}"
    written = target.read_bytes()
    return f"{sum(marker in written for marker in planted.markers.values())} of {len(planted.markers)}"


def leaks(tool: Tool, folder: Path) -> list[str]:
    """Cells of one tool, a place each; what it raises is a result too."""
    cells = []
    for place in PLACES:
        planted = plant(folder / f"{place}.dcm", None if place in ELEMENTS else (), places=(place,))
        target = folder / "out.dcm"
        target.unlink(missing_ok=True)
        try:
            with quiet():
                tool(planted.path, target)
        except Exception as error:  # noqa: BLE001 (of foreign code)
            cells.append(f"refused: {getattr(error, 'reason', type(error).__name__)}")
            continue
        cells.append(left(planted, target, place))
    return cells


def seconds(all_tools: dict[str, Tool], files: list[Path], target: Path) -> dict[str, float]:
    """Median milliseconds of one file; the tools take turns file by file, so that a busy moment meets them all."""
    taken: dict[str, list[float]] = {name: [] for name in all_tools}
    for file in files:
        for name, tool in all_tools.items():
            target.unlink(missing_ok=True)
            started = time.perf_counter()
            try:
                with quiet():
                    tool(file, target)
            except Exception:  # noqa: BLE001 (as in ``leaks``)
                continue
            taken[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(found[len(found) // 8 :]) for name, found in taken.items() if found}


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=48, help="files of the timing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with quiet():
            found = list(tools())
        print("Planted values that are still in the file, by where they were planted:\n")
        titles = {**ELEMENTS, **OTHERS}
        print("| | " + " | ".join(titles[place] for place in PLACES) + " |")
        print("|" + "---|" * (len(PLACES) + 1))
        for title, tool in found:
            if title != AUDITED:
                print(f"| {title} | " + " | ".join(leaks(tool, folder)) + " |")
        print("\nThe default options leave what they are there for: 54 times of day (dates move), and PregnancyStatus.")
        files = [generated_ct(folder / f"{number}.dcm", number) for number in range(args.n)]
        times = seconds(dict(found), files, folder / "out.dcm")
        base = times[found[0][0]]
        print("\n| one 512 x 512 CT | ms | beside dicomnode |\n|---|---|---|")
        for title, taken in times.items():
            print(f"| {title} | {taken:.1f} | {taken / base:.2f} |")


if __name__ == "__main__":
    main()

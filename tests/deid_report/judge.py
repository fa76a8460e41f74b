"""The ten checks of MIDI-B (MICCAI 2024) on what became of planted objects, by this project's own reading of them.

It compares files: the planted object, the result, the answer key, and Table E.1-1. It imports nothing of dicomnode.
A patient's shift of dates is taken from the first study date of theirs and has to hold for every other date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath

import numpy as np
from pydicom import dcmread
from pydicom.datadict import dictionary_has_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset

from . import pixels, table_rows
from .objects import TEXT_FREE
from .plants import Path, Plant, Planted

CHECKS = (
    "tag_retained", "text_notnull", "text_retained", "text_removed", "date_shifted", "uid_changed", "uid_consistent",
    "patid_consistent", "pixels_hidden", "pixels_retained",
)  # fmt: skip
SAFE_PRIVATE = "retain-safe-private"
_STANDARD = "1.2.840.10008."
_OWN = {0x00120062, 0x00120063, 0x00120064, 0x00280303}  # what the node says of itself, at the top level
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_SUBJECT = {0x00100010, 0x00100020}


@dataclass
class Tally:
    """How often one check was asked and what failed: object, place and kind, never more."""

    n: int = 0
    failures: list[str] = field(default_factory=list)

    def ask(self, good: bool, failure: str) -> None:
        self.n += 1
        if not good:
            self.failures.append(failure)

    @property
    def passed(self) -> int:
        return self.n - len(self.failures)


class Judge:
    """Collects the checks over all objects of a run. ``options`` as in ``[deid] options``."""

    def __init__(self, options: frozenset[str]) -> None:
        self._options = options
        self.tallies = {check: Tally() for check in CHECKS}
        self.words = Tally()  # the part of text_retained that is clinical words between identities
        self.by_place: dict[str, Tally] = {}  # text_removed by where it was planted
        self.by_look: dict[str, Tally] = {}  # pixels_hidden by how it was drawn
        self._days: dict[int, int] = {}
        self._uids: dict[str, str] = {}
        self._back: dict[str, str] = {}
        self._patients: dict[str, str] = {}
        self._pseudonyms: dict[str, str] = {}

    def judge(self, planted: Planted, result: FilePath) -> None:
        """All checks on one object and its result."""
        before, after = dcmread(planted.file), dcmread(result)
        raw = result.read_bytes()
        self._removed(planted, after, raw)
        days = self._days_of(planted, before, after)
        for path, element in elements(before):
            self._element(planted, path, element, after, days, raw)
        for plant in planted.plants:
            self._kept_words(planted, plant, before, after)
        if SAFE_PRIVATE in self._options:
            self._private(planted, after)
        self._patient(planted, before, after)
        self._pixels(planted, before, after)

    # text_removed

    def _removed(self, planted: Planted, after: FileDataset, raw: bytes) -> None:
        haystack = _Haystack(after, raw)
        for plant in planted.plants:
            if plant.path and plant.path[-1] in table_rows.rows() and self._kept_by_option(plant.path):
                continue
            for kind, secret in plant.secrets:
                if secret in planted.also_words or secret.title() in planted.also_words:
                    good = not _held_at(after, plant, secret)
                else:
                    good = secret not in haystack
                failure = f"{planted.title}: {kind} planted at `{_shown(plant)}`"
                self.tallies["text_removed"].ask(good, failure)
                self.by_place.setdefault(plant.place, Tally()).ask(good, failure)

    def _kept_by_option(self, path: Path) -> bool:
        """Whether an option keeps the value as it is: the identity of a device, where that was asked for."""
        return self._stays_around(path) and table_rows.allowed(path[-1], self._options) == {"kept"}

    # tag_retained, text_notnull, text_retained, date_shifted, uid_changed, uid_consistent

    def _element(
        self, planted: Planted, path: Path, before: DataElement, after: FileDataset, days: int, raw: bytes
    ) -> None:
        tag = path[-1]
        if tag in _PIXELS or (len(path) == 1 and tag in _OWN) or not self._stays_around(path):
            return
        may = self._may(before, path)
        now = _element_at(after, path)
        place = f"{planted.title} {_path(path)}"
        if "absent" not in may and tag not in _SUBJECT:
            self.tallies["tag_retained"].ask(now is not None, place)
        if before.VR == "SQ":
            return
        old, new = _texts(before), _texts(now)
        if not any(old):
            return
        if tag in _SUBJECT or may <= {"kept", "aged", "uid", "dummy"}:
            self.tallies["text_notnull"].ask(any(new), place)
        if tag in _SUBJECT:
            return
        if "aged" in may:
            self.tallies["text_retained"].ask(new == [table_rows.aged(one) for one in old], place)
        elif may == {"kept"}:
            self.tallies["text_retained"].ask(new == old, place)
        if "shifted" in may and all(re.fullmatch(r"\d{8}.*", one) for one in old if one):
            moved = [one and table_rows.shifted(one, days) for one in old]
            self.tallies["date_shifted"].ask(days < 0 and new == moved, place)
        if before.VR == "UI" and may != {"kept"}:
            self._uid(old, new, raw, place, gone=may == {"absent"})

    def _uid(self, old: list[str], new: list[str], raw: bytes, place: str, *, gone: bool) -> None:
        ours = [uid for uid in old if uid and not uid.startswith(_STANDARD)]
        for uid in ours:
            there = re.search(rb"(?<![\d.])" + re.escape(uid.encode()) + rb"(?![\d.])", raw)
            self.tallies["uid_changed"].ask(uid not in new and there is None, place)
        if gone or len(new) != len(old):
            return
        for was, now in zip(old, new, strict=True):
            if was in ours and now:
                good = self._uids.setdefault(was, now) == now and self._back.setdefault(now, was) == was
                self.tallies["uid_consistent"].ask(good, place)

    def _may(self, element: DataElement, path: Path) -> frozenset[str]:
        """What may become of an element; for those that the table lacks by VR, as docs/deid.md says."""
        tag, vr = path[-1], element.VR
        if tag in table_rows.rows():
            return table_rows.allowed(tag, self._options)
        if _is_removed(tag) or vr in ("PN", "AE"):
            return frozenset({"absent"})
        if vr in ("DA", "DT", "TM"):
            if table_rows.FULL in self._options:
                return frozenset({"kept"})
            if table_rows.MODIFIED in self._options:
                return frozenset({"kept"} if vr == "TM" else {"shifted", "empty"})
            return frozenset({"absent"})
        if vr == "UI":
            standard = all(one.startswith(_STANDARD) for one in _texts(element))
            return frozenset({"kept"} if standard or "retain-uids" in self._options else {"uid"})
        return frozenset({"kept"})

    def _stays_around(self, path: Path) -> bool:
        """Whether the sequences around an element stay, by the table."""
        for tag in path[:-1:2]:
            if tag in table_rows.rows():
                if not table_rows.allowed(tag, self._options) & {"kept", "opened"}:
                    return False
            elif _is_removed(tag):
                return False
        return True

    def _kept_words(self, planted: Planted, plant: Plant, before: FileDataset, after: FileDataset) -> None:
        """Clinical words in texts that are cleaned; those that the patient is called by are not asked for."""
        if not plant.keep or not plant.path or not self._stays_around(plant.path):
            return
        element = _element_at(before, plant.path)
        if element is None or "cleaned" not in self._may(element, plant.path):
            return
        there = " ".join(_texts(_element_at(after, plant.path))).casefold().split()
        hidden = {secret.casefold() for _, secret in plant.secrets} | {word.casefold() for word in planted.also_words}
        for word in plant.keep:
            if word.casefold() not in hidden:
                good = word.casefold() in there
                failure = f"{planted.title} {_path(plant.path)}: the word '{word}'"
                self.tallies["text_retained"].ask(good, failure)
                self.words.ask(good, word.casefold())

    def _private(self, planted: Planted, after: FileDataset) -> None:
        """Safe private elements, where the option keeps them."""
        for path, value in planted.safe:
            element = _element_at(after, path)
            place = f"{planted.title} {_path(path)}"
            self.tallies["tag_retained"].ask(element is not None, place)
            self.tallies["text_retained"].ask("\\".join(_texts(element)) == value, place)

    # what belongs to the patient and the pixels

    def _days_of(self, planted: Planted, before: Dataset, after: Dataset) -> int:
        """Days from the patient's first study date to the one in its result; 0 where there is none."""
        old, new = str(before.get("StudyDate") or ""), str(after.get("StudyDate") or "")
        if planted.patient not in self._days and len(old) == len(new) == 8:
            days = np.datetime64(f"{new[:4]}-{new[4:6]}-{new[6:]}") - np.datetime64(f"{old[:4]}-{old[4:6]}-{old[6:]}")
            self._days[planted.patient] = int(days.astype(int))
        return self._days.get(planted.patient, 0)

    def _patient(self, planted: Planted, before: Dataset, after: Dataset) -> None:
        was, now = str(before.PatientID), str(after.get("PatientID") or "")
        same = self._patients.setdefault(was, now) == now and self._pseudonyms.setdefault(now, was) == was
        self.tallies["patid_consistent"].ask(bool(now) and now != was and same, planted.title)

    def _pixels(self, planted: Planted, before: FileDataset, after: FileDataset) -> None:
        """Pixels decoded are the same; where this machine decodes none, the bytes of the element.

        Of a file that shows text of its own the part that shows none is compared.
        """
        top, bottom, left, right = TEXT_FREE.get(planted.source, (None, None, None, None))
        try:
            old, new = before.pixel_array, after.pixel_array
            window = (slice(top, bottom), slice(left, right)) if planted.source in TEXT_FREE else ...
            good = old.shape == new.shape and bool(np.array_equal(old[window], new[window]))
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            good = before.get("PixelData") == after.get("PixelData")
        self.tallies["pixels_retained"].ask(good, planted.title)

    def judge_pixels(self, planted: pixels.PlantedImage, result: FilePath) -> None:
        """Text in pixels: whether each line is gone, and whether the pixels far from it are the original ones."""
        for line, wrong in pixels.judged_lines(planted, result):
            failure = f"{planted.title}: {line.look}, {line.font}, {line.height} pixels high: {wrong}"
            self.tallies["pixels_hidden"].ask(not wrong, failure)
            self.by_look.setdefault(line.look, Tally()).ask(not wrong, failure)
        wrong = pixels.retained(planted, result)
        self.tallies["pixels_retained"].ask(not wrong, f"{planted.title}: {wrong}")


def _is_removed(tag: int) -> bool:
    """Private, curves and overlays, unknown attributes, what is no part of an image: always removed."""
    group = tag >> 16
    out = group % 2 == 1 or tag >> 24 in (0x50, 0x60) or group <= 0x0006
    return out or tag & 0xFFFF == 0 or tag == 0xFFFCFFFC or not dictionary_has_tag(tag)


class _Haystack:
    """A result as its bytes and as its values, to look for a secret in."""

    def __init__(self, ds: FileDataset, raw: bytes) -> None:
        end = raw.rfind(bytes(ds.PixelData)[:64]) if "PixelData" in ds else len(raw)
        self._head = raw[: end if end > 0 else len(raw)].lower() + raw[-256:].lower()
        texts = [text for _, element in elements(ds) if element.VR != "UI" for text in _texts(element)]
        texts += [str(element.value) for element in ds.file_meta if element.VR != "UI"]
        self._texts = "\n".join(texts).casefold()
        self._squashed = "\n".join(_squash(text) for text in texts)

    def __contains__(self, secret: str) -> bool:
        text, squashed = secret.casefold(), _squash(secret)
        if squashed.isdigit():
            return re.search(rf"(?<!\d){squashed}(?!\d)", self._squashed) is not None
        encoded = (text.encode("utf-8"), text.encode("latin-1", "replace"), secret.lower().encode())
        if any(form in self._head for form in encoded) or text in self._texts:
            return True
        return len(squashed) >= 6 and squashed in self._squashed


def _squash(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _held_at(ds: FileDataset, plant: Plant, secret: str) -> bool:
    """Whether the value at one place holds a secret that is also a common word, beside the clinical words there."""
    element = _element_at(ds, plant.path) if plant.path else None
    held = " ".join(_texts(element)).casefold()
    return held.count(secret.casefold()) > " ".join(plant.keep).casefold().count(secret.casefold())


def elements(ds: Dataset, prefix: Path = ()) -> Iterator[tuple[Path, DataElement]]:
    """Every element at every depth with its path."""
    for element in ds:
        path = (*prefix, int(element.tag))
        yield path, element
        if element.VR == "SQ":
            for number, item in enumerate(element.value or ()):
                yield from elements(item, (*path, number))


def _element_at(ds: Dataset, path: Path) -> DataElement | None:
    item = table_rows.at(ds, path[:-1])
    return item[path[-1]] if item is not None and path[-1] in item else None


def _texts(element: DataElement | None) -> list[str]:
    held = [] if element is None or element.VR == "SQ" else table_rows.values(element)
    return [one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in held]


def _path(path: Path) -> str:
    steps = [f"({step >> 16:04X},{step & 0xFFFF:04X})" if step > 0xFFFF else f"[{step}]" for step in path]
    return "".join(steps).replace("](", "] > (")  # not the form of a link in Markdown


def _shown(plant: Plant) -> str:
    return f"{plant.place} {_path(plant.path)}".strip()

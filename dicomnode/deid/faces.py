"""Whether a face may be recognised in an image, or in what can be reconstructed from its series.

Judged for each object by itself, from what its header says of the body part (words in English and Spanish, SNOMED
codes, config/deid/head-regions.txt) and by geometry: thickness, orientation, field of view; pixels are looked at only
where the header leaves it open. In doubt it says "possible". It removes nothing. Sources: PS3.3 C.7.6.1
(Recognizable Visual Features), C.7.6.2 (image plane), C.7.6.16.2 (functional groups), PS3.15 E.3.2, PS3.16 Annex L.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from dicomnode.deid import table
from dicomnode.deid.pixel_policy import text_of
from dicomnode.deid.source import Source
from dicomnode.errors import QuarantineError

REASON = "recognizable-face"
ADVICE = "look at it ('dicomnode quarantine'), or send a copy without the face; [deid] faces decides"
THIN_MM = 5.0  # of thickness or spacing: more gives no surface of a face; a sagittal slice shows a profile by itself
WIDE_MM = 180.0  # field of view: a head with the skin around it fits in; a smaller one may cut the face off
HEAD_MM = 300.0  # no head is wider, with hair and headrest
_AIR_HU = -300.0  # between air and fat
_DARK = 0.1  # of the brightest: background of images without units
_ARC = 45  # degrees of the circle in the image that must be air, for skin to be seen against it
_VOLUMES = frozenset({"CT", "MR", "PT"})
_PHOTOGRAPH = "XC"  # external-camera photography, PS3.3 C.7.3.1.1.1
_CLEANED = "113102"  # CID 7050: Clean Recognizable Visual Features Option
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "StudyDescription", "PerformedProcedureStepDescription",
                 "RequestedProcedureDescription", "PerformedProtocolType", "AcquisitionProtocolName")  # fmt: skip
_REGIONS = ("AnatomicRegionSequence", "PrimaryAnatomicStructureSequence")
_WORD = re.compile(r"[a-z]+")


class Face(StrEnum):
    """Whether a face may be recognised: no; the header does not tell; yes, as far as can be told."""

    NONE = "none"
    POSSIBLE = "possible"
    LIKELY = "likely"


def judge(source: Source) -> Face:
    """What is said of one object; its pixels are decoded only where the header leaves it open."""
    ds = source.ds
    said = text_of(ds, "RecognizableVisualFeatures").upper()
    if said == "YES":
        return Face.LIKELY
    if said == "NO" and _was_cleaned(ds):
        return Face.NONE
    modality = text_of(ds, "Modality").upper()
    if modality == _PHOTOGRAPH:
        return Face.POSSIBLE
    if modality not in _VOLUMES:
        return Face.NONE
    head, other = spoken_of(ds)
    if (other and not head) or not _can_be_rendered(ds):
        return Face.NONE
    wide = min(_field_of_view(ds)) >= WIDE_MM
    if head and not wide and not _any_frame(source, shows_skin):
        return Face.NONE
    if not head and modality == "CT" and not _any_frame(source, _not_too_wide):
        return Face.NONE
    return Face.LIKELY if head and not other else Face.POSSIBLE


def refuse(face: Face) -> None:
    """For ``[deid] faces = "quarantine"``.

    Raises
    ------
    QuarantineError
        ``recognizable-face``, where it is likely or possible.
    """
    if face is Face.LIKELY:
        raise QuarantineError(
            "recognizable-face", "a face may be recognised in images of this part of the body", advice=ADVICE
        )
    if face is Face.POSSIBLE:
        raise QuarantineError(
            "recognizable-face", "the header does not rule out that a face can be recognised", advice=ADVICE
        )


def statement(face: Face, said: str, *, no_face: bool) -> str:
    """The value of (0028,0302) that is true: YES, NO, or empty where nobody knows.

    ``said``: what the original says; ``no_face``: a person looked and says that there is none.
    """
    if no_face:
        return "NO"
    if face is Face.LIKELY:
        return "YES"
    return "NO" if said == "NO" and face is Face.NONE else ""


def spoken_of(ds: Dataset) -> tuple[bool, bool]:
    """Whether the header speaks of head or neck, and whether of another part of the body."""
    words = _words()
    head = other = False
    for item in _regions(ds):
        code = str(item.get("CodeValue") or "").strip()
        texts = [str(item.get("CodeMeaning") or "")]
        head |= code in words.codes or any(map(words.is_head, texts))
        other |= bool(code) and code not in words.codes
    part = "".join(_letters(text_of(ds, "BodyPartExamined")))
    head, other = head or part in words.parts, other or part in words.others
    for keyword in ("BodyPartExamined", *_DESCRIPTIONS):
        text = text_of(ds, keyword)
        head, other = head or words.is_head(text), other or words.is_other(text)
    return head, other


class _Words:
    """The data file, folded."""

    def __init__(self) -> None:
        self.parts: set[str] = set()
        self.others: set[str] = set()
        self.codes: set[str] = set()
        phrases = []
        for line in table.data_lines("head-regions.txt"):
            kind, _, rest = line.partition(":")
            if kind == "part":
                self.parts.update("".join(_letters(word)) for word in rest.split())
            elif kind == "other":
                self.others.update("".join(_letters(word)) for word in rest.split())
            elif kind == "code":
                self.codes.update(rest.split()[1::2])
            else:
                phrases.append(" ".join(_letters(rest)))
        found = "|".join(sorted({*phrases, *self.parts}, key=len, reverse=True))
        self._phrase = re.compile(rf"\b(?:{found})\b")

    def is_head(self, text: str) -> bool:
        return self._phrase.search(" ".join(_letters(text))) is not None

    def is_other(self, text: str) -> bool:
        return not self.others.isdisjoint(_letters(text))


@functools.cache
def _words() -> _Words:
    return _Words()


def _letters(text: str) -> list[str]:
    """The words of a text, without case, accents, numbers and what else joins them."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(c for c in plain if not unicodedata.combining(c)))


def _was_cleaned(ds: Dataset) -> bool:
    codes = ds.get("DeidentificationMethodCodeSequence") or ()
    return any(str(item.get("CodeValue") or "").strip() == _CLEANED for item in codes)


def _groups(ds: Dataset, name: str) -> Iterator[Dataset]:
    """A functional group's items: the shared one, and that of the first frame."""
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in list(ds.get(sequence) or ())[:1]:
            yield from item.get(name) or ()


def _regions(ds: Dataset) -> Iterator[Dataset]:
    for place in (ds, *_groups(ds, "FrameAnatomySequence")):
        for keyword in _REGIONS:
            yield from place.get(keyword) or ()


def _numbers(ds: Dataset, group: str, keyword: str) -> list[float]:
    """A plane's attribute, of the object or of its functional groups; empty where absent or no numbers."""
    for place in (ds, *_groups(ds, group)):
        value = place.get(keyword)
        if value is None or value == "":
            continue
        try:
            found = [float(one) for one in ([value] if isinstance(value, (int, float, str)) else value)]
        except (TypeError, ValueError):
            continue
        if found and all(map(math.isfinite, found)):
            return found
    return []


def _can_be_rendered(ds: Dataset) -> bool:
    """Whether slices lie close enough for a surface, or one of them shows a profile; unknown counts as yes."""
    facing = _numbers(ds, "PlaneOrientationSequence", "ImageOrientationPatient")
    if len(facing) != 6:
        return True
    normal = np.abs(np.cross(facing[:3], facing[3:]))
    if normal.argmax() == 0:  # x runs from right to left (PS3.3 C.7.6.2.1.1)
        return True
    kind = ds.get("ImageType") or []
    kinds = {str(one).strip().upper() for one in ([kind] if isinstance(kind, str) else kind)}
    if "LOCALIZER" in kinds and text_of(ds, "Modality").upper() == "CT":
        return False  # a projection; from the front it shows no face
    both = [_numbers(ds, "PixelMeasuresSequence", name)[:1] for name in ("SliceThickness", "SpacingBetweenSlices")]
    known = [abs(one) for found in both for one in found if one]
    return len(known) < len(both) or min(known) <= THIN_MM


def _field_of_view(ds: Dataset) -> tuple[float, float]:
    """Height and width in mm; infinite where not known."""
    spacing = _numbers(ds, "PixelMeasuresSequence", "PixelSpacing")
    try:
        rows, columns = int(ds.Rows), int(ds.Columns)
    except (AttributeError, TypeError, ValueError):
        return math.inf, math.inf
    if len(spacing) != 2 or min(spacing) <= 0:
        return math.inf, math.inf
    return rows * spacing[0], columns * spacing[1]


def _any_frame(source: Source, seen: Any) -> bool:
    """Whether ``seen`` says yes of the first, middle or last frame; what cannot be decoded counts as yes."""
    count = source.frames()
    for number in sorted({0, count // 2, count - 1}):
        try:
            source.stream.seek(0)
            frame = pixel_array(source.stream, index=number, raw=True)
            if frame.ndim != 2 or seen(frame, source.ds):
                return True
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 (decoders raise what they like; in doubt there is a face)
            return True
    return False


def _is_air(frame: NDArray[Any], ds: Dataset) -> NDArray[np.bool_]:
    values = frame.astype(np.float32)
    if text_of(ds, "Modality").upper() == "CT":
        slope, intercept = (float(ds.get(name, default) or default) for name, default in
                            (("RescaleSlope", 1), ("RescaleIntercept", 0)))  # fmt: skip
        return np.asarray(values * slope + intercept < _AIR_HU)
    return np.asarray(values < _DARK * float(np.percentile(values, 99.5)))


def shows_skin(frame: NDArray[Any], ds: Dataset) -> bool:
    """Whether the body ends inside the image: air along an arc of the circle in it, tissue within.

    Along a circle, because reconstructions are often round and blank in the corners.
    """
    air = _is_air(frame, ds)
    rows, columns = air.shape
    if air.all() or not air.any():
        return False
    angles = np.deg2rad(np.arange(360))
    radius = 0.48 * min(rows, columns)
    y = np.clip(np.round(rows / 2 + radius * np.sin(angles)), 0, rows - 1).astype(int)
    x = np.clip(np.round(columns / 2 + radius * np.cos(angles)), 0, columns - 1).astype(int)
    around = np.concatenate([air[y, x], air[y, x][:_ARC]])
    longest = run = 0
    for one in around:
        run = run + 1 if one else 0
        longest = max(longest, run)
    return longest >= _ARC


def _not_too_wide(frame: NDArray[Any], ds: Dataset) -> bool:
    """Whether what is not air in a CT slice is at most as wide as a head; unknown size counts as yes."""
    tissue = ~_is_air(frame, ds)
    width = _field_of_view(ds)[1] / max(1, tissue.shape[1])
    across = np.flatnonzero(tissue.mean(axis=0) > 0.1)  # columns; a table is thin
    return not math.isfinite(width) or len(across) == 0 or (across[-1] - across[0]) * width <= HEAD_MM

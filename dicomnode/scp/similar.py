"""The private keys by which C-FIND asks for similar images: found in a request, written into an answer.

Private creator ``DICOMNODE 1.0`` in group 0099, in whatever block the peer reserved. They need no private dictionary
here: values are read and written by their tag. Facts: PS3.5 7.8.1 (private blocks), PS3.2 (private type 3 attributes).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from dicomnode.errors import InputError

CREATOR = "DICOMNODE 1.0"
GROUP = 0x0099
SIMILAR_TO, MAXIMUM, SIMILARITY, RANK = 0x01, 0x02, 0x03, 0x04  # UI, IS, FD, IS: the last two digits of the element
MOST = 1000  # cases in one answer
_BLOCKS = range(0x10, 0x100)
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class Asked:
    """The private part of a request.

    Attributes
    ----------
    block : int
        Block of the private creator: 0x10 for (0099,10xx).
    instance : str
        Similar-To SOP Instance UID, original or pseudonymous; "" where the request only names the keys.
    maximum : int, optional
        Matches wanted; None: as the node is set.
    tags : frozenset of int
        All that was read, the creator included.
    """

    block: int
    instance: str
    maximum: int | None
    tags: frozenset[int]


def read_similar(identifier: Dataset) -> Asked | None:
    """The private keys of a request; None where it has none.

    Raises
    ------
    InputError
        A value has not the form its key needs.
    """
    block = next((b for b in _BLOCKS if _text(identifier, b) == CREATOR), None)
    if block is None:
        return None
    places = {number: block << 8 | number for number in (SIMILAR_TO, MAXIMUM, SIMILARITY, RANK)}
    instance, maximum = _text(identifier, places[SIMILAR_TO]), _text(identifier, places[MAXIMUM])
    if instance and not _UID.fullmatch(instance):
        raise InputError("Similar-To SOP Instance UID is not one UID", place=f"(0099,{places[SIMILAR_TO]:04X})")
    if maximum and not (maximum.isascii() and maximum.isdecimal() and 1 <= int(maximum) <= MOST):
        raise InputError(f"maximum matches is not 1 to {MOST}", place=f"(0099,{places[MAXIMUM]:04X})")
    tags = {Tag(GROUP, element) for element in (block, *places.values()) if (GROUP, element) in identifier}
    return Asked(block, instance, int(maximum) if maximum else None, frozenset(tags))


def write_similar(answer: Dataset, asked: Asked, instance: str, similarity: float, rank: int) -> None:
    """Add the private part of an answer. ``instance`` is the pseudonymous UID of the image that was asked about."""
    answer.add_new((GROUP, asked.block), "LO", CREATOR)
    for number, vr, value in (
        (SIMILAR_TO, "UI", instance),
        (MAXIMUM, "IS", asked.maximum),
        (SIMILARITY, "FD", similarity),
        (RANK, "IS", rank),
    ):
        answer.add_new((GROUP, asked.block << 8 | number), vr, value)


def _text(identifier: Dataset, element: int) -> str:
    """A value as text; "" where it is absent or of zero length. UN, as implicit VR leaves it, is read as text."""
    if (GROUP, element) not in identifier:
        return ""
    found: DataElement = identifier[GROUP, element]
    if found.VR == "SQ" or isinstance(found.value, MultiValue | list):
        raise InputError("the value is not a single one", place=f"({GROUP:04X},{element:04X})")
    value = found.value.decode("ascii", "replace") if isinstance(found.value, bytes) else found.value
    return "" if value is None else str(value).strip(" \0")

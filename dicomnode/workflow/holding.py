"""What a person may do with an item of the quarantine: see how it is solved, look at a picture, find the study again.

Pictures and original UIDs identify: they are given only when asked for, to a file or to the terminal of who asked, and
the audit trail says so before (``cli.quarantine``). Nothing here is logged. Facts: docs/quarantine.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomnode.domain import PseudoUid
from dicomnode.errors import UsageError
from dicomnode.models.display import FrameAt, frame_values, rendered, window_of
from dicomnode.models.preprocess import read_header
from dicomnode.scp.records import SpoolInstance

_DISCARD = "dicomnode quarantine discard {id} --reason TEXT"
_RELEASE = "dicomnode quarantine release {id}"
_MASK = "dicomnode quarantine release {id} --mask LEFT,TOP,WIDTH,HEIGHT --reason TEXT"
_CLEAN = "dicomnode quarantine release {id} --clean --reason TEXT"
_IDENTIFY = "dicomnode quarantine show {id} --identify --reason TEXT"
_PICTURE = "dicomnode quarantine show {id} --picture FILE"
# By reason: the commands that solve it, in their order; docs/quarantine.md explains each, and a test compares the two.
SOLUTIONS: dict[str, tuple[str, ...]] = {
    "audit": (_IDENTIFY, _PICTURE, _MASK, _RELEASE, _DISCARD),
    "burned-in": (_PICTURE, _MASK, _CLEAN, _IDENTIFY, _DISCARD),
    "deid": ("dicomnode doctor", _RELEASE),
    "deid-failed": (_IDENTIFY, _DISCARD),
    "failed": ("dicomnode doctor", _RELEASE),
    "input": (_IDENTIFY, _DISCARD),
    "missing-uid": (_IDENTIFY, _DISCARD),
    "mixed-patients": (_IDENTIFY, _DISCARD),
    "no-pixel-data": (_IDENTIFY, _DISCARD),
    "not-dicom": (_DISCARD,),
    "not-image": (_DISCARD,),
    "not-searchable": (_PICTURE, _DISCARD),
    "recognizable-face": (_PICTURE, _CLEAN, _IDENTIFY, _DISCARD),
    "truncated": (_IDENTIFY, _DISCARD),
    "unsupported": (_IDENTIFY, _DISCARD),
    "version-conflict": (_IDENTIFY, _RELEASE, _DISCARD),
}
_UNKNOWN = (_IDENTIFY, _DISCARD)


def commands_for(reason: str, item_id: int, *, received: bool) -> list[str]:
    """The exact commands that solve an item, in their order.

    Parameters
    ----------
    received : bool
        Whether its objects lie in the spool; those of ``index add`` were left where they are, nothing is released.
    """
    if not received:
        return ["dicomnode index add PATH", _DISCARD.format(id=item_id)]
    return [command.format(id=item_id) for command in SOLUTIONS.get(reason, _UNKNOWN)]


@dataclass(frozen=True, slots=True)
class Original:
    """One held object as the PACS knows it. Identified: for the terminal of who asked, never for a log."""

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str

    def as_json(self) -> dict[str, Any]:
        return {
            "study_uid": self.study_uid,
            "series_uid": self.series_uid,
            "sop_instance_uid": self.sop_uid,
            "sop_class_uid": self.sop_class,
        }


def originals(study_uid: str, instances: Sequence[SpoolInstance]) -> list[Original]:
    """The original UIDs of held objects, in the order they came."""
    return [Original(study_uid, i.series_uid, i.sop_uid, i.sop_class) for i in instances]


def check_target(target: Path) -> None:
    """Before anything is written down: whether a picture could be written there.

    Raises
    ------
    UsageError
        There is a file already, or no folder.
    """
    if target.exists() or target.is_symlink():
        raise UsageError("there is a file already; it is not overwritten", place=str(target))
    if not target.parent.is_dir():
        raise UsageError("there is no such folder", place=str(target.parent))


def picture_of(instance: SpoolInstance, frame: int) -> bytes:
    """A frame of a held object as a grey PNG of its full size, for eyes that look for text.

    Raises
    ------
    InputError
        The object has no pixels that can be decoded, or no such frame.
    """
    import io

    from PIL import Image

    inverted = str(read_header(instance.path).get("PhotometricInterpretation") or "") == "MONOCHROME1"
    values = frame_values(FrameAt(instance.path, PseudoUid(""), frame))
    pixels = rendered(values, window_of(values), inverted=inverted)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_private(target: Path, data: bytes) -> None:
    """A new file, mode 0600."""
    with os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
        out.write(data)

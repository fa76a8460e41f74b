"""What de-identification hands back of one object.

Apart from the engine, so that who receives it need not import the engine and what that stands on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dicomnode.domain import OriginalUid, PseudoUid

MASKED, EXAMINED, COPIED = "masked", "examined", "not-examined"
PIXELS = (MASKED, EXAMINED, COPIED)  # text was blanked; none was found; nobody looked


@dataclass(frozen=True, slots=True)
class DeidResult:
    """What became of one object. Original UIDs are for the identified zone and are not shown by ``repr``.

    ``sha256`` of the written file and ``changes`` (keyword -> word of ``changes.WORDS`` -> number of elements) are
    told where the task asked for details. ``face``: a word of ``faces.Face``; ``pixels``: one of ``PIXELS``.
    """

    dst: Path
    original_instance: OriginalUid = field(repr=False)
    original_series: OriginalUid = field(repr=False)
    original_study: OriginalUid = field(repr=False)
    instance: PseudoUid
    series: PseudoUid
    study: PseudoUid
    sop_class: str
    modality: str
    transfer_syntax: str
    n_frames: int
    n_bytes: int
    recipe_sha256: str
    seconds: float
    face: str = ""
    pixels: str = ""
    sha256: str = ""
    changes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

"""The spool's records as small frozen types: a received file, a pending study, a job and its instances.

They belong to the identified zone: ``OriginalUid`` values in them never leave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dicomnode.domain import OriginalUid, Role
from dicomnode.scp.schema import JobState


class StoredKind(StrEnum):
    """What a store turned out to be. All three are 0000 to the sender."""

    NEW = "new"
    DUPLICATE = "duplicate"
    VERSION = "version"  # a known SOP Instance UID with other bytes: both are kept


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A complete DICOM file in the spool's folder that has no row yet.

    ``study_uid`` empty: the data set could not be read; it becomes a study of its own, so that it reaches quarantine.
    ``sha256`` and ``size`` are of the data set, without preamble and file meta information.
    """

    path: Path
    sha256: str
    size: int
    study_uid: str
    series_uid: str
    sop_class: str
    sop_uid: str
    transfer_syntax: str
    image: bool
    called: str
    calling: str
    role: Role


@dataclass(frozen=True, slots=True)
class HeldStudy:
    """A study of the spool: its originals, its jobs, and whether it waits for a worker or is in its hands."""

    id: int
    study_uid: OriginalUid
    files: tuple[Path, ...]
    jobs: tuple[int, ...]
    waiting: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """The outcome of a store; ``version`` counts from 1."""

    kind: StoredKind
    instance_id: int
    study_id: int
    version: int


@dataclass(frozen=True, slots=True)
class PendingStudy:
    """A study with images that no job has claimed. The quiet timer watches ``newest_row_id``."""

    study_id: int
    images: int
    newest_row_id: int
    newest_received: float


@dataclass(frozen=True, slots=True)
class SpoolInstance:
    """One original of a job. ``version`` above 1: another object with the same SOP Instance UID came before.

    ``by_hand``: what a person decided about it when it was released, as ``Jobs.release`` got it.
    """

    id: int
    path: Path
    sop_uid: OriginalUid
    sop_class: str
    transfer_syntax: str
    series_uid: OriginalUid
    sha256: str
    bytes: int
    image: bool
    version: int
    received: float
    by_hand: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed study. ``generation`` counts the jobs of the study from 1; ``study_uid`` is empty if unreadable."""

    id: int
    study_id: int
    study_uid: OriginalUid
    generation: int
    role: Role
    called: str
    calling: str
    state: JobState
    created: float
    changed: float
    note: str
    answer_id: int | None
    instances: tuple[SpoolInstance, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did. ``missing`` are row ids of instances whose file is gone: the study must be sent again."""

    orphan_files: int
    finished_removals: int
    stray_instances: int
    old_jobs: int
    missing: tuple[int, ...]

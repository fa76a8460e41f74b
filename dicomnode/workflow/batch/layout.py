"""Where ``dicomnode deid`` puts a file: by pseudonyms, or in the folders it came in, whose names are mapped.

Names of folders and files are often names of patients: no word of them, and nothing that tells their order, is in a
result. A folder's name is a keyed hash of its whole path, so that folders of one name in two places cannot be told
to be alike. Files are always named by their pseudonymous SOP Instance UID.
"""

from __future__ import annotations

import base64
from pathlib import PurePosixPath

from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.result import DeidResult
from dicomnode.workflow.batch.choices import Layout
from dicomnode.workflow.batch.inputs import Input
from dicomnode.workflow.batch.journal import KeyedHash

FOLDER_PREFIX = "F-"
_FOLDER_CHARACTERS = 12  # 60 bits
MAX_DEPTH = 40  # folders deeper than this are put together, or a path could be longer than the system takes


def target_of(
    layout: Layout, found: Input, subject: Subject, result: DeidResult, keyed_hash: KeyedHash
) -> PurePosixPath:
    """The path of a de-identified file below the folder that is written to."""
    name = f"{result.instance}.dcm"
    if layout is Layout.DICOM:
        return PurePosixPath(subject.pseudonym, result.study, result.series, name)
    return PurePosixPath(*(folder_name(keyed_hash, place) for place in found.folders[:MAX_DEPTH]), name)


def folder_name(keyed_hash: KeyedHash, place: bytes) -> str:
    """``F-`` and twelve characters for a folder of the input, by its whole path."""
    digest = bytes.fromhex(keyed_hash("deid folder", place.hex()))
    return FOLDER_PREFIX + base64.b32encode(digest).decode()[:_FOLDER_CHARACTERS]

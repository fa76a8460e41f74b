"""Whose study it is: one (issuer, Patient ID) from the originals' headers, or quarantine.

Reads the identified zone; what it returns goes to the vault and nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from dicomnode.errors import QuarantineError
from dicomnode.models.headers import READ_ERRORS

_TAGS = ["PatientID", "IssuerOfPatientID"]
NOBODY = ("", "unreadable")  # neither a Patient ID nor a study: nobody's pseudonym is made for it


def study_identity(paths: Sequence[Path], study_uid: str, default_issuer: str) -> tuple[str, str]:
    """(issuer, Patient ID) of a study; ``NOBODY`` where there is neither a Patient ID nor a study UID.

    A study without Patient ID is its own patient, or two strangers would share a pseudonym.

    Raises
    ------
    QuarantineError
        If the images carry more than one Patient ID: whose finding would it be?
    """
    found: set[tuple[str, str]] = set()
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom quotes odd values in its warnings
                ds = pydicom.dcmread(path, specific_tags=_TAGS, stop_before_pixels=True, force=True)
                patient_id = str(ds.get("PatientID") or "").strip()
                issuer = str(ds.get("IssuerOfPatientID") or "").strip() or default_issuer
        except (InvalidDicomError, *READ_ERRORS):
            continue  # unreadable: the de-identification names and holds that file
        if patient_id:
            found.add((issuer, patient_id))
    if len(found) > 1:
        raise QuarantineError(
            "mixed-patients",
            f"the study's images carry {len(found)} different Patient IDs",
            place="(0010,0020)",
            advice="correct the study in the PACS and send it again, then: dicomnode quarantine discard ID",
        )
    if found:
        return found.pop()
    return ("study", study_uid) if study_uid else NOBODY

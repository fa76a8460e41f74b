"""Rows of the catalogue for tests: records, stored instances and answers without files or models."""

from __future__ import annotations

from dicomnode.archive.catalogue import StoredInstance
from dicomnode.archive.records import InstanceRecord
from dicomnode.domain import (
    Answer,
    Case,
    Finding,
    FindingStatus,
    Match,
    ModelId,
    Pseudonym,
    PseudoUid,
    Verdict,
    VerdictKind,
)

STUDY, OTHER = PseudoUid("2.25.10"), PseudoUid("2.25.20")
PATIENT = Pseudonym("DN-AAAAAAAAAA")
MODEL = ModelId("sha256:one")
NODULE = Finding("SCT", "27925004", "Nodule", "findings file")


def record(number: int = 1, study: str = STUDY, patient: str = PATIENT, **changes) -> InstanceRecord:
    """A CT slice of a study; ``number`` makes it another instance."""
    fields = {
        "uid": PseudoUid(f"{study}.1.{number}"),
        "series_uid": PseudoUid(f"{study}.1"),
        "study_uid": PseudoUid(study),
        "patient": Pseudonym(patient),
        "sop_class": "1.2.840.10008.5.1.4.1.1.2",
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "modality": "CT",
        "series_number": 2,
        "series_description": "Thorax",
        "number": number,
        "frames": 1,
        "rows": 64,
        "columns": 64,
        "study_date": "20230101",
        "study_description": "Thorax",
        "body_part": "CHEST",
        "manufacturer": "phantom",
        "sex": "F",
        "age_band": "40-49",
        "bytes": 100,
    }
    return InstanceRecord(**{**fields, **changes})


def stored(number: int = 1, study: str = STUDY, patient: str = PATIENT, sha256: str = "0" * 64) -> StoredInstance:
    """The same as the archive holds it."""
    return StoredInstance(record(number, study, patient), f"aa/{study}/{number}.dcm", sha256)


def an_answer(model: str = MODEL, kind: VerdictKind = VerdictKind.SIMILAR) -> Answer:
    """An answer with one case."""
    match = Match(PseudoUid(f"{STUDY}.1.1"), PseudoUid(f"{OTHER}.1.1"), 0.9)
    case = Case(
        rank=1,
        similarity=0.9,
        subject=Pseudonym("DN-BBBBBBBBBB"),
        study_uid=OTHER,
        series_uid=PseudoUid(f"{OTHER}.1"),
        modality="CT",
        status=FindingStatus.PRESENT,
        findings=(Finding("SCT", "27925004", "Nodule"),),  # the source of a finding is not sent
        matches=(match,),
    )
    return Answer(
        query={"modality": "CT", "slices": 1, "series": ["axial"]},
        model_id=ModelId(model),
        verdict=Verdict(kind, 0.4),
        cases=(case,),
        searched=30,
    )

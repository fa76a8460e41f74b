"""Whose study it is: one patient, or nobody's; never two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dicomnode.errors import QuarantineError
from dicomnode.testing import sample_study, write_study
from dicomnode.workflow.identity import NOBODY, study_identity


def study(folder: Path, *patients: str | None, issuer: str | None = None) -> list[Path]:
    images = sample_study(len(patients), matrix=32)
    for image, patient in zip(images, patients, strict=True):
        if patient is None:
            del image.PatientID
        else:
            image.PatientID = patient
        if issuer is not None:
            image.IssuerOfPatientID = issuer
    return write_study(images, folder)


def test_a_study_belongs_to_the_patient_that_all_its_images_name(tmp_path):
    assert study_identity(study(tmp_path, "P1", "P1"), "1.2", "HOSPITAL") == ("HOSPITAL", "P1")


def test_the_issuer_of_the_object_wins_over_the_default(tmp_path):
    assert study_identity(study(tmp_path, "P1", issuer="OTHER"), "1.2", "HOSPITAL") == ("OTHER", "P1")


def test_blanks_around_a_patient_id_are_not_another_patient(tmp_path):
    assert study_identity(study(tmp_path, "P1", " P1 "), "1.2", "") == ("", "P1")


def test_images_of_two_patients_are_nobodys_answer(tmp_path):
    with pytest.raises(QuarantineError) as caught:
        study_identity(study(tmp_path, "SECRET-1", "SECRET-2", "SECRET-1"), "1.2", "")
    assert caught.value.reason == "mixed-patients"
    assert "2 different" in caught.value.line
    assert "SECRET" not in str(caught.value)


def test_the_same_id_from_two_issuers_is_two_patients(tmp_path):
    one, two = study(tmp_path / "a", "P1", issuer="A"), study(tmp_path / "b", "P1", issuer="B")
    with pytest.raises(QuarantineError, match="2 different"):
        study_identity([*one, *two], "1.2", "")


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_study_without_a_patient_id_is_its_own_patient(tmp_path, missing):
    paths = study(tmp_path, missing, missing)
    assert study_identity(paths, "1.2", "HOSPITAL") == ("study", "1.2")
    assert study_identity(paths, "1.3", "HOSPITAL") == ("study", "1.3")


def test_an_image_that_lacks_the_id_goes_with_those_that_have_it(tmp_path):
    assert study_identity(study(tmp_path, None, "P1"), "1.2", "") == ("", "P1")


@pytest.mark.parametrize("junk", [b"", b"no", os.urandom(5000), b"\0" * 128 + b"DICM" + os.urandom(500)])
def test_what_cannot_be_read_names_nobody_and_stops_nothing(tmp_path, junk):
    (tmp_path / "junk").write_bytes(junk)
    assert study_identity([tmp_path / "junk"], "1.2", "") == ("study", "1.2")
    assert study_identity([tmp_path / "junk", tmp_path / "absent"], "", "") == NOBODY
    assert study_identity([tmp_path / "junk", *study(tmp_path / "s", "P1")], "1.2", "") == ("", "P1")

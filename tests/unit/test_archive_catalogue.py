"""The catalogue: the same study twice changes nothing, what is removed is gone, what is excluded stays excluded."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from archive_samples import NODULE, OTHER, PATIENT, STUDY, record, stored

from dicomnode.archive import schema as t
from dicomnode.archive.catalogue import Catalogue, StoredInstance
from dicomnode.domain import LABEL_SCHEME, Finding, FindingStatus, Pseudonym, PseudoUid
from dicomnode.errors import NotFound

EFFUSION = Finding("SCT", "60046008", "Derrame pleural ÁCIDO", "findings file")


@pytest.fixture
def catalogue(engine):
    return Catalogue(engine, organisation="Hospital")


def count(catalogue: Catalogue, table: sa.Table) -> int:
    with catalogue.engine.connect() as db:
        return db.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def all_rows(catalogue: Catalogue) -> dict[str, list[tuple]]:
    with catalogue.engine.connect() as db:
        return {table.name: [tuple(r) for r in db.execute(sa.select(table))] for table in t.metadata.sorted_tables}


def test_a_study_added_twice_is_there_once(catalogue):
    catalogue.add_study([stored(1), stored(2)], source="received")
    before = all_rows(catalogue)
    catalogue.add_study([stored(1), stored(2)], source="index-add")
    assert all_rows(catalogue) == before
    assert catalogue.study_sources() == [(STUDY, PATIENT, "received")]


def test_late_images_complete_a_study(catalogue):
    catalogue.add_study([stored(1)], source="received")
    catalogue.add_study([stored(1), stored(2)], source="received")
    assert [k.uid for k in catalogue.known_instances(STUDY)] == [f"{STUDY}.1.1", f"{STUDY}.1.2"]
    assert (count(catalogue, t.studies), count(catalogue, t.series)) == (1, 1)


def test_an_instance_that_was_written_anew_has_the_hash_of_its_new_file(catalogue):
    """Another recipe gives other bytes for the same instance: "index verify" must not call that damage."""
    catalogue.add_study([stored(1)], source="received")
    catalogue.add_study([StoredInstance(record(1, bytes=222), "aa/new.dcm", "f" * 64)], source="received")
    (known,) = catalogue.known_instances(STUDY)
    assert (known.path, known.sha256) == ("aa/new.dcm", "f" * 64)
    with catalogue.engine.connect() as db:
        assert db.execute(sa.select(t.instances.c.bytes)).scalar_one() == 222


def test_adding_nothing_adds_nothing(catalogue):
    catalogue.add_study([], source="received")
    assert count(catalogue, t.studies) == 0


def test_two_studies_of_a_patient_share_the_patient(catalogue):
    catalogue.add_study([stored()], source="received")
    catalogue.add_study([stored(1, OTHER)], source="received")
    assert catalogue.studies_of(PATIENT) == [STUDY, OTHER]
    assert (catalogue.patient_of(STUDY), catalogue.patient_of(PseudoUid("2.25.9"))) == (PATIENT, None)


def test_a_new_study_has_an_unknown_status_and_the_organisation(catalogue):
    catalogue.add_study([stored()], source="received")
    with catalogue.engine.connect() as db:
        row = db.execute(sa.select(t.studies)).one()
    assert (row.status, row.organisation, row.age_band) == ("unknown", "Hospital", "40-49")


def test_findings_are_replaced_with_their_status(catalogue):
    catalogue.add_study([stored()], source="received")
    catalogue.set_findings(STUDY, [NODULE, EFFUSION], FindingStatus.PRESENT)
    catalogue.set_findings(STUDY, [EFFUSION], FindingStatus.PRESENT)
    assert catalogue.findings(STUDY) == [EFFUSION]
    with catalogue.engine.connect() as db:
        assert db.execute(sa.select(t.studies.c.status)).scalar_one() == "present"


def test_findings_of_an_unknown_study_are_refused(catalogue):
    with pytest.raises(NotFound):
        catalogue.set_findings(STUDY, [NODULE], FindingStatus.PRESENT)
    assert count(catalogue, t.findings) == 0


def test_the_same_finding_twice_in_a_file_is_kept_once(catalogue):
    catalogue.add_study([stored()], source="received")
    catalogue.set_findings(STUDY, [NODULE, NODULE], FindingStatus.PRESENT)
    assert catalogue.findings(STUDY) == [NODULE]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nodule", {STUDY}),
        ("27925004", {STUDY}),
        ("NOD", {STUDY}),
        ("derrame PLEURAL", {OTHER}),
        ("ácido", {OTHER}),  # the database alone folds ASCII only
        ("nodule derrame", set()),
        ("100%", set()),
        ("_", set()),
        ("%", set()),
        ("  ", set()),
    ],
)
def test_studies_are_found_by_every_word_of_a_finding(catalogue, text, found):
    catalogue.add_study([stored()], source="received")
    catalogue.add_study([stored(1, OTHER)], source="received")
    catalogue.set_findings(STUDY, [NODULE], FindingStatus.PRESENT)
    catalogue.set_findings(OTHER, [EFFUSION], FindingStatus.PRESENT)
    assert catalogue.studies_with_finding(text) == found


@pytest.mark.parametrize(
    ("finding", "text", "found"),
    [
        (Finding(LABEL_SCHEME, "NonCOVID", "NonCOVID"), "COVID", False),
        (Finding(LABEL_SCHEME, "NonCOVID", "NonCOVID"), "noncovid", True),
        (Finding(LABEL_SCHEME, "non-COVID", "non-COVID"), "covid", False),
        (Finding(LABEL_SCHEME, "non-COVID", "non-COVID"), "Non-covid", True),
        (Finding(LABEL_SCHEME, "Non_COVID", "Non_COVID"), "covid", False),
        (Finding(LABEL_SCHEME, "COVID", "COVID"), "covid", True),
        (Finding("SCT", "840539006", "Disease caused by SARS-CoV-2 (COVID-19)"), "covid", True),
        (Finding("SCT", "840539006", "Disease caused by SARS-CoV-2 (COVID-19)"), "cov", True),
        (Finding("SCT", "840539006", "Disease caused by SARS-CoV-2 (COVID-19)"), "covid-19 disease", True),
        (Finding("SCT", "840539006", "Disease caused by SARS-CoV-2 (COVID-19)"), "(covid", True),
        (Finding("SCT", "840539006", "Disease caused by SARS-CoV-2 (COVID-19)"), "ease", False),
        (Finding("SCT", "840539006", "Disease caused by SARS-CoV-2 (COVID-19)"), "0539", True),
        (Finding("I10C", "J18.9", "Pneumonia, unspecified organism"), "j18 pneumonia", True),
        (Finding("I10C", "J18.9", "Pneumonia, unspecified organism"), "specified", False),
        (Finding(LABEL_SCHEME, "lung_nodule", "lung_nodule"), "nodule", True),
        (Finding(LABEL_SCHEME, "ground-glass", "ground-glass"), "glass", True),
        (Finding(LABEL_SCHEME, "病毒性肺炎", "病毒性肺炎"), "肺炎", True),  # a script without gaps between words
    ],
)
def test_a_word_is_found_at_the_start_of_words_and_a_code_anywhere(catalogue, finding, text, found):
    catalogue.add_study([stored()], source="received")
    catalogue.set_findings(STUDY, [finding], FindingStatus.PRESENT)
    assert catalogue.studies_with_finding(text) == ({STUDY} if found else set())


def test_removing_a_study_takes_all_its_rows_and_its_patient_when_it_was_the_last(catalogue):
    catalogue.add_study([stored()], source="received")
    catalogue.add_study([stored(1, OTHER)], source="received")
    catalogue.set_findings(STUDY, [NODULE], FindingStatus.PRESENT)
    assert catalogue.remove_study(STUDY)
    assert (count(catalogue, t.instances), count(catalogue, t.findings), count(catalogue, t.patients)) == (1, 0, 1)
    assert catalogue.remove_study(OTHER)
    assert count(catalogue, t.patients) == 0
    assert not catalogue.remove_study(OTHER)


def test_an_excluded_patient_stays_excluded_when_the_study_is_removed_and_comes_again(catalogue):
    catalogue.add_study([stored()], source="received")
    catalogue.exclude_patient(PATIENT)
    catalogue.remove_study(STUDY)
    catalogue.add_study([stored()], source="received")
    with catalogue.engine.connect() as db:
        assert db.execute(sa.select(t.patients.c.excluded)).scalar_one() is True


def test_an_unknown_patient_cannot_be_excluded(catalogue):
    with pytest.raises(NotFound):
        catalogue.exclude_patient(Pseudonym("DN-CCCCCCCCCC"))


def test_an_identical_note_is_written_once_and_another_beside_it(catalogue):
    for detail in ({"vectors": 3}, {"vectors": 3}, {"vectors": 4}):
        catalogue.note(STUDY, "indexed", detail)
    catalogue.note(STUDY, "answered", {"vectors": 3})
    assert count(catalogue, t.provenance) == 3


def test_what_binds_the_repository_is_replaced_not_repeated(catalogue):
    assert catalogue.get("active_pack") is None
    catalogue.put("active_pack", "a")
    catalogue.put("active_pack", "b")
    assert catalogue.get("active_pack") == "b"


def test_a_path_is_found_by_its_instance_and_a_series_says_why_it_was_chosen(catalogue):
    catalogue.add_study([stored()], source="received")
    catalogue.mark_chosen({PseudoUid(f"{STUDY}.1"): "axial"})
    assert catalogue.path_of(PseudoUid(f"{STUDY}.1.1")) == f"aa/{STUDY}/1.dcm"
    assert catalogue.path_of(PseudoUid("2.25.9")) is None
    with catalogue.engine.connect() as db:
        assert db.execute(sa.select(t.series.c.chosen)).scalar_one() == "axial"

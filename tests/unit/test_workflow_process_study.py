"""The way of a study, step by step: each step may run again, and every kind of study ends where it belongs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydicom import dcmread
from structlog.testing import capture_logs
from workflow_samples import files, job_of, pages_in_ct, process, receive, rows

from dicomnode.archive.answers import DELIVERED, PENDING
from dicomnode.domain import OriginalUid, Role, VerdictKind
from dicomnode.errors import QuarantineError, StorageFull
from dicomnode.node import Node
from dicomnode.scp.schema import JobState
from dicomnode.testing import Pacs, free_port, sample_repository, sample_study
from dicomnode.testing.burned_in import stamp
from dicomnode.workflow.ingest import add_paths
from dicomnode.workflow.process_study import LOOP_ROUNDS, STEPS, deidentify, index, report
from dicomnode.workflow.reindex import reindex

STEP_NAMES = [name for name, _ in STEPS]
CASES = 3
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def node(make_node, tmp_path_factory) -> Node:
    """A node with a small repository and one peer that takes results."""
    folder = tmp_path_factory.mktemp("node")
    node = make_node(folder, Pacs(port=free_port()))
    findings = sample_repository(folder / "studies", CASES, slices=2, matrix=64)
    add_paths(node.context, [folder / "studies"], findings)
    return node


@pytest.fixture
def patients() -> Iterator[str]:
    """Names of patients that no other test has."""
    return (f"SECRET-{n}" for n in COUNT)


def study(patient: str, n: int = 2, **changes):
    return sample_study(n, matrix=64, patient_id=patient, seed=100 + int(patient.split("-")[1]), **changes)


def answer_of(node: Node, job: int):
    row = node.spool.job(job).answer_id
    assert row is not None
    return node.answers.by_id(row)


def results_of(node: Node, job: int):
    return node.answers.results(answer_id=answer_of(node, job).id)


def masked(node: Node) -> float:
    """Images in whose pixels text was blanked, as the node's metrics have it."""
    for family in text_string_to_metric_families(node.context.metrics.render().decode()):
        for sample in family.samples:
            if sample.labels.get("pixels") == "masked":
                return sample.value
    raise AssertionError("no such metric")


class TestEachStepMayRunAgain:
    @pytest.mark.parametrize("upto", range(1, len(STEP_NAMES) + 1), ids=STEP_NAMES)
    @pytest.mark.parametrize("role", list(Role))
    def test_run_twice_it_leaves_the_same_rows_and_files(self, node, patients, upto, role):
        job = job_of(node, study(next(patients)), role=role)
        process(node, job, STEP_NAMES[:upto])
        if role is Role.QUERY and upto == 1:
            return  # each run draws a passing pseudonym: the vault keeps none
        before = (rows(node), files(node))
        process(node, job, STEP_NAMES[upto - 1 : upto])
        assert (rows(node), files(node)) == before

    def test_all_of_them_run_again_from_the_first_leave_the_same_rows_and_files(self, node, patients):
        job = job_of(node, study(next(patients)))
        process(node, job)
        before = (rows(node), files(node))
        process(node, job)
        assert (rows(node), files(node)) == before


class TestRoles:
    def test_index_and_query_keeps_the_study_and_answers_with_others(self, node, patients):
        patient = next(patients)
        images = study(patient, AccessionNumber="SECRET-ACC")
        job = job_of(node, images)
        process(node, job)
        uid = node.vault.uid(OriginalUid(images[0].StudyInstanceUID))
        assert len(node.catalogue.known_instances(uid)) == 2
        assert node.index.has_study(uid)
        answer = answer_of(node, job).answer
        assert len(answer.cases) >= CASES
        assert node.catalogue.patient_of(uid) not in {c.subject for c in answer.cases}
        (result,) = results_of(node, job)
        sent = dcmread(node.folders.sent(result.id))
        assert (sent.StudyInstanceUID, sent.PatientID) == (images[0].StudyInstanceUID, patient)
        keyed = node.vault.keyed_hash("accession", "SECRET-ACC")
        assert [r.id for r in node.answers.results(accession=keyed)] == [result.id]

    def test_query_answers_and_keeps_nothing_of_the_study(self, node, patients):
        images = study(next(patients))
        before, known = rows(node), node.vault.status().patients
        job = job_of(node, images, role=Role.QUERY)
        process(node, job)
        after = rows(node)
        for table in ("patients", "studies", "series", "instances", "findings", "vectors", "segments"):
            assert after[table] == before[table]
        assert node.vault.status().patients == known
        assert len(results_of(node, job)) == 1
        slices = node.answers.slices(answer_of(node, job).id)
        assert len(slices) == 2  # the key slices, outside the index, for the page
        assert all((node.folders.results / s.path).is_file() for s in slices)
        assert answer_of(node, job).patient is None  # the vault knows nobody of this name

    def test_a_query_of_a_known_patient_leaves_that_patient_out(self, node, patients):
        patient = next(patients)
        process(node, job_of(node, study(patient), role=Role.INDEX))
        prior = sample_study(2, matrix=64, patient_id=patient, seed=991)
        job = job_of(node, prior, role=Role.QUERY)
        process(node, job)
        mine = node.vault.pseudonym_for("", patient, create=False)
        assert mine is not None
        assert mine not in {c.subject for c in answer_of(node, job).answer.cases}
        assert answer_of(node, job).patient == mine

    def test_index_keeps_the_study_and_answers_nobody(self, node, patients):
        images = study(next(patients))
        before = len(node.answers.results())
        job = job_of(node, images, role=Role.INDEX)
        process(node, job)
        assert node.index.has_study(node.vault.uid(OriginalUid(images[0].StudyInstanceUID)))
        assert node.spool.job(job).answer_id is None
        assert len(node.answers.results()) == before


class TestTheSameStudyAgain:
    def test_is_answered_from_the_stored_answer_with_the_same_bytes(self, node, patients):
        images = study(next(patients))
        first = job_of(node, images)
        process(node, first)
        (result,) = results_of(node, first)
        bytes_sent = node.folders.sent(result.id).read_bytes()
        node.answers.mark_delivered(result.id)
        node.spool.remove_job_files(first)
        again = job_of(node, images)
        process(node, again)
        assert answer_of(node, again) == answer_of(node, first)
        (result,) = results_of(node, again)
        assert (result.state, result.resends) == (PENDING, 1)
        assert node.folders.sent(result.id).read_bytes() == bytes_sent

    def test_in_a_loop_of_routing_rules_is_held_down(self, node, patients):
        job = job_of(node, study(next(patients)))
        process(node, job)
        (result,) = results_of(node, job)
        for _ in range(LOOP_ROUNDS + 3):
            node.answers.mark_delivered(result.id)
            report(node.context, job)
        row = node.answers.result(result.id)
        assert (row.state, row.resends) == (DELIVERED, LOOP_ROUNDS)

    @pytest.mark.parametrize("role", [Role.INDEX_QUERY, Role.QUERY])
    def test_with_late_images_is_answered_anew_and_the_new_names_the_old(self, node, patients, role):
        images = study(next(patients), 3)
        first = job_of(node, images[:2], role=role)
        process(node, first)
        late = job_of(node, images[2:], role=role)
        process(node, late)
        old, new = answer_of(node, first), answer_of(node, late)
        assert (new.predecessor_id, new.instance_number) == (old.id, 2)
        assert set(new.instances) > set(old.instances)
        assert new.answer.query["slices"] == 3
        (sent_old,), (sent_new,) = results_of(node, first), results_of(node, late)
        a, b = dcmread(node.folders.sent(sent_old.id)), dcmread(node.folders.sent(sent_new.id))
        assert a.SeriesInstanceUID == b.SeriesInstanceUID
        assert (a.InstanceNumber, b.InstanceNumber) == (1, 2)
        named = b.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert named.ReferencedSOPInstanceUID == a.SOPInstanceUID

    def test_an_object_delivered_while_the_next_one_is_built_is_not_sent_twice(self, make_node, tmp_path, patients):
        node = make_node(tmp_path, Pacs(port=free_port()), report={"objects": ["sr", "contact-sheet"]})
        job = job_of(node, study(next(patients)))
        process(node, job, STEP_NAMES[:-1])

        class Delivering:
            """Builds as the node does, and has delivered at once whatever lies in the outbox."""

            def build(self, *args):
                for result in results_of(node, job):
                    if node.folders.sent(result.id).exists():
                        node.answers.mark_delivered(result.id)
                return node.reporter.build(*args)

        report(replace(node.context, reporter=Delivering()), job)
        assert [(r.state, r.resends) for r in results_of(node, job)] == [(DELIVERED, 0), (PENDING, 0)]


class TestQuarantine:
    def test_images_of_two_patients_end_there_and_make_no_pseudonym(self, node, patients):
        images = study(next(patients))
        images[1].PatientID = next(patients)
        known = node.vault.status().patients
        with pytest.raises(QuarantineError) as caught:
            deidentify(node.context, job_of(node, images))
        assert caught.value.reason == "mixed-patients"
        assert node.vault.status().patients == known

    @pytest.mark.parametrize(
        ("junk", "reason"),
        [(b"", "not-dicom"), (b"junk" * 500, "not-dicom"), (b"\0" * 128 + b"DICM", "unsupported")],
    )
    def test_what_cannot_be_read_ends_there_with_its_reason(self, node, junk, reason):
        known = node.vault.status().patients
        with pytest.raises(QuarantineError) as caught:
            deidentify(node.context, job_of(node, [junk]))
        assert caught.value.reason == reason
        assert node.vault.status().patients == known

    def test_one_bad_image_is_split_off_and_the_rest_is_answered(self, node, patients):
        images = study(next(patients), 3)
        images[0].BurnedInAnnotation = "YES"
        job = job_of(node, images)
        before = {i.id for i in node.quarantine.items()}
        process(node, job)
        (item,) = [i for i in node.quarantine.items() if i.id not in before]
        assert item.reason == "burned-in"
        held = node.spool.job(item.job_id)
        assert (held.state, len(held.instances)) == (JobState.QUARANTINED, 1)
        assert len(node.spool.job(job).instances) == 2
        assert answer_of(node, job).answer.query["slices"] == 2

    def test_an_image_that_came_again_with_other_bytes_is_held_and_the_first_is_used(self, node, patients):
        patient = next(patients)
        receive(node.spool, study(patient))
        changed = study(patient)[:1]
        changed[0].SeriesDescription = "another"
        job = job_of(node, changed)
        before = {i.id for i in node.quarantine.items()}
        process(node, job)
        (item,) = [i for i in node.quarantine.items() if i.id not in before]
        assert item.reason == "version-conflict"
        assert len(node.spool.job(item.job_id).instances) == 1
        assert len(results_of(node, job)) == 1

    def test_pages_that_claim_to_be_ct_are_no_case_and_are_held_with_the_reason(self, node, patients):
        before = node.index.status()["vectors"]
        job = job_of(node, pages_in_ct(patient_id=next(patients)))
        process(node, job, STEP_NAMES[:-1])
        verdict = answer_of(node, job).answer.verdict
        assert verdict.kind is VerdictKind.NOT_SEARCHABLE
        assert verdict.reason.startswith("Most images of the study are no CT or MR slices")
        assert node.index.status()["vectors"] == before
        with pytest.raises(QuarantineError, match="no CT or MR slices"):
            report(node.context, job)

    def test_a_refused_study_does_not_become_a_case_when_the_index_is_rebuilt(self, node, patients):
        job = job_of(node, pages_in_ct(patient_id=next(patients)))
        process(node, job, STEP_NAMES[:-1])
        study = answer_of(node, job).study_uid
        reindex(node.context)
        assert not node.context.vectors.has_study(study)

    def test_without_an_answer_a_refused_study_is_held_when_it_is_indexed(self, node, patients):
        job = job_of(node, pages_in_ct(patient_id=next(patients)), role=Role.INDEX)
        process(node, job, STEP_NAMES[: STEP_NAMES.index("index")])
        with pytest.raises(QuarantineError, match="no CT or MR slices") as caught:
            index(node.context, job)
        assert caught.value.reason == "not-searchable"

    @pytest.mark.parametrize(
        ("modality", "sop_class", "colour"),
        [
            ("US", "1.2.840.10008.5.1.4.1.1.6.1", True),
            ("OT", "1.2.840.10008.5.1.4.1.1.7", False),
            ("XA", "1.2.840.10008.5.1.4.1.1.12.1", False),
            ("CR", "1.2.840.10008.5.1.4.1.1.1", False),
            ("DX", "1.2.840.10008.5.1.4.1.1.1.1", False),
        ],
    )
    def test_a_study_of_pictures_passes_and_is_not_searchable(self, node, patients, modality, sop_class, colour):
        images = study(next(patients), Modality=modality, SOPClassUID=sop_class)
        for ds in images:
            grey = np.full((128, 256), 20, np.uint8)
            stroke = stamp("BAKER MARY 1961", "DejaVuSans.ttf", 18)
            grey[10 : 10 + stroke.shape[0], 10 : 10 + stroke.shape[1]] += (stroke * 200).astype(np.uint8)
            ds.Rows, ds.Columns = grey.shape
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
            if colour:
                ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
            ds.PixelData = (np.repeat(grey[..., None], 3, axis=2) if colour else grey).tobytes()
        job = job_of(node, images)
        before = masked(node)
        with capture_logs() as logs:
            process(node, job, STEP_NAMES[:-1])
        assert masked(node) - before == len(images)
        assert [line["masked"] for line in logs if line["event"] == "deidentified"] == [len(images)]
        row = node.spool.job(job)
        assert row.answer_id is not None, "no image was quarantined"
        with pytest.raises(QuarantineError) as caught:
            report(node.context, job)
        assert caught.value.reason == "not-searchable"

    def test_a_study_in_which_nothing_can_be_searched_is_held_at_the_report(self, node, patients):
        images = study(next(patients), RescaleSlope=None, RescaleIntercept=None)
        job = job_of(node, images)
        process(node, job, STEP_NAMES[:-1])
        assert answer_of(node, job).answer.verdict.kind is VerdictKind.NOT_SEARCHABLE
        with pytest.raises(QuarantineError) as caught:
            report(node.context, job)
        assert caught.value.reason == "not-searchable"
        assert results_of(node, job) == []

    def test_answer_rejected_reports_it_to_the_sender(self, node, patients):
        images = study(next(patients), RescaleSlope=None, RescaleIntercept=None)
        job = job_of(node, images)
        process(node, job, STEP_NAMES[:-1])
        ctx = node.context
        report(replace(ctx, policy=replace(ctx.policy, answer_rejected=True)), job)
        assert len(results_of(node, job)) == 1

    def test_a_full_disk_holds_nothing_and_the_step_is_tried_again(self, node, patients):
        class Full:
            def run(self, tasks):
                return [StorageFull("the disk is full") for _ in tasks]

        job = job_of(node, study(next(patients)))
        before = rows(node)["quarantine"]
        with pytest.raises(StorageFull):
            deidentify(replace(node.context, deid=Full()), job)
        assert rows(node)["quarantine"] == before
        deidentify(node.context, job)

    def test_no_line_names_a_patient(self, node):
        for item in node.quarantine.items():
            assert "SECRET" not in repr(item)


def test_nothing_de_identified_holds_a_name(node):
    for name, content in files(node).items():
        if not name.startswith("identified"):
            assert b"SECRET-" not in content, name
            assert "SECRET" not in name
    assert "SECRET" not in repr(rows(node))


def test_a_caller_that_takes_results_gets_them_alone(make_node, tmp_path: Path):
    one, other = Pacs("ONE", port=free_port()), Pacs("OTHER", port=free_port())
    node = make_node(tmp_path, one, other)
    job = job_of(node, study("CALLER-1"), calling="OTHER")
    process(node, job)
    assert [r.destination for r in results_of(node, job)] == ["pacs-2"]

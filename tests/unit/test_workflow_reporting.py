"""The objects that are sent: the same bytes whenever they are built, of the kinds that a destination takes."""

from __future__ import annotations

import io

import pytest
from pydicom import dcmread
from workflow_samples import job_of, process

from dicomnode.errors import InputError
from dicomnode.node import Node
from dicomnode.testing import Pacs, free_port, sample_repository, sample_study
from dicomnode.workflow.ingest import add_paths
from dicomnode.workflow.process_study import _query_images
from dicomnode.workflow.reporting import CONTACT_SHEET, PDF, SR, SR_ENHANCED, read_header, result_kinds, tiles_of


@pytest.fixture(scope="module")
def answered(make_node, tmp_path_factory):
    """(node, job) of an answered study."""
    folder = tmp_path_factory.mktemp("node")
    node = make_node(folder, Pacs(port=free_port()), report={"objects": ["pdf", "sr", "contact-sheet"]})
    add_paths(node.context, [sample_repository(folder / "studies", 2, slices=2, matrix=64).parent])
    job = job_of(node, sample_study(2, matrix=64, patient_id="ASKING", name="Doe^Jane", seed=50))
    process(node, job)
    return node, job


def build(node: Node, job: int, kind: str) -> bytes:
    held = node.spool.job(job)
    stored = node.answers.by_id(held.answer_id)
    images = _query_images(node.context, held)
    started = node.answers.first_created(stored.study_uid)
    return node.reporter.build(kind, read_header(images[0].path), stored, images, None, started)


@pytest.mark.parametrize("kind", [SR, SR_ENHANCED, CONTACT_SHEET, PDF])
def test_an_object_built_again_has_the_same_bytes(answered, kind):
    node, job = answered
    assert build(node, job, kind) == build(Node(node.settings), job, kind)


def test_what_lies_in_the_outbox_is_what_would_be_built_again(answered):
    node, job = answered
    results = node.answers.results(answer_id=node.spool.job(job).answer_id)
    assert [r.kind for r in results] == [SR, CONTACT_SHEET, PDF]  # in the order they are sent
    for result in results:
        assert node.folders.sent(result.id).read_bytes() == build(node, job, result.kind)
    assert node.folders.sent_enhanced(results[0].id).read_bytes() == build(node, job, SR_ENHANCED)


def test_the_objects_of_an_answer_have_uids_and_series_of_their_own(answered):
    node, job = answered
    kinds = (SR, SR_ENHANCED, CONTACT_SHEET, PDF)
    objects = {kind: dcmread(io.BytesIO(build(node, job, kind))) for kind in kinds}
    assert len({ds.SOPInstanceUID for ds in objects.values()}) == 4
    assert [int(objects[k].SeriesNumber) for k in kinds] == [9901, 9901, 9910, 9912]
    assert len({ds.SeriesInstanceUID for ds in objects.values()}) == 3
    for ds in objects.values():
        assert (ds.PatientName, ds.PatientID) == ("Doe^Jane", "ASKING")


def test_a_report_links_to_its_answer_and_to_nothing_of_the_query(answered):
    node, job = answered
    stored = node.answers.by_id(node.spool.job(job).answer_id)
    assert node.reporter.link(stored) == f"{node.link_base}/v/r/{stored.token}"
    assert stored.study_uid not in build(node, job, SR).decode("latin-1")


def test_another_site_derives_other_uids(answered, make_node, tmp_path):
    node, job = answered
    other = make_node(tmp_path)
    mine = dcmread(io.BytesIO(build(node, job, SR))).SOPInstanceUID
    assert other.reporter.namespace != node.reporter.namespace
    assert mine.startswith("2.25.")


@pytest.mark.parametrize(
    ("objects", "kinds"),
    [
        (("sr",), (SR,)),
        (("contact-sheet", "sr"), (SR, CONTACT_SHEET)),
        (("contact-sheet",), (CONTACT_SHEET,)),
        (("pdf", "contact-sheet", "sr"), (SR, CONTACT_SHEET, PDF)),
        ((), (SR,)),
    ],
)
def test_a_destination_gets_the_kinds_it_takes_and_a_report_where_it_names_none(objects, kinds):
    assert result_kinds(objects) == kinds


def test_the_tiles_of_an_answer_need_no_identified_header_and_read_no_more_pictures_than_are_drawn(answered):
    node, job = answered
    answer = node.answers.by_id(node.spool.job(job).answer_id).answer
    tiles = tiles_of(answer, node.query_picture, node.case_picture)
    assert set(tiles.cases) == {case.rank for case in answer.cases}
    assert tiles.query
    assert all(tile.image is None for tile in tiles.query)
    assert set(tiles_of(answer, node.query_picture, node.case_picture, limit=1).cases) == {1}


def test_each_tile_knows_the_slice_of_the_query_that_its_own_matched(answered):
    node, job = answered
    answer = node.answers.by_id(node.spool.job(job).answer_id).answer
    slices = {}

    def query_picture(uid, frame):
        slices[uid] = node.query_picture(uid, frame)
        return slices[uid]

    tiles = tiles_of(answer, query_picture, node.case_picture)
    assert tiles.pairs
    for case in answer.cases:
        best = max(case.matches, key=lambda m: m.similarity).query_instance
        if case.rank in tiles.pairs:
            assert (tiles.query[tiles.pairs[case.rank]].pixels == slices[best]).all()


@pytest.mark.filterwarnings("ignore")  # of pydicom, about the damage
@pytest.mark.parametrize("content", [None, b"", b"junk", b"\0" * 128 + b"DICM" + b"\xff" * 200])
def test_an_original_that_cannot_be_read_any_more_is_an_input_error(tmp_path, content):
    path = tmp_path / "SECRET.dcm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert "SECRET" not in str(caught.value)

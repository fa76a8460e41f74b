"""Two ids of one person: one pseudonym and one date line in the repository, never a case of each other."""

from __future__ import annotations

import errno
import pydoc
from datetime import date
from pathlib import Path

import pytest
from pydicom import dcmread
from workflow_samples import job_of, process

from dicomnode.archive.objects import sha256_of
from dicomnode.deid.vault import Merged, PatientKey
from dicomnode.domain import OriginalUid, Pseudonym, PseudoUid
from dicomnode.node import Node
from dicomnode.testing import Pacs, free_port, sample_repository, sample_study
from dicomnode.workflow.ingest import add_paths
from dicomnode.workflow.merging import Moved, take_together

KEPT, OTHER = PatientKey("", "NEW-ID-1"), PatientKey("", "OLD-ID-1")


@pytest.fixture
def node(make_node, tmp_path) -> Node:
    node = make_node(tmp_path, Pacs(port=free_port()))
    findings = sample_repository(tmp_path / "studies", 2, slices=2, matrix=64)
    add_paths(node.context, [tmp_path / "studies"], findings)
    return node


def images_of(key: PatientKey, seed: int = 5) -> list:
    return sample_study(3, matrix=64, patient_id=key.patient_id, seed=seed, StudyDate="20200229")


def uid_of(node: Node, images: list) -> PseudoUid:
    return node.vault.uid(OriginalUid(images[0].StudyInstanceUID))


def name_of(node: Node, key: PatientKey) -> Pseudonym:
    name = node.vault.pseudonym_for(key.issuer, key.patient_id, create=False)
    assert name is not None
    return name


def merge(node: Node) -> tuple[Merged, Moved]:
    merged = node.vault.merge(KEPT, OTHER)
    return merged, take_together(node.context, merged)


def objects(node: Node, study: PseudoUid) -> list[Path]:
    return [node.objects.path(k.path) for k in node.catalogue.known_instances(study)]


def day(text: str) -> date:
    return date(int(text[:4]), int(text[4:6]), int(text[6:]))


def cases_of(node: Node, study: PseudoUid) -> set[PseudoUid]:
    answer = node.answers.latest(study)
    assert answer is not None
    return {case.study_uid for case in answer.answer.cases}


def test_the_studies_of_both_are_one_patients_on_one_date_line(node: Node) -> None:
    one, two = images_of(KEPT, 5), images_of(OTHER, 6)
    for images in (one, two):
        process(node, job_of(node, images))
    first, second = uid_of(node, one), uid_of(node, two)
    kept, former = name_of(node, KEPT), name_of(node, OTHER)
    shift = node.vault.days(KEPT.issuer, KEPT.patient_id)
    assert second in cases_of(node, first) or first in cases_of(node, second)  # of another patient, as it seemed
    pixels = [dcmread(path).PixelData for path in objects(node, second)]

    merged, moved = merge(node)

    assert (merged.pseudonym, [m.former for m in merged.moves], merged.already) == (kept, [former], False)
    assert (moved.studies, moved.objects, moved.damaged) == (1, 3, 0)
    assert set(node.catalogue.studies_of(kept)) == {first, second}
    assert node.catalogue.studies_of(former) == []
    assert name_of(node, OTHER) == kept
    # The days of two patients may be the same by chance, so that they differed before is not asked.
    assert [node.vault.days(key.issuer, key.patient_id) for key in (OTHER, KEPT)] == [shift, shift]
    for path in objects(node, second):
        ds = dcmread(path)
        assert (ds.PatientID, str(ds.PatientName)) == (kept, kept)
        assert (day(ds.StudyDate) - day("20200229")).days == shift
        assert former.encode() not in path.read_bytes()
    assert [dcmread(path).PixelData for path in objects(node, second)] == pixels
    assert node.index.verify() == []
    assert second not in cases_of(node, first)
    assert first not in cases_of(node, second)
    left = [p for p in node.folders.results.rglob("*.dcm") if former.encode() in p.read_bytes()]
    assert left == []


def test_what_is_written_is_what_the_same_images_give_when_they_come_again(node: Node) -> None:
    one, two = images_of(KEPT, 5), images_of(OTHER, 6)
    for images in (one, two):
        process(node, job_of(node, images))
    merge(node)
    study = uid_of(node, two)
    before = {path: path.read_bytes() for path in objects(node, study)}
    for job in node.spool.jobs():
        node.spool.remove_job_files(job.id)
    process(node, job_of(node, two))
    assert {path: path.read_bytes() for path in objects(node, study)} == before


def test_a_question_about_the_one_never_shows_the_other(node: Node) -> None:
    process(node, job_of(node, images_of(OTHER, 6)))
    process(node, job_of(node, images_of(KEPT, 5)))
    _ = node.index.searcher.refresh()  # a search that was loaded before sees it too
    merge(node)
    for key, seed in ((KEPT, 7), (OTHER, 8)):
        images = images_of(key, seed)
        process(node, job_of(node, images))
        answer = node.answers.latest(uid_of(node, images))
        assert answer is not None
        assert len(answer.answer.cases) == 2  # the two of the sample repository
        assert answer.patient == name_of(node, KEPT)


def test_an_id_that_nobody_had_yet_is_joined_for_what_will_come(node: Node) -> None:
    process(node, job_of(node, images_of(KEPT, 5)))
    merged, moved = merge(node)
    assert (moved.studies, moved.objects) == (0, 0)
    images = images_of(OTHER, 6)
    process(node, job_of(node, images))
    assert len(node.catalogue.studies_of(merged.pseudonym)) == 2


def test_a_patient_who_was_excluded_stays_so(node: Node) -> None:
    for key, seed in ((KEPT, 5), (OTHER, 6)):
        process(node, job_of(node, images_of(key, seed)))
    node.catalogue.exclude_patient(name_of(node, OTHER))
    merged, _ = merge(node)
    assert node.index.store.state().excluded == {merged.pseudonym}
    assert not [
        p for study in node.catalogue.studies_of(merged.pseudonym) for p in node.thumbnails._of(study).glob("*")
    ]


KILLS = {
    "the vectors": ("dicomnode.index.repository.VectorIndex.move_patient", 0),
    "the answers": ("dicomnode.archive.amending.Amending.move_patient", 0),
    "the first object": ("dicomnode.workflow.merging._redated", 0),
    "a file takes its place": ("dicomnode.workflow.merging._take_place", 1),
}


@pytest.mark.parametrize("point", KILLS)
def test_a_merge_that_was_killed_is_finished_by_the_next(
    node: Node, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    for key, seed in ((KEPT, 5), (OTHER, 6)):
        process(node, job_of(node, images_of(key, seed)))
    former = name_of(node, OTHER)
    place, done_before = KILLS[point]
    real, calls = pydoc.locate(place), iter(range(done_before))

    def killed(*arguments: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[operator]

    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        with pytest.raises(KeyboardInterrupt):
            merge(node)
    merged, moved = merge(node)
    assert (merged.already, moved.damaged) == (True, 0)
    studies = node.catalogue.studies_of(merged.pseudonym)
    known = [one for study in studies for one in node.catalogue.known_instances(study)]
    assert (len(studies), len(known)) == (2, 6)
    assert [sha256_of(node.objects.path(one.path)) for one in known] == [one.sha256 for one in known]
    assert not [one for one in known if former.encode() in node.objects.path(one.path).read_bytes()]
    assert node.index.verify() == []


def test_an_object_that_was_damaged_is_named_and_left(node: Node) -> None:
    for key, seed in ((KEPT, 5), (OTHER, 6)):
        process(node, job_of(node, images_of(key, seed)))
    study = uid_of(node, images_of(OTHER, 6))
    path = objects(node, study)[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    _, moved = merge(node)
    assert (moved.objects, moved.damaged) == (2, 1)
    assert path.read_bytes() == bytes(data)


BROKEN = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "cut in its preamble": lambda data: data[:100],
    "cut in its header": lambda data: data[:400],
    "of something else": lambda data: b"II*\0" * 100,
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_object_that_cannot_be_read_or_is_gone_is_counted_and_the_rest_goes_on(node: Node, how: str) -> None:
    for key, seed in ((KEPT, 5), (OTHER, 6)):
        process(node, job_of(node, images_of(key, seed)))
    study, former = uid_of(node, images_of(OTHER, 6)), name_of(node, OTHER)
    path, *others = objects(node, study)
    data = BROKEN[how](path.read_bytes())
    path.unlink()  # the answer's key slice may be another name of the file, and stays as it is
    if data is not None:
        path.write_bytes(data)
    _, moved = merge(node)
    assert (moved.studies, moved.objects, moved.damaged) == (1, 2, 1)
    assert (path.read_bytes() if path.exists() else None) == data
    assert not [one for one in others if former.encode() in one.read_bytes()]
    assert not list(path.parent.glob("*.part"))
    _, again = merge(node)
    assert (again.objects, again.damaged) == (0, 1)  # told as long as it is so


def test_a_kept_slice_that_cannot_be_read_is_counted_too(node: Node) -> None:
    for key, seed in ((KEPT, 5), (OTHER, 6)):
        process(node, job_of(node, images_of(key, seed)))
    study = uid_of(node, images_of(OTHER, 6))
    path, *_ = sorted((node.folders.results / study).glob("*.dcm"))
    data = path.read_bytes()[:400]
    path.unlink()  # the archive's object may be another name of the file
    path.write_bytes(data)
    _, moved = merge(node)
    assert (moved.objects, moved.damaged) == (3, 1)
    assert path.read_bytes() == data


def test_a_full_disk_is_no_damage(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, seed in ((KEPT, 5), (OTHER, 6)):
        process(node, job_of(node, images_of(key, seed)))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dicomnode.workflow.merging.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            merge(node)
    _, moved = merge(node)
    assert (moved.objects, moved.damaged) == (3, 0)

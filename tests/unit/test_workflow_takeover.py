"""A model takes over without a gap: every slice of the old is in the new, whatever comes, goes or breaks meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from workflow_samples import POOLED_DIM, job_of, pooled_pack, process, slice_picture

from dicomnode.archive import schema as tables
from dicomnode.domain import PseudoUid, Role
from dicomnode.errors import Busy, InputError, ModelMismatch, StorageFull
from dicomnode.evaluation.findings import precision_at
from dicomnode.index import takeover as index_side
from dicomnode.models.packing import keep_pack
from dicomnode.node import ACTIVE_PACK, Node
from dicomnode.testing import sample_repository, sample_study
from dicomnode.workflow import takeover
from dicomnode.workflow.comparing import Side, compare, overlap_at, random_precision
from dicomnode.workflow.ingest import add_paths
from dicomnode.workflow.labels import add_labels
from dicomnode.workflow.models import Model
from dicomnode.workflow.takeover import TakenOver, carry, settle, take_over
from dicomnode.workflow.withdrawal import remove_studies

STUDIES, SLICES = 4, 2
SETTLED = ("deid", "archive", "embed", "index", "retrieve")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pooled_pack(tmp_path_factory.mktemp("pack") / "pooled")


@pytest.fixture(scope="module")
def repository(make_node, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a node with a few studies."""
    folder = tmp_path_factory.mktemp("repository")
    node = make_node(folder)
    findings = sample_repository(folder / "studies", STUDIES, slices=SLICES, matrix=64)
    add_paths(node.context, [folder / "studies"], findings)
    node.close()
    return folder / "var"


@pytest.fixture
def filled(make_node, repository: Path, tmp_path: Path) -> Node:
    """A node of its own with what ``repository`` holds."""
    shutil.copytree(repository, tmp_path / "var")
    return make_node(tmp_path)


@pytest.fixture
def new(filled: Node, pack: Path) -> Model:
    """The model that takes over, not yet in force; its pack kept with the repository as the command does it."""
    return filled.models.open(keep_pack(pack, filled.data_dir / "packs").resolve())


def put(node: Node, model: Model) -> None:
    node.catalogue.put(ACTIVE_PACK, str(model.folder))


def over(node: Node, model: Model, **how: object) -> TakenOver:
    return take_over(model.context, model.index, lambda: put(node, model), **how)


def keys(node: Node, model: Model) -> set[tuple]:
    v, s = tables.vectors.c, tables.segments.c
    query = sa.select(v.study_uid, v.series_uid, v.instance_uid, v.frame, v.z, v.patient).join(tables.segments)
    with node.catalogue.engine.connect() as db:
        return {tuple(row) for row in db.execute(query.where(s.model_id == model.model_id))}


def studies(node: Node) -> list[PseudoUid]:
    return [uid for uid, *_ in node.catalogue.study_sources()]


def test_the_new_model_has_the_same_slices_and_the_old_ones_stay(filled: Node, new: Model) -> None:
    old = filled.models.active()
    seen = []
    done = over(filled, new, progress=lambda n, total: seen.append((n, total)))
    assert (done.embedded, done.failed) == (STUDIES, {})
    assert filled.models.active() is new
    assert keys(filled, new) == keys(filled, old) != set()
    assert seen[-1] == (STUDIES, STUDIES)
    np.testing.assert_allclose(
        new.index.vectors_of(studies(filled)[0]),
        new.context.embedder.embed_study(
            [filled.objects.path(k.path) for k in filled.catalogue.known_instances(studies(filled)[0])]
        ).vectors,
        atol=1e-5,
    )
    assert filled.index.verify() == []


def test_going_back_embeds_nothing_and_discarding_ends_it(filled: Node, new: Model, monkeypatch) -> None:
    old = filled.models.active()
    over(filled, new)

    def never(*_arguments):
        raise AssertionError("nothing was to be embedded")

    monkeypatch.setattr(takeover, "carry", never)
    assert over(filled, old).embedded == 0
    assert filled.models.active() is old
    assert old.index.discard_other_models(new.model_id) == STUDIES * SLICES
    assert keys(filled, new) == set()
    with pytest.raises(ModelMismatch):
        new.index.searcher.refresh()


def test_what_was_interrupted_goes_on_where_it_was(filled: Node, new: Model, monkeypatch) -> None:
    old, calls = filled.models.active(), []

    def breaks(ctx, study):
        calls.append(study)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return carry(ctx, study)

    monkeypatch.setattr(takeover, "carry", breaks)
    with pytest.raises(KeyboardInterrupt):
        over(filled, new)
    assert filled.models.active() is old
    assert len(index_side.lacking(new.index.store)) == STUDIES - 2
    monkeypatch.undo()
    assert over(filled, new).embedded == STUDIES - 2


def test_a_full_disk_stops_it_and_the_old_model_stays(filled: Node, new: Model, monkeypatch) -> None:
    def full(*_arguments):
        raise StorageFull("the disk is full")

    monkeypatch.setattr(takeover, "carry", full)
    with pytest.raises(StorageFull):
        over(filled, new)
    assert filled.models.active() is not new


def test_a_study_that_cannot_be_embedded_keeps_the_old_model_in_force(filled: Node, new: Model) -> None:
    lost = studies(filled)[1]
    filled.objects.path(filled.catalogue.known_instances(lost)[0].path).unlink()
    with pytest.raises(InputError, match=r"1 studies cannot be embedded.*stays in force"):
        over(filled, new)
    assert filled.models.active() is not new
    done = over(filled, new, leave_out=True)
    assert (list(done.failed), filled.models.active()) == ([lost], new)


def test_a_study_that_came_while_the_switch_was_made_is_found_or_settled(filled: Node, new: Model) -> None:
    old = filled.models.active()
    new.index.admit()
    for study in studies(filled):
        carry(new.context, study)
    seen = index_side.last_id(filled.catalogue.engine)
    process(filled, job_of(filled, sample_study(SLICES, matrix=64, patient_id="LATE"), role=Role.INDEX))
    late = studies(filled)[-1]
    # Before the switch: the switch sees it.
    assert index_side.put_in_force(new.index.store, lambda: put(filled, new), seen) == [late]
    assert filled.models.active() is old
    # After it: who added the vectors sees the switch.
    put(filled, new)
    assert not new.index.has_study(late)
    settle(old.context, late)
    assert keys(filled, new) == keys(filled, old)


def test_a_study_that_is_removed_while_it_is_embedded_does_not_come_back(filled: Node, new: Model) -> None:
    study = studies(filled)[0]
    new.index.admit()
    sources = new.index.to_embed(study)
    pixels = np.stack([takeover._prepared(new.context, s, captured=False) for s in sources])
    remove_studies(filled.context, [study])
    refs, vectors = [s.ref for s in sources], new.context.embedder.embed_images(pixels)
    assert new.index.add(refs, vectors, beside=[s.vector for s in sources]) == 0
    assert study not in {row[0] for row in keys(filled, new)}


def test_a_study_in_work_when_the_model_changes_is_answered_wholly_by_one(filled: Node, new: Model) -> None:
    old = filled.models.active()
    job = job_of(filled, sample_study(SLICES, matrix=64, patient_id="ASKS", seed=5))
    process(filled, job, ("deid", "archive", "embed"))
    over(filled, new)
    process(filled, job, ("index", "retrieve"))
    stored = filled.answers.by_id(filled.spool.job(job).answer_id)
    assert stored.model_id == old.model_id
    assert {len(s.vector) for s in filled.answers.slices(stored.id)} == {old.manifest.dim}
    assert new.index.has_study(stored.study_uid)


def test_a_study_in_work_whose_model_was_discarded_is_embedded_again(filled: Node, new: Model) -> None:
    job = job_of(filled, sample_study(SLICES, matrix=64, patient_id="ASKS", seed=5), role=Role.QUERY)
    process(filled, job, ("deid", "archive", "embed"))
    over(filled, new)
    new.index.discard_other_models()
    process(filled, job, ("index", "retrieve"))
    stored = filled.answers.by_id(filled.spool.job(job).answer_id)
    assert stored.model_id == new.model_id
    assert {len(s.vector) for s in filled.answers.slices(stored.id)} == {POOLED_DIM}


def test_pictures_of_a_labels_file_are_carried_as_they_were_indexed(node: Node, pack: Path, tmp_path: Path) -> None:
    rows = ["path,label"]
    for n in range(3):
        slice_picture(n).save(tmp_path / f"{n}.png")
        rows.append(f"{n}.png,nodule")
    (tmp_path / "LABELS.csv").write_text("\n".join(rows))
    model = node.models.open(pack)
    add_labels(node.context, tmp_path / "LABELS.csv")
    over(node, model)
    carried = [model.index.vectors_of(s) for s in studies(node)]
    for study in studies(node):
        remove_studies(node.context, [study])
    add_labels(node.context, tmp_path / "LABELS.csv")
    np.testing.assert_allclose(carried, [model.index.vectors_of(s) for s in studies(node)], atol=1e-6)


def test_a_query_that_is_kept_is_asked_again_by_the_model_that_answered_it(filled: Node, new: Model) -> None:
    old = filled.models.active()
    job = job_of(filled, sample_study(SLICES, matrix=64, patient_id="ASKS", seed=5), role=Role.QUERY)
    process(filled, job, SETTLED)
    instance = filled.answers.by_id(filled.spool.job(job).answer_id).instances[0]
    before = filled.queries.similar(instance, 5, [], ["StudyInstanceUID"])
    assert len(before[1]) == STUDIES
    over(filled, new)
    assert filled.queries.similar(instance, 5, [], ["StudyInstanceUID"]) == before
    assert filled.models.answering(old.model_id) is old
    new.index.discard_other_models()
    assert filled.models.answering(old.model_id) is new
    assert filled.queries.similar(instance, 5, [], ["StudyInstanceUID"]) == ("", [])


def test_the_verdict_of_the_old_model_is_not_computed_again_for_the_new_ones_vectors(filled: Node, new: Model) -> None:
    reference = filled.models.active().index.retriever._references
    searcher = filled.models.active().index.searcher
    now = searcher.refresh()
    stamp = reference._stamp(now, now.open_rows())
    new.index.admit()
    carry(new.context, studies(filled)[0])
    now = searcher.refresh()
    assert reference._stamp(now, now.open_rows()) == stamp


def test_one_takeover_at_a_time(filled: Node) -> None:
    assert not filled.is_locked("models")
    with filled.lock("models"):
        assert filled.is_locked("models")
        with pytest.raises(Busy):
            filled.lock("models")
    assert not filled.is_locked("models")


def test_two_models_are_compared_without_changing_anything(filled: Node, new: Model) -> None:
    old = filled.models.active()
    before = keys(filled, old)
    one, other = (Side.of(filled.catalogue, filled.objects, model) for model in (old, new))
    found = compare(one, other)
    assert (found.studies, found.skipped, found.overlap) == (STUDIES, 0, 1.0)  # ten of three are all
    assert (found.precision, found.random_order, found.notes) == ((None, None), None, [])
    assert (keys(filled, old), keys(filled, new)) == (before, set())
    said = found.as_json([old.model_id, new.model_id])
    assert said["precision_at_10"] == {"one": None, "other": None}
    assert compare(one, one).overlap == 1.0


def test_a_random_order_is_counted_over_labelled_studies_of_other_patients() -> None:
    a, b, both, unknown = frozenset("a"), frozenset("b"), frozenset("ab"), frozenset[str]()
    owner = ["p", "p", "q", "r", "s", "t"]
    stated = [a, b, a, both, b, unknown]
    shares = [2 / 3, 2 / 3, 2 / 4, 4 / 4, 2 / 4]  # of a study: its patient's own are closed, unknown ones never count
    assert random_precision(owner, stated) == pytest.approx(np.mean(shares))


def test_a_random_order_is_what_drawn_neighbours_reach() -> None:
    random = np.random.default_rng(0)
    kinds = [frozenset("a"), frozenset("b"), frozenset("ab"), frozenset[str]()]
    owner = [f"p{n // 2}" for n in range(80)]
    stated = [kinds[n] for n in random.integers(0, 4, 80)]
    drawn = []
    for _ in range(100):
        rows = random.standard_normal((80, 64)).astype(np.float32)
        found = precision_at(rows / np.linalg.norm(rows, axis=1, keepdims=True), owner, stated)
        assert found is not None
        drawn.append(found.mean)
    assert random_precision(owner, stated) == pytest.approx(np.mean(drawn), abs=0.005)


def test_overlap_counts_common_neighbours_of_other_patients() -> None:
    torch.manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(40, 8), dim=1).numpy()
    other = torch.nn.functional.normalize(torch.randn(40, 5), dim=1).numpy()
    owner = [f"p{n // 2}" for n in range(40)]
    assert overlap_at(one, one, owner) == 1.0
    by_chance = overlap_at(one, other, owner)
    assert by_chance is not None
    assert 0.1 < by_chance < 0.45  # 10 of 38
    assert overlap_at(one[:2], other[:2], owner[:2]) is None

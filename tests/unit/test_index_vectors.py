"""The vector store: nothing is added twice, nothing lost, nothing damaged goes unnoticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import DIM, MODEL, Clusters, fill, open_index, slices, unit
from sqlalchemy import func, select

from dicomnode.archive.schema import segments, vectors
from dicomnode.domain import ModelId, Pseudonym, PseudoUid
from dicomnode.errors import Busy, DicomnodeError, IndexCorrupt, InputError, ModelMismatch
from dicomnode.index import segments as files
from dicomnode.index.repository import VectorIndex


@pytest.fixture
def index(tmp_path: Path) -> VectorIndex:
    return open_index(tmp_path)


def rows(n: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def segment_files(index: VectorIndex) -> list[Path]:
    return sorted(index.store.segment_folder.iterdir())


def test_what_was_added_is_found_by_another_opening_of_the_folder(index: VectorIndex, tmp_path: Path) -> None:
    added = rows(5)
    assert index.add(slices("p1", "2.25.1", 5), added) == 5
    now = open_index(tmp_path).searcher.refresh()
    np.testing.assert_array_equal(now.matrix, added)
    assert now.names.studies == ["2.25.1"]


def test_adding_the_same_slices_again_changes_nothing(index: VectorIndex) -> None:
    refs = slices("p1", "2.25.1", 5)
    index.add(refs, rows(5))
    before, on_disk = index.store.state(), segment_files(index)
    assert index.add(refs, rows(5)) == 0
    assert (index.store.state(), segment_files(index)) == (before, on_disk)


def test_only_the_slices_that_came_late_are_added(index: VectorIndex) -> None:
    refs = slices("p1", "2.25.1", 8)
    index.add(refs[:3], rows(3))
    assert index.add(refs, rows(8)) == 5
    assert index.store.count() == 8


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), min_size=1, max_size=12))
def test_any_order_of_adding_and_removing_leaves_exactly_what_should_be_there(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]]
) -> None:
    index = open_index(tmp_path_factory.mktemp("steps"))
    expected: dict[tuple[str, str], np.ndarray] = {}
    for number, (study, n, removing) in enumerate(steps):
        uid = f"2.25.{study}"
        if removing:
            there = sum(1 for key in expected if key[0] == uid)
            assert index.remove_study(PseudoUid(uid)) == there
            expected = {key: v for key, v in expected.items() if key[0] != uid}
            continue
        refs, vecs = slices(f"p{study}", uid, n), rows(n, number)
        fresh = [i for i, ref in enumerate(refs) if (uid, ref.instance) not in expected]
        assert index.add(refs, vecs) == len(fresh)
        expected.update({(uid, refs[i].instance): vecs[i] for i in fresh})
    now = index.searcher.refresh()
    names = index.store.instances([int(i) for i in now.ids])
    found = {(now.names.studies[s], names[int(i)]): v for s, i, v in zip(now.study, now.ids, now.matrix, strict=True)}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert [p for p in index.verify() if "not in the catalogue" not in p] == []


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (np.full((2, DIM), np.nan, np.float32), InputError),
        (np.zeros((2, DIM), np.float32), InputError),
        (rows(2) * np.float32(1.1), InputError),
        (rows(2).astype(np.float64), InputError),
        (rows(3), InputError),
        (rows(2, dim=DIM + 1), ModelMismatch),
    ],
    ids=["nan", "zero", "not unit", "float64", "one too many", "other dimension"],
)
def test_bad_vectors_are_refused_and_nothing_is_written(
    index: VectorIndex, bad: np.ndarray, error: type[DicomnodeError]
) -> None:
    with pytest.raises(error):
        index.add(slices("p1", "2.25.1", 2), bad)
    assert index.store.count() == 0
    assert segment_files(index) == []


def test_a_study_cannot_belong_to_two_patients(index: VectorIndex) -> None:
    index.add(slices("p1", "2.25.1", 2), rows(2))
    with pytest.raises(InputError, match="another patient"):
        index.add(slices("p2", "2.25.1", 3), rows(3))


def test_vectors_of_another_model_are_neither_added_nor_searched(index: VectorIndex, tmp_path: Path) -> None:
    index.add(slices("p1", "2.25.1", 2), rows(2))
    other = open_index(tmp_path, model=ModelId("model-b"))
    with pytest.raises(ModelMismatch, match=MODEL):
        other.add(slices("p2", "2.25.2", 2), rows(2))
    with pytest.raises(ModelMismatch, match="model-b"):
        other.searcher.search(rows(1), 1)
    assert any("another model" in line for line in other.verify())
    assert other.discard_other_models() == 2
    assert other.add(slices("p2", "2.25.2", 2), rows(2)) == 2


def test_a_model_that_takes_over_fills_up_beside_the_old_one_which_goes_on_answering(
    index: VectorIndex, tmp_path: Path
) -> None:
    refs = slices("p1", "2.25.1", 2)
    index.add(refs, rows(2, 1))
    new = open_index(tmp_path, model=ModelId("model-b"), dim=8)
    new.admit()
    assert not new.has_study(PseudoUid("2.25.1"))
    assert new.add(refs, rows(2, 2, dim=8)) == 2
    index.add(slices("p2", "2.25.2", 3), rows(3, 3))
    assert (index.searcher.refresh().n, new.searcher.refresh().n) == (5, 2)
    np.testing.assert_array_equal(new.searcher.refresh().matrix, rows(2, 2, dim=8))
    assert (index.status()["vectors"], index.status()["tail"], new.status()["tail"]) == (5, 5, 2)
    assert new.status()["other_models"] == [MODEL]
    assert not any("another model" in line for line in index.verify())
    assert index.remove_study(PseudoUid("2.25.1")) == 4
    new.add(slices("p3", "2.25.3", 1), rows(1, 4, dim=8))
    assert new.discard_other_models() == 3
    with pytest.raises(ModelMismatch):
        index.add(refs, rows(2))


def test_removing_a_patient_takes_the_vectors_from_the_disk_too(index: VectorIndex) -> None:
    first, second = rows(3, 1), rows(3, 2)
    index.add(slices("p1", "2.25.1", 3) + slices("p2", "2.25.2", 3), np.concatenate([first, second]))
    assert index.remove_patient(Pseudonym("p1")) == 3
    everything = b"".join(path.read_bytes() for path in segment_files(index))
    assert first[0].tobytes() not in everything
    assert second[0].tobytes() in everything
    np.testing.assert_array_equal(index.searcher.refresh().matrix, second)
    assert index.remove_patient(Pseudonym("p1")) == 0


def test_an_id_is_never_used_again(index: VectorIndex) -> None:
    index.add(slices("p1", "2.25.1", 3), rows(3))
    old = index.store.live_ids()
    index.remove_study(PseudoUid("2.25.1"))
    index.add(slices("p1", "2.25.1", 3), rows(3))
    assert index.store.live_ids().min() > old.max()


def test_many_small_segments_are_merged_without_changing_what_is_searched(index: VectorIndex, tmp_path: Path) -> None:
    reader = open_index(tmp_path).searcher
    for i in range(40):
        index.add(slices("p", f"2.25.{i}", 3), rows(3, i))
        assert reader.refresh().n == 3 * (i + 1)
    assert len(segment_files(index)) < 20
    np.testing.assert_array_equal(reader.refresh().matrix, np.concatenate([rows(3, i) for i in range(40)]))
    np.testing.assert_array_equal(
        open_index(tmp_path).searcher.refresh().matrix, np.concatenate([rows(3, i) for i in range(40)])
    )
    assert [p for p in index.verify() if "not in the catalogue" not in p] == []


def test_a_writer_killed_between_file_and_row_leaves_an_orphan_that_is_swept(
    index: VectorIndex, tmp_path: Path
) -> None:
    index.add(slices("p1", "2.25.1", 2), rows(2))
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from index_samples import open_index, slices
        from test_index_vectors import rows
        store = open_index(Path({str(tmp_path)!r})).store
        store._commit_new = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.add(slices("p2", "2.25.2", 4), rows(4))
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert len(segment_files(index)) == 2
    assert any("named by no row" in line for line in index.verify())
    assert index.searcher.refresh().n == 2
    assert index.store.sweep() == 1
    assert index.add(slices("p2", "2.25.2", 4), rows(4)) == 4
    assert not any("named by no row" in line for line in index.verify())


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def damage_truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, Path.unlink], ids=["one bit", "truncated", "missing"])
def test_a_damaged_segment_stops_searching_with_one_line_and_rebuild_names_what_to_add_again(
    index: VectorIndex, tmp_path: Path, damage: object
) -> None:
    index.add(slices("p1", "2.25.1", 2), rows(2, 1))
    index.add(slices("p2", "2.25.2", 2), rows(2, 2))
    with index.store.reading() as c:
        name = c.scalar(select(segments.c.name).order_by(segments.c.id))
    damage(index.store.segment_folder / name)  # type: ignore[operator]
    fresh = open_index(tmp_path)
    with pytest.raises(IndexCorrupt, match="index rebuild") as caught:
        fresh.searcher.search(rows(1), 1)
    assert "\n" not in str(caught.value)
    assert any(name in line for line in fresh.verify())
    assert fresh.rebuild().lost == ("2.25.1",)
    np.testing.assert_array_equal(fresh.searcher.refresh().matrix, rows(2, 2))
    assert fresh.add(slices("p1", "2.25.1", 2), rows(2, 1)) == 2
    assert not any(name in line for line in fresh.verify())


def test_a_study_with_one_damaged_segment_is_given_up_whole_and_its_neighbours_stay(
    index: VectorIndex, tmp_path: Path
) -> None:
    refs = slices("p1", "2.25.1", 4)
    index.add(refs[:2] + slices("p2", "2.25.2", 2), rows(4, 1))
    index.add(refs[2:], rows(2, 2))
    with index.store.reading() as c:
        damage_flip(index.store.segment_folder / c.scalar(select(segments.c.name).order_by(segments.c.id.desc())))
    assert open_index(tmp_path).repair() == ["2.25.1"]
    np.testing.assert_array_equal(open_index(tmp_path).searcher.refresh().matrix, rows(4, 1)[2:])


def test_verify_counts_rows_against_the_file(index: VectorIndex) -> None:
    index.add(slices("p1", "2.25.1", 3), rows(3))
    with index.store.engine.begin() as c:
        c.execute(vectors.delete().where(vectors.c.row == 1))
    assert any("3 rows in the file, 2 in the catalogue" in line for line in index.verify())


def test_two_processes_write_at_once_and_a_third_reads(index: VectorIndex, tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from index_samples import open_index, slices
        from test_index_vectors import rows
        who = int(sys.argv[1])
        index = open_index(Path({str(tmp_path)!r}))
        for i in range(25):
            index.add(slices(f"p{{who}}", f"2.25.{{who}}{{i:03d}}", 2), rows(2, 100 * who + i))
            if i % 10 == 9:
                index.remove_study(f"2.25.{{who}}{{i:03d}}")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    writers = [subprocess.Popen([*command, str(who)], stderr=subprocess.PIPE) for who in (1, 2)]
    reader, seen = index.searcher, 0
    while any(writer.poll() is None for writer in writers):
        seen = max(seen, reader.refresh().n)
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors.decode()
    assert seen > 0
    now = reader.refresh()
    assert now.n == 2 * 2 * 23
    fresh = open_index(tmp_path).searcher.refresh()
    np.testing.assert_array_equal(now.matrix, fresh.matrix)
    with index.store.reading() as c:
        assert c.scalar(select(func.count()).select_from(vectors)) == now.n
    assert [p for p in index.verify() if "not in the catalogue" not in p] == []


def test_a_writer_that_waits_too_long_says_who_holds_it_up(tmp_path: Path) -> None:
    with (
        files.exclusive(tmp_path / "writer.lock"),
        pytest.raises(Busy, match=r"writer\.lock"),
        files.exclusive(tmp_path / "writer.lock", timeout_s=0.05),
    ):
        pytest.fail("two writers hold the lock")


def test_a_reader_keeps_what_it_holds_while_others_write(index: VectorIndex) -> None:
    fill(index, Clusters.make(), 3)
    before = index.searcher.refresh()
    kept = before.matrix.copy()
    index.remove_study(PseudoUid("2.25.1000"))
    index.add(slices("new", "2.25.9", 20), rows(20))
    index.searcher.refresh()
    np.testing.assert_array_equal(before.matrix, kept)

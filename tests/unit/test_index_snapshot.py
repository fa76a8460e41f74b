"""Snapshots: proved before use, checked before load, and never able to take the node down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from index_samples import DIM, Clusters, fill, open_index, slices
from structlog.testing import capture_logs

from dicomnode.domain import ModelId, Pseudonym, PseudoUid
from dicomnode.errors import Busy, IndexCorrupt
from dicomnode.index import build, resident, snapshot
from dicomnode.index import segments as files
from dicomnode.index.mrpt import ChildDied, MrptProcess
from dicomnode.index.repository import VectorIndex

PATIENTS, SLICES = 400, 8


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of 3,200 vectors with a snapshot, as files to be copied."""
    folder = tmp_path_factory.mktemp("snapshot")
    index = open_index(folder)
    clusters = Clusters.make(clusters=20)
    refs, vecs = [], []
    for i in range(PATIENTS):
        refs += slices(f"p{i:04d}", f"2.25.{1000 + i}", SLICES)
        vecs.append(clusters.study(i % 20, SLICES))
    index.add(refs, np.concatenate(vecs))
    made = index.rebuild()
    assert made.snapshot is not None, made.line
    index.store.engine.dispose()
    return folder


@pytest.fixture
def index(filled: Path, tmp_path: Path) -> Iterator[VectorIndex]:
    shutil.copytree(filled, tmp_path / "copy")
    index = open_index(tmp_path / "copy")
    yield index
    index.close()


def queries(m: int = 40, seed: int = 9) -> np.ndarray:
    clusters = Clusters.make(clusters=20)
    clusters.random = np.random.default_rng(seed)
    return np.concatenate([clusters.study(i % 20, 1) for i in range(m)])


def answers_like_exact_search(index: VectorIndex, *, least: float) -> bool:
    """Whether searching finds at least this share of what exact search finds."""
    exactly = open_index(index.store.folder.parent, backend="exact")
    asked = queries()
    found, wanted = index.searcher.search(asked, 50)[0], exactly.searcher.search(asked, 50)[0]
    return np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]) >= least


def child_pid(index: VectorIndex) -> int:
    child = index.searcher._child
    assert child is not None
    return child.pid


def in_force(index: VectorIndex) -> Path:
    return index.store.snapshot_folder / snapshot.names(index.store.snapshot_folder)[0]


def test_a_snapshot_is_proved_on_held_out_queries_and_used(index: VectorIndex) -> None:
    shown = index.status()["snapshot"]
    assert shown["recall"] >= shown["recall_lower"] >= shown["target_recall"] == 0.95
    assert shown["test_queries"] >= 100
    assert shown["n"] + shown["held_out"] == PATIENTS * SLICES
    assert answers_like_exact_search(index, least=0.95)
    assert child_pid(index) > 0
    assert index.verify() == [] or all("not in the catalogue" in line for line in index.verify())


def test_similarities_are_recomputed_from_the_vectors_themselves(index: VectorIndex) -> None:
    asked = queries()
    ids, similarity = index.searcher.search(asked, 10)
    now = index.searcher.refresh()
    rows = now.matrix[np.searchsorted(now.ids, ids)]
    np.testing.assert_allclose(similarity, np.einsum("mkd,md->mk", rows, asked), atol=1e-6)


def test_what_arrived_since_is_searched_exactly_beside_it(index: VectorIndex) -> None:
    newcomer = queries(3, seed=77)
    index.add(slices("new", "2.25.9", 3), newcomer)
    ids, similarity = index.searcher.search(newcomer, 1)
    assert ids[:, 0].tolist() == index.store.live_ids()[-3:].tolist()
    np.testing.assert_allclose(similarity, 1.0, atol=1e-6)
    assert index.status()["tail"] == 3


def test_a_held_out_slice_is_found_exactly_and_once(index: VectorIndex) -> None:
    now = index.searcher.refresh()
    held = index.searcher.snapshot
    assert held is not None
    assert len(held.held_out) == held.manifest.held_out > 0
    found, similarity = index.searcher.search(now.matrix[held.held_out], 50)
    assert (found[:, 0] == now.ids[held.held_out]).mean() > 0.99  # a twin may be older
    np.testing.assert_allclose(similarity[:, 0], 1.0, atol=1e-6)
    assert all(len(set(row)) == 50 for row in found.tolist())


def test_the_vectors_are_held_once_also_when_they_move_to_more_room(index: VectorIndex) -> None:
    def mappings() -> list[str]:
        maps = Path(f"/proc/{child_pid(index)}/maps").read_text()
        return [line.split()[4] for line in maps.splitlines() if "dicomnode-vectors" in line]

    index.searcher.search(queries(1), 5)
    first, before = index.searcher.refresh(), mappings()
    assert before == [str(os.fstat(first.shared.fd).st_ino)]
    more = int(first.n * (resident.GROWTH - 1)) + 1
    index.add(slices("new", "2.25.9", more), Clusters.make().study(0, more))
    assert answers_like_exact_search(index, least=0.95)
    moved = index.searcher.refresh()
    assert moved.shared is not first.shared
    assert mappings() == [str(os.fstat(moved.shared.fd).st_ino)]
    assert index.searcher.snapshot is not None  # moving is no crash


def test_a_snapshot_is_never_used_over_other_vectors(index: VectorIndex) -> None:
    now, folder = index.searcher.refresh(), index.store.snapshot_folder
    token, model = snapshot.current_token(folder), index.store.model_id
    changed = now.matrix.copy()
    changed[100] = changed[101]
    with capture_logs() as logs:
        assert snapshot.newest(folder, token, model, now.ids, changed) is None
        assert snapshot.newest(folder, token, model, now.ids[1:], now.matrix[1:]) is None
    assert ["is for other vectors" in entry["line"] for entry in logs] == [True, True]


def test_narrow_filters_and_exclusions_equal_exact_search_with_a_snapshot_too(index: VectorIndex) -> None:
    exactly = open_index(index.store.folder.parent, backend="exact")
    asked = queries(10)
    few = {PseudoUid(f"2.25.{1000 + i}") for i in (3, 77, 200)}
    np.testing.assert_array_equal(
        index.searcher.search(asked, 50, allow=few)[0], exactly.searcher.search(asked, 50, allow=few)[0]
    )
    near = index.searcher.refresh()
    crowd = {Pseudonym(near.names.patients[p]) for p in np.unique(near.patient) if p % 20 == 0}  # a whole cluster
    found = index.searcher.search(asked, 50, exclude_patients=crowd)[0]
    wanted = exactly.searcher.search(asked, 50, exclude_patients=crowd)[0]
    assert np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]) >= 0.95
    assert (found >= 0).all()
    assert not np.isin(
        near.patient[np.searchsorted(near.ids, found)], [p for p in range(PATIENTS) if p % 20 == 0]
    ).any()


def test_a_segfault_of_the_child_is_one_line_in_the_log_and_the_answer_is_exact(index: VectorIndex) -> None:
    index.searcher.search(queries(1), 5)
    os.kill(child_pid(index), signal.SIGSEGV)
    with capture_logs() as logs:
        assert answers_like_exact_search(index, least=1.0)
    assert [(e["event"], "SIGSEGV" in e["line"]) for e in logs if e["log_level"] == "warning"] == [
        ("mrpt_process_failed", True)
    ]
    assert answers_like_exact_search(index, least=0.95)
    os.kill(child_pid(index), signal.SIGSEGV)  # twice with one snapshot: it is not tried a third time
    assert answers_like_exact_search(index, least=1.0)
    assert answers_like_exact_search(index, least=1.0)
    assert index.searcher.snapshot is None


def test_a_child_that_hangs_is_given_up_in_time(index: VectorIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomnode.index.mrpt.QUERY_TIMEOUT_S", 0.3)
    index.searcher.search(queries(1), 5)
    os.kill(child_pid(index), signal.SIGSTOP)
    assert answers_like_exact_search(index, least=1.0)


def test_a_truncated_index_crashes_or_refuses_only_in_the_child(index: VectorIndex) -> None:
    folder = in_force(index)
    held = snapshot.read_manifest(folder)
    os.truncate(folder / snapshot.INDEX, (folder / snapshot.INDEX).stat().st_size // 3)
    with MrptProcess(index.searcher.refresh().shared, held.n + held.held_out) as child, pytest.raises(ChildDied):
        child.load(folder / snapshot.INDEX)
        child.query(queries(), 100)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [snapshot.HELD_OUT, snapshot.IDS, snapshot.INDEX])
@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 100), Path.unlink], ids=["bit", "cut", "gone"])
def test_a_damaged_snapshot_is_refused_before_it_is_loaded(index: VectorIndex, name: str, damage: object) -> None:
    damage(in_force(index) / name)  # type: ignore[operator]
    with capture_logs() as logs:
        assert answers_like_exact_search(index, least=1.0)
    refused = [entry for entry in logs if entry["event"] == "snapshot_refused"]
    assert len(refused) == 1
    assert name in refused[0]["line"]
    assert "index rebuild" in refused[0]["line"]
    assert index.searcher._child is None
    assert any(name in line for line in index.verify())


@pytest.mark.parametrize(
    ("key", "value"), [("model_id", "model-b"), ("cpu", "other"), ("mrpt", "1.0"), ("dim", DIM + 1), ("format", 0)]
)
def test_a_snapshot_of_something_else_is_refused(index: VectorIndex, key: str, value: object) -> None:
    path = in_force(index) / snapshot.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert answers_like_exact_search(index, least=1.0)
    assert index.status()["snapshot"] is None
    with pytest.raises(IndexCorrupt):
        snapshot.open_checked(path.parent, index.store.model_id, DIM)


def test_a_snapshot_of_an_earlier_version_is_named_and_built_anew(index: VectorIndex) -> None:
    path = in_force(index) / snapshot.MANIFEST
    written = json.loads(path.read_text())
    for key in ("rows_sha256", "held_out_sha256"):
        del written[key]
    path.write_text(json.dumps(written | {"format": 1, "data_sha256": "0" * 64}))
    with capture_logs() as logs:
        assert answers_like_exact_search(index, least=1.0)
    assert [e["line"].partition(" is for another format")[1] for e in logs] == [" is for another format"]
    index.worth_a_snapshot = 1000
    assert index.snapshot_due()
    assert "recall" in index.build_if_due()
    assert answers_like_exact_search(index, least=0.95)


def test_the_previous_snapshot_is_kept_and_serves_when_the_new_one_is_damaged(index: VectorIndex) -> None:
    first = in_force(index).name
    assert index.rebuild().snapshot is not None
    assert snapshot.names(index.store.snapshot_folder)[1] == first
    flip(in_force(index) / snapshot.INDEX)
    assert answers_like_exact_search(index, least=0.95)
    assert index.searcher.snapshot is not None
    assert index.searcher.snapshot.name == first
    index.rebuild()
    assert len([path for path in index.store.snapshot_folder.iterdir() if path.is_dir()]) == 2


def test_a_running_searcher_takes_the_new_snapshot_without_a_restart(index: VectorIndex) -> None:
    index.searcher.search(queries(1), 5)
    other = open_index(index.store.folder.parent)
    assert other.rebuild().snapshot is not None
    index.searcher.search(queries(1), 5)
    assert index.searcher.snapshot is not None
    assert index.searcher.snapshot.name == in_force(index).name


def test_removing_a_study_deletes_the_snapshots_that_hold_it_but_not_others(index: VectorIndex) -> None:
    index.add(slices("new", "2.25.9", 3), queries(3))
    index.remove_study(PseudoUid("2.25.9"))
    assert index.status()["snapshot"] is not None
    index.searcher.search(queries(1), 5)
    index.remove_study(PseudoUid("2.25.1000"))
    assert [path for path in index.store.snapshot_folder.iterdir() if path.is_dir()] == []
    assert index.status()["snapshot"] is None
    assert answers_like_exact_search(index, least=1.0)


def test_a_removal_while_a_snapshot_is_built_makes_the_build_void(index: VectorIndex) -> None:
    stale = index.searcher.refresh()
    index.remove_study(PseudoUid("2.25.1000"))
    made = build.build(index.store, stale, 0.95)
    assert made.manifest is None
    assert "removed while" in made.line
    assert snapshot.names(index.store.snapshot_folder) == []


def test_a_killed_build_is_swept_and_a_running_one_is_not(index: VectorIndex) -> None:
    folder = index.store.snapshot_folder
    (folder / "dead.part").mkdir()
    with files.exclusive(snapshot.build_lock(folder)):
        index.store.sweep()
        assert (folder / "dead.part").exists()
        with pytest.raises(Busy):
            index.rebuild()
    index.store.sweep()
    assert not (folder / "dead.part").exists()


def test_recall_out_of_reach_means_exact_search_and_a_line_that_says_so(index: VectorIndex) -> None:
    index.target_recall = 0.9999
    made = index.rebuild()
    assert made.snapshot is None
    assert "no snapshot reaches recall 0.9999" in made.line


def test_too_few_vectors_or_patients_are_searched_exactly(tmp_path: Path) -> None:
    index = open_index(tmp_path / "small")
    fill(index, Clusters.make(), 5)
    assert "20 vectors: searched exactly" in index.rebuild().line
    few = open_index(tmp_path / "few")
    few.add(slices("p1", "2.25.1", 600), Clusters.make().study(0, 600))
    few.add(slices("p2", "2.25.2", 600), Clusters.make(1).study(0, 600))
    assert few.rebuild().snapshot is None


def test_a_snapshot_is_due_once_it_pays_and_again_when_the_tail_is_long(index: VectorIndex) -> None:
    assert not index.snapshot_due()
    index.worth_a_snapshot = 1000
    assert not index.snapshot_due()
    index.add(slices("new", "2.25.9", 900), Clusters.make().study(0, 900))
    assert index.snapshot_due()
    assert "recall" in index.build_if_due()
    assert index.build_if_due() == ""


def test_threads_searching_at_once_get_their_own_answers(index: VectorIndex) -> None:
    asked = queries(16)
    alone = [index.searcher.search(asked[i : i + 1], 5)[0].tolist() for i in range(16)]
    together: dict[int, list[list[int]]] = {}

    def ask(i: int) -> None:
        together[i] = index.searcher.search(asked[i : i + 1], 5)[0].tolist()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(16)] == alone


def gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True


def test_closing_the_searcher_ends_the_child(index: VectorIndex) -> None:
    index.searcher.search(queries(1), 5)
    pid = child_pid(index)
    index.close()
    assert gone(pid)


def test_the_child_ends_when_its_parent_is_killed() -> None:
    code = "import time; from dicomnode.index.mrpt import MrptProcess; from dicomnode.index.rows import SharedRows; "
    code += "p = MrptProcess(SharedRows(200, 8), 200); print(p.pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)


@pytest.mark.parametrize(
    ("mean", "trials", "lower"), [(1.0, 52, 0.95), (0.97, 800, 0.958), (0.5, 100, 0.419), (1, 0, 0)]
)
def test_the_lower_bound_is_wilson_s(mean: float, trials: int, lower: float) -> None:
    assert build.wilson_lower(mean, trials) == pytest.approx(lower, abs=0.001)


def test_an_unknown_model_has_no_snapshot(index: VectorIndex) -> None:
    now, folder = index.searcher.refresh(), index.store.snapshot_folder
    token = snapshot.current_token(folder)
    assert snapshot.newest(folder, token, ModelId("model-b"), now.ids, now.matrix) is None
    assert snapshot.newest(folder, token, index.store.model_id, now.ids, now.matrix) is not None

"""The spool: what is stored is kept once, claimed once and removed once, whatever is interrupted."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from dicomnode.domain import Role
from dicomnode.errors import DicomnodeError, NotFound, StorageFull
from dicomnode.scp.records import ReceivedFile, StoredKind
from dicomnode.scp.schema import JobState
from dicomnode.scp.spool import JOB_KEEP_S, STRAY_AGE_S, Spool


@pytest.fixture
def spool(tmp_path: Path):
    spool = Spool.open(tmp_path / "identified")
    yield spool
    spool.close()


def received(spool: Spool, data: bytes = b"pixels", **changes) -> ReceivedFile:
    incoming = spool.incoming(b"meta")
    incoming.write(data)
    incoming.close()
    assert incoming.error is None
    fields = {
        "path": incoming.path,
        "sha256": incoming.sha256,
        "size": incoming.size,
        "study_uid": "1.2.3",
        "series_uid": "1.2.3.1",
        "sop_class": "1.2.840.10008.5.1.4.1.1.2",
        "sop_uid": "1.2.3.1.1",
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "image": True,
        "called": "DICOMNODE",
        "calling": "PACS",
        "role": Role.INDEX_QUERY,
    }
    return ReceivedFile(**{**fields, **changes})


def files(spool: Spool) -> list[Path]:
    return sorted(spool.objects.iterdir())


def execute(spool: Spool, statement: str, **values) -> None:
    with spool._engine.begin() as connection:
        connection.execute(text(statement), values)


def test_the_identified_zone_is_open_to_nobody_else(spool):
    for folder in (spool.folder, spool.objects):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((spool.folder / "spool.sqlite3").stat().st_mode) == 0o600
    stored = received(spool)
    assert stat.S_IMODE(stored.path.stat().st_mode) == 0o600


def test_a_stored_instance_is_pending_and_its_file_is_what_was_sent(spool):
    stored = spool.store(received(spool))
    assert stored.kind is StoredKind.NEW
    (study,) = spool.pending()
    assert (study.study_id, study.images, study.newest_row_id) == (stored.study_id, 1, stored.instance_id)
    assert files(spool)[0].read_bytes() == b"metapixels"


def test_file_names_hold_no_uid(spool):
    spool.store(received(spool))
    assert "1.2" not in files(spool)[0].name


def test_the_same_bytes_again_are_a_duplicate_and_leave_one_file(spool):
    first = spool.store(received(spool))
    again = spool.store(received(spool))
    assert again.kind is StoredKind.DUPLICATE
    assert again.instance_id == first.instance_id
    assert len(files(spool)) == 1


def test_other_bytes_under_a_known_uid_are_kept_as_a_version(spool):
    spool.store(received(spool))
    other = spool.store(received(spool, b"changed"))
    third = spool.store(received(spool, b"changed again"))
    assert (other.kind, other.version, third.version) == (StoredKind.VERSION, 2, 3)
    job = spool.job(spool.claim(other.study_id))
    assert [i.version for i in job.instances] == [1, 2, 3]
    assert [i.path.read_bytes()[4:] for i in job.instances] == [b"pixels", b"changed", b"changed again"]


def test_a_resend_replaces_a_file_that_was_lost_under_its_row(spool):
    spool.store(received(spool))
    files(spool)[0].unlink()
    again = spool.store(received(spool))
    assert again.kind is StoredKind.DUPLICATE
    (instance,) = spool.job(spool.claim(again.study_id)).instances
    assert instance.path.read_bytes() == b"metapixels"


def test_the_same_study_from_two_peers_or_to_two_titles_is_two_studies(spool):
    ids = {
        spool.store(received(spool)).study_id,
        spool.store(received(spool, calling="OTHER")).study_id,
        spool.store(received(spool, called="SECOND", role=Role.QUERY)).study_id,
    }
    assert len(ids) == 3
    roles = {spool.job(spool.claim(i)).role for i in ids}
    assert roles == {Role.INDEX_QUERY, Role.QUERY}


def test_objects_without_images_never_make_a_study_pending_but_go_with_its_job(spool):
    report = spool.store(received(spool, b"sr", sop_uid="1.2.3.9", image=False))
    assert spool.pending() == []
    assert spool.claim(report.study_id) is None
    spool.store(received(spool))
    job = spool.job(spool.claim(report.study_id))
    assert [i.image for i in job.instances] == [False, True]


def test_an_unreadable_object_becomes_a_study_of_its_own(spool):
    first = spool.store(received(spool, b"?", study_uid="", sop_uid=""))
    second = spool.store(received(spool, b"?", study_uid="", sop_uid=""))
    assert first.study_id != second.study_id
    assert {s.study_id for s in spool.pending()} == {first.study_id, second.study_id}
    assert spool.job(spool.claim(first.study_id)).study_uid == ""


def test_a_claim_takes_everything_once_and_late_images_make_a_second_generation(spool):
    stored = spool.store(received(spool))
    job_id = spool.claim(stored.study_id)
    assert job_id is not None
    assert spool.claim(stored.study_id) is None
    assert spool.pending() == []
    spool.store(received(spool, b"late", sop_uid="1.2.3.1.2"))
    late = spool.job(spool.claim(stored.study_id))
    assert (spool.job(job_id).generation, late.generation) == (1, 2)
    assert [i.sop_uid for i in late.instances] == ["1.2.3.1.2"]


def test_two_threads_that_claim_get_one_job_between_them(spool):
    study_id = spool.store(received(spool)).study_id
    results: list[int | None] = []
    threads = [threading.Thread(target=lambda: results.append(spool.claim(study_id))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(r is not None for r in results) == 1


def test_many_threads_that_store_the_same_instance_keep_one(spool):
    sources = [received(spool) for _ in range(8)]
    kinds: list[StoredKind] = []
    threads = [threading.Thread(target=lambda s=s: kinds.append(spool.store(s).kind)) for s in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kinds) == [StoredKind.DUPLICATE] * 7 + [StoredKind.NEW]
    assert len(files(spool)) == 1


def test_jobs_are_listed_by_state(spool):
    job_id = spool.claim(spool.store(received(spool)).study_id)
    assert [j.id for j in spool.jobs(JobState.QUEUED)] == [job_id]
    spool.set_job_state(job_id, "quarantined", note="burned-in-text")
    assert spool.jobs("queued", "running") == []
    (job,) = spool.jobs(JobState.QUARANTINED)
    assert (job.note, len(job.instances)) == ("burned-in-text", 1)
    with pytest.raises(NotFound):
        spool.set_job_state(99, "done")
    with pytest.raises(ValueError, match="lost"):
        spool.set_job_state(job_id, "lost")
    with pytest.raises(NotFound):
        spool.job(99)


def test_removed_files_are_gone_and_removing_again_changes_nothing(spool):
    stored = spool.store(received(spool))
    job_id = spool.claim(stored.study_id)
    assert spool.remove_job_files(job_id) == 1
    assert spool.remove_job_files(job_id) == 0
    assert files(spool) == []
    assert spool.job(job_id).instances == ()
    assert spool.store(received(spool)).kind is StoredKind.NEW  # sent again after its job: a new arrival


def test_a_removal_cut_off_by_a_kill_is_finished_by_the_sweep(spool):
    stored = spool.store(received(spool))
    spool.claim(stored.study_id)
    execute(spool, "UPDATE instances SET removing = 1")  # where a kill leaves it, after the first commit
    again = spool.store(received(spool))
    assert again.kind is StoredKind.NEW
    swept = spool.sweep()
    assert swept.finished_removals == 1
    assert len(files(spool)) == 1
    assert [s.images for s in spool.pending()] == [1]


def test_the_sweep_deletes_files_without_a_row_and_reports_rows_without_a_file(spool):
    kept = spool.store(received(spool))
    lost = spool.store(received(spool, b"lost", sop_uid="1.2.3.1.2"))
    orphan = received(spool, b"never acknowledged").path
    (instance,) = [i for i in spool.job(spool.claim(kept.study_id)).instances if i.id == lost.instance_id]
    instance.path.unlink()
    assert spool.sweep(older_than_s=3600).orphan_files == 0  # it may be being received
    swept = spool.sweep()
    assert (swept.orphan_files, swept.missing) == (1, (lost.instance_id,))
    assert not orphan.exists()
    assert len(files(spool)) == 1


def test_the_sweep_drops_reports_whose_study_never_came(spool):
    spool.store(received(spool, b"sr", sop_uid="1.2.3.9", image=False))
    waiting = spool.store(received(spool, b"sr2", study_uid="1.2.4", sop_uid="1.2.4.9", image=False))
    spool.store(received(spool, study_uid="1.2.4", sop_uid="1.2.4.1"))
    assert spool.sweep().stray_instances == 0  # both are fresh
    execute(spool, "UPDATE instances SET received = received - :age", age=STRAY_AGE_S + 1)
    assert spool.sweep().stray_instances == 1
    assert len(spool.job(spool.claim(waiting.study_id)).instances) == 2


def test_final_jobs_and_their_study_uid_are_forgotten_after_a_week(spool):
    job_id = spool.claim(spool.store(received(spool)).study_id)
    spool.set_job_state(job_id, JobState.DONE)
    execute(spool, "UPDATE jobs SET changed = changed - :age", age=JOB_KEEP_S + 1)
    execute(spool, "UPDATE studies SET created = created - :age", age=JOB_KEEP_S + 1)
    assert spool.sweep().old_jobs == 0  # its originals are still here
    spool.remove_job_files(job_id)
    assert spool.sweep().old_jobs == 1
    with spool._engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM studies")).scalar_one() == 0


def test_less_room_than_the_reserve_is_a_full_disk(tmp_path):
    spool = Spool.open(tmp_path / "identified", reserve=2**60)
    incoming = spool.incoming(b"meta")
    incoming.write(b"data")
    assert isinstance(incoming.error, StorageFull)
    assert files(spool) == []
    spool.close()


def test_a_full_database_keeps_neither_row_nor_file(spool):
    source = received(spool)
    connection = spool._rows._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL on the next new page
    with pytest.raises(StorageFull) as error:
        for number in range(5000):
            spool.store(source if not number else received(spool, str(number).encode(), sop_uid=f"1.2.{number}" * 8))
    assert error.value.dimse_status == 0xA700
    assert "1.2." not in str(error.value)
    with spool._engine.connect() as connection:
        rows = connection.execute(text("SELECT count(*) FROM instances")).scalar_one()
    assert rows == len(files(spool))


def test_a_commit_that_fails_does_not_keep_other_receivers_waiting(spool):
    source = received(spool)
    spool._rows._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(DicomnodeError):
        spool.store(source)
    second = Spool.open(spool.folder)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(second.store, received(second)).result(10).kind is StoredKind.NEW
    second.close()


def test_a_spool_opened_again_has_everything(spool):
    spool.store(received(spool))
    second = Spool.open(spool.folder)
    assert len(second.pending()) == 1
    assert second.sweep().orphan_files == 0
    second.close()


def test_a_receiver_begins_by_deleting_what_its_killed_predecessor_was_receiving(tmp_path):
    folder = tmp_path / "identified"
    killed, other = Spool.open(folder, owner="receiver-1"), Spool.open(folder, owner="receiver-10")
    acknowledged = received(killed)
    killed.store(acknowledged)
    received(killed, b"half of a data set", sop_uid="1.2.3.1.2")  # no row, so no answer
    in_work = received(other, b"of a receiver that is there", sop_uid="1.2.3.1.3")
    again = Spool.open(folder, owner="receiver-1")
    assert again.sweep_own() == 1
    assert files(again) == sorted([acknowledged.path, in_work.path])
    assert Spool.open(folder).sweep_own() == 0  # who receives nothing owns nothing
    assert len(files(again)) == 2


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    if os.geteuid() == 0:
        (tmp_path / "identified").write_text("a file where the folder should be")
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(DicomnodeError, match="data_dir"):
        Spool.open(tmp_path / "identified")

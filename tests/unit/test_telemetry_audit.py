"""The audit trail keeps each entry, shows tampering, and stops the act where it cannot be written."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from dicomnode.errors import UsageError
from dicomnode.telemetry.audit import AuditError, AuditEvent, AuditTrail


@pytest.fixture
def trail(tmp_path):
    return AuditTrail(tmp_path / "audit")


def the_file(trail):
    (file,) = trail.folder.glob("*.jsonl")
    return file


def test_entries_come_back_in_order_with_what_was_said(trail):
    trail.record(AuditEvent.REIDENTIFIED, actor="alice", pseudonym="DN-7Q2X8M4K", reason="clinical question")
    trail.record(AuditEvent.RESULT_RESENT, actor="bob", row=7)
    first, second = trail.entries()
    assert first["event"] == "reidentified"
    assert (first["actor"], first["pseudonym"], first["reason"]) == ("alice", "DN-7Q2X8M4K", "clinical question")
    assert (second["event"], second["row"]) == ("result-resent", 7)
    assert "pseudonym" not in second
    assert first["time"] <= second["time"]
    assert trail.verify() == 2


def test_only_the_owner_can_read_it(trail):
    trail.record(AuditEvent.USER_ADDED, actor="alice")
    assert stat.S_IMODE(os.stat(the_file(trail)).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(trail.folder).st_mode) == 0o700


def test_each_entry_is_synced_before_the_call_returns(trail, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    trail.record(AuditEvent.CASE_VIEWED, actor="alice")
    assert the_file(trail).stat().st_size in synced


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: [lines[0].replace(b"alice", b"mallory"), *lines[1:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
    ],
)
def test_a_changed_or_missing_line_shows(trail, tamper):
    for _ in range(4):
        trail.record(AuditEvent.CASE_VIEWED, actor="alice")
    file = the_file(trail)
    file.write_bytes(b"\n".join(tamper(file.read_bytes().splitlines())) + b"\n")
    with pytest.raises(AuditError, match="changed or taken out"):
        trail.verify()


def test_a_line_torn_by_a_power_cut_does_not_stop_the_trail(trail):
    trail.record(AuditEvent.CASE_VIEWED, actor="alice")
    with the_file(trail).open("ab") as file:
        file.write(b'{"time":"2024-01-0')
    trail.record(AuditEvent.CASE_VIEWED, actor="bob")
    assert [e["actor"] for e in trail.entries()] == ["alice", "bob"]
    assert trail.verify() == 2


def _record_many(folder: Path, actor: str) -> None:
    for _ in range(20):
        AuditTrail(folder).record(AuditEvent.CASE_VIEWED, actor=actor)


def test_processes_that_write_at_once_keep_one_chain(trail):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_record_many, args=(trail.folder, name)) for name in ("alice", "bob")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert trail.verify() == 40


@pytest.mark.parametrize(
    "bad",
    [{"actor": ""}, {"actor": "a\nb"}, {"actor": "a", "pseudonym": "DOE^JANE"}, {"actor": "a", "reason": "x" * 201}],
)
def test_an_entry_that_cannot_be_written_is_refused(trail, bad):
    with pytest.raises(UsageError):
        trail.record(AuditEvent.REIDENTIFIED, **bad)
    assert not trail.folder.exists()


def test_a_reason_cannot_forge_a_line(trail):
    trail.record(AuditEvent.REIDENTIFIED, actor="alice", reason='x"}\n{"event":"reidentified","actor":"bob"}')
    assert len(the_file(trail).read_bytes().splitlines()) == 1
    assert [e["actor"] for e in trail.entries()] == ["alice"]


def test_a_folder_that_cannot_be_written_is_an_error_that_says_nothing_was_done(tmp_path):
    (tmp_path / "audit").write_text("in the way")
    with pytest.raises(AuditError, match="nothing was done"):
        AuditTrail(tmp_path / "audit").record(AuditEvent.CASE_VIEWED, actor="alice")


def test_every_line_is_json_with_the_hash_of_the_line_before(trail):
    trail.record(AuditEvent.CASE_VIEWED, actor="alice")
    assert json.loads(the_file(trail).read_bytes())["previous"] == "0" * 64

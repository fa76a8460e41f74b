"""The audit trail: who did what with whose (pseudonymous) data. Append-only JSON lines, on disk before the act goes on.

One file a month in ``data_dir/audit/``. Each line holds the SHA-256 of the line before it, so a line that was changed
or taken out shows in ``verify``. Never holds an original identifier; the reason that a person typed is kept as typed.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from dicomnode.durable import sync_folder
from dicomnode.errors import DicomnodeError, UsageError


class AuditEvent(StrEnum):
    """What is recorded; ``EVENTS`` says what each means."""

    REIDENTIFIED = "reidentified"
    CASE_EXCLUDED = "case-excluded"
    CASE_INCLUDED = "case-included"
    CASE_REMOVED = "case-removed"
    QUARANTINE_RELEASED = "quarantine-released"
    QUARANTINE_DISCARDED = "quarantine-discarded"
    QUARANTINE_IDENTIFIED = "quarantine-identified"
    QUARANTINE_PICTURED = "quarantine-pictured"
    RESULT_RESENT = "result-resent"
    ANSWER_VIEWED = "answer-viewed"
    CASE_VIEWED = "case-viewed"
    QUERY_ASKED = "query-asked"
    USER_ADDED = "user-added"
    USER_DISABLED = "user-disabled"
    USERS_LISTED = "users-listed"
    PASSWORD_CHANGED = "password-changed"  # noqa: S105 - the name of an event
    SIGNED_IN = "signed-in"
    SIGN_IN_FAILED = "sign-in-failed"
    SIGNED_OUT = "signed-out"
    LINK_OPENED = "link-opened"
    VAULT_ROTATED = "vault-rotated"
    PATIENTS_MERGED = "patients-merged"
    MODEL_ACTIVATED = "model-activated"
    MODEL_DISCARDED = "model-discarded"
    NOT_DONE = "not-done"


# The registry. docs/metrics.md lists each event; a test fails where one lacks its documentation.
EVENTS: dict[AuditEvent, str] = {
    AuditEvent.REIDENTIFIED: "somebody asked whom a pseudonym stands for, found or not",
    AuditEvent.CASE_EXCLUDED: "somebody had a patient excluded from answers (written before it is done)",
    AuditEvent.CASE_INCLUDED: "somebody had an excluded patient taken back into answers (written before it is done)",
    AuditEvent.CASE_REMOVED: "somebody had a study or patient removed (written before it is done)",
    AuditEvent.QUARANTINE_RELEASED: "an item of the quarantine was released; `detail`: masks and statements",
    AuditEvent.QUARANTINE_DISCARDED: "an item of the quarantine was deleted",
    AuditEvent.QUARANTINE_IDENTIFIED: "the original UIDs of an item of the quarantine were shown",
    AuditEvent.QUARANTINE_PICTURED: "a picture of an item of the quarantine was written to a file",
    AuditEvent.RESULT_RESENT: "a result was sent again by hand",
    AuditEvent.ANSWER_VIEWED: "the page of an answer was opened",
    AuditEvent.CASE_VIEWED: "images of a case were opened",
    AuditEvent.QUERY_ASKED: "images were uploaded in the browser to be compared",
    AuditEvent.USER_ADDED: "a user was added",
    AuditEvent.USER_DISABLED: "a user was disabled",
    AuditEvent.USERS_LISTED: "the users were listed",
    AuditEvent.PASSWORD_CHANGED: "a user was given another password",
    AuditEvent.SIGNED_IN: "a user signed in",
    AuditEvent.SIGN_IN_FAILED: "a sign-in was refused",
    AuditEvent.SIGNED_OUT: "a user signed out",
    AuditEvent.LINK_OPENED: "an open link was confirmed by its holder",
    AuditEvent.VAULT_ROTATED: "somebody had the key of the pseudonym vault changed (written before it is done)",
    AuditEvent.PATIENTS_MERGED: "somebody had a second Patient ID joined to a patient (written before it is done)",
    AuditEvent.MODEL_ACTIVATED: "another model pack was put to work",
    AuditEvent.MODEL_DISCARDED: "vectors of a model that is not in force were deleted",
    AuditEvent.NOT_DONE: "a command ended with an error after what it recorded last; `detail`: that event, the error",
}

FIRST = "0" * 64  # what the first line of a file has as the hash of the line before it
MAX_REASON = 200
MAX_DETAIL = 2000  # so that a line is far shorter than what ``_last_line`` reads
_ACTOR = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
_PSEUDONYM = re.compile(r"[A-Za-z0-9.-]{0,64}")


class AuditError(DicomnodeError):
    """The audit trail cannot be written, or was changed."""

    code = "audit"


class AuditTrail:
    """Writes and reads the trail. Several processes may write at once.

    Parameters
    ----------
    folder : Path
        ``data_dir/audit``; made with mode 0700 if it is not there.

    Attributes
    ----------
    last : AuditEvent or None
        What was recorded last through this object.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last: AuditEvent | None = None

    def record(
        self,
        event: AuditEvent,
        *,
        actor: str,
        pseudonym: str = "",
        row: int | None = None,
        reason: str = "",
        detail: str = "",
    ) -> None:
        """Append one line and sync it. Call it before the act: what cannot be recorded must not happen.

        Parameters
        ----------
        event : AuditEvent
            What is done.
        actor : str
            Who does it: the signed-in user, or the account that ran the command; up to 64 characters.
        pseudonym : str
            The patient's pseudonym or a pseudonymous UID, where it is about one.
        row : int, optional
            Row of the quarantine item, result or answer it is about.
        reason : str
            Why, as typed (``reidentify --reason``); up to 200 characters.
        detail : str
            What exactly, where the event does not say it (rectangles, numbers of objects); up to 2000 characters.

        Raises
        ------
        UsageError
            An actor, pseudonym or reason that cannot be written.
        AuditError
            The line could not be put on disk.
        """
        if len(detail) > MAX_DETAIL:
            raise UsageError(f"what is recorded in the audit trail would be longer than {MAX_DETAIL} characters")
        if not _ACTOR.fullmatch(actor) or not _PSEUDONYM.fullmatch(pseudonym) or len(reason) > MAX_REASON:
            raise UsageError(f"an audit entry needs an actor, and a reason of at most {MAX_REASON} characters")
        now = datetime.datetime.now(datetime.UTC)
        entry: dict[str, Any] = {"time": now.isoformat(timespec="milliseconds"), "event": event.value, "actor": actor}
        entry |= {
            k: v
            for k, v in (("pseudonym", pseudonym), ("row", row), ("reason", reason), ("detail", detail))
            if v not in ("", None)
        }
        try:
            self._append(self.folder / f"{now:%Y-%m}.jsonl", entry)
        except OSError as exc:
            raise AuditError(
                f"the audit trail cannot be written: {exc.strerror}; nothing was done", place=str(self.folder)
            ) from exc
        self.last = event

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, oldest first, without their hashes. A line cut off by a power cut is skipped."""
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_bytes().splitlines():
                entry = _parse(line)
                if entry is not None:
                    entry.pop("previous", None)
                    yield entry

    def verify(self) -> int:
        """Check every line against the hash in the next; returns the number of entries.

        Raises
        ------
        AuditError
            Names the file and the line after which the chain is broken.
        """
        count = 0
        for file in sorted(self.folder.glob("*.jsonl")):
            before = FIRST
            for number, line in enumerate(file.read_bytes().splitlines(), start=1):
                entry = _parse(line)
                if entry is not None:
                    if entry.get("previous") != before:
                        raise AuditError("a line was changed or taken out", place=f"{file.name}:{number - 1}")
                    count += 1
                before = hashlib.sha256(line).hexdigest()
        return count

    def _append(self, file: Path, entry: dict[str, Any]) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = not file.exists()
        fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            size = os.fstat(fd).st_size
            last, whole = _last_line(fd, size)
            entry["previous"] = FIRST if not size else hashlib.sha256(last).hexdigest()
            line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()
            os.write(fd, (b"" if whole else b"\n") + line + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        if new:
            sync_folder(self.folder)


def _last_line(fd: int, size: int) -> tuple[bytes, bool]:
    """The last line of a file and whether it is whole; lines are far shorter than what is read."""
    tail = os.pread(fd, 8192, max(0, size - 8192))
    whole = tail.endswith(b"\n") or not tail
    return tail.removesuffix(b"\n").rpartition(b"\n")[2], whole


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def as_markdown() -> str:
    """The table of events in docs/metrics.md."""
    lines = ["| event | recorded when |", "|---|---|"]
    lines += [f"| `{event.value}` | {meaning} |" for event, meaning in EVENTS.items()]
    return "\n".join(lines) + "\n"

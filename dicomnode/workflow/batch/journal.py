"""The journal of ``dicomnode deid``: what became of each input, on disk as it comes, so that a run can go on.

It lies in the folder of the de-identified files and identifies nobody: inputs are named by keyed hashes, everything
else is pseudonymous. What identifies, the paths of a run's inputs, is a temporary table that SQLite keeps in an
unlinked file: it is gone with the process, even by SIGKILL. Memory does not grow with the number of files. Rows are
committed some at a time; a file that was written and not committed is written again, with the same bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dicomnode.durable import sync_folder
from dicomnode.errors import Busy, DicomnodeError, StorageFull, UsageError
from dicomnode.workflow.batch.inputs import Input, printable

FOLDER = ".dicomnode-deid"
FORMAT = "1"
OK, QUARANTINED, FAILED, SKIPPED = "ok", "quarantined", "failed", "skipped"
OTHER = "{other}"  # in a reason: stands for another input, which the report names
COMMIT_FILES, COMMIT_S = 64, 2.0  # what a kill may cost
_PAGE = 256  # rows read at a time
_ID_DIGITS = 16  # hexadecimal digits of a keyed hash: 64 bits tell any number of files apart

_SCHEMA = """
CREATE TABLE IF NOT EXISTS header (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pattern (id INTEGER PRIMARY KEY, changes TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS file (
    id TEXT PRIMARY KEY, stamp TEXT NOT NULL, status TEXT NOT NULL, output TEXT, reason TEXT NOT NULL, other TEXT,
    pattern INTEGER REFERENCES pattern (id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (instance TEXT PRIMARY KEY, sha256 TEXT NOT NULL, id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS face (id TEXT PRIMARY KEY, word TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pixels (id TEXT PRIMARY KEY, word TEXT NOT NULL) WITHOUT ROWID;
CREATE TEMP TABLE input (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, stamp TEXT NOT NULL, root BLOB NOT NULL, path BLOB NOT NULL,
    member INTEGER NOT NULL, name BLOB NOT NULL, reason TEXT NOT NULL, problem TEXT NOT NULL
);
"""
_DONE = "file.id = input.id AND file.stamp = input.stamp AND file.status <> 'failed'"

KeyedHash = Callable[[str, str], str]  # (domain, value) -> hexadecimal digits: Vault.keyed_hash


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one input: the row of a report. ``input_id`` and ``other`` are keyed hashes.

    ``shown`` is its path below ``root``; both may hold names of patients.
    """

    input_id: str
    root: str
    shown: str
    status: str
    output: str | None
    reason: str
    other: str | None


@dataclass(frozen=True, slots=True)
class Kept:
    """The first object of a SOP Instance UID: SHA-256 of what was written, and the input that it came from."""

    sha256: str
    input_id: str


class Journal:
    """An open journal, held by one process; with ``out`` None it is temporary (a dry run). Close it.

    Parameters
    ----------
    out : Path or None
        The folder of the de-identified files; made when missing.
    header : mapping
        What must be the same in every run into the folder: name -> value. Values identify nobody.
    keyed_hash : function
        ``Vault.keyed_hash``.

    Raises
    ------
    UsageError
        The folder was begun with another header.
    Busy
        Another process writes to the folder.
    StorageFull, DicomnodeError
        The journal cannot be written.
    """

    def __init__(self, out: Path | None, header: Mapping[str, str], keyed_hash: KeyedHash) -> None:
        self.out = out
        self._hash = keyed_hash
        self._lock: IO[str] | None = None
        self._waiting, self._committed = 0, time.monotonic()
        self._touched: set[Path] = set()
        if out is not None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _locked(self.folder / "lock")
        try:
            with _readable(self.place):
                self._db = sqlite3.connect(self.folder / "journal.sqlite3" if out is not None else "")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_SCHEMA)
            self._check({"format": FORMAT, **header})
        except BaseException:
            self.close()
            raise

    @property
    def folder(self) -> Path:
        """The journal's own folder below ``out``; files are staged there too."""
        assert self.out is not None
        return self.out / FOLDER

    @property
    def place(self) -> str:
        return str(self.out) if self.out is not None else "journal"

    def close(self) -> None:
        """Commit and let go; may be called twice."""
        try:
            if hasattr(self, "_db"):
                self.commit()
                self._db.close()
                del self._db
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _check(self, header: Mapping[str, str]) -> None:
        with _readable(self.place):
            before = dict(self._db.execute("SELECT name, value FROM header"))
            if not before:
                self._db.executemany("INSERT INTO header VALUES (?, ?)", header.items())
                self._db.commit()
                return
        for name, value in header.items():
            if before.get(name) != value:
                line = f"the folder was begun with another {name}; files of both must not mix"
                raise UsageError(line, place=self.place, advice="choose an empty --out")

    def input_id(self, found: Input) -> str:
        """Names an input without telling what it is; the same in every run with this vault."""
        return self._hash("deid input", found.place.hex())[:_ID_DIGITS]

    def begin(self, inputs: Iterable[Input]) -> int:
        """Take a run's inputs; one that is found twice counts once. Returns their number."""
        rows = (
            (
                self.input_id(i),
                self._hash("deid stamp", f"{i.place.hex()} {i.stamp}")[:_ID_DIGITS],
                os.fsencode(i.root),
                os.fsencode(i.path),
                i.member,
                i.name.encode("utf-8", "surrogatepass"),
                i.reason,
                i.problem,
            )
            for i in inputs
        )
        with _readable(self.place):
            self._db.executemany(
                "INSERT OR IGNORE INTO input (id, stamp, root, path, member, name, reason, problem) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._db.commit()
            return self._count("SELECT count(*) FROM input")

    def finished(self) -> int:
        """How many of the run's inputs an earlier run has finished. What failed is tried again."""
        with _readable(self.place):
            return self._count(f"SELECT count(*) FROM input JOIN file ON {_DONE}")  # noqa: S608 (constant)

    def pending(self) -> Iterator[Input]:
        """Inputs that nothing has become of yet, in their order."""
        after = 0
        query = (
            "SELECT seq, stamp, root, path, member, name, reason, problem FROM input "  # noqa: S608 (constants)
            f"WHERE seq > ? AND NOT EXISTS (SELECT 1 FROM file WHERE {_DONE}) ORDER BY seq LIMIT {_PAGE}"
        )
        while rows := self._fetch(query, (after,)):
            for after, stamp, root, path, member, name, reason, problem in rows:  # noqa: B007 (the last counts)
                yield Input(
                    Path(os.fsdecode(root)),
                    Path(os.fsdecode(path)),
                    stamp,
                    member,
                    name.decode("utf-8", "surrogatepass"),
                    reason,
                    problem,
                )

    def kept(self, instance: str) -> Kept | None:
        """The first object of a pseudonymous SOP Instance UID."""
        rows = self._fetch("SELECT sha256, id FROM kept WHERE instance = ?", (instance,))
        return Kept(*rows[0]) if rows else None

    def keep(self, instance: str, kept: Kept) -> None:
        """Remember the first object of a pseudonymous SOP Instance UID."""
        with _readable(self.place):
            self._db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (instance, kept.sha256, kept.input_id))

    def record(
        self,
        found: Input,
        status: str,
        reason: str = "",
        *,
        output: str | None = None,
        other: str | None = None,
        changes: Mapping[str, Mapping[str, int]] | None = None,
        face: str = "",
        pixels: str = "",
    ) -> None:
        """Write down what became of an input. ``output``: path below ``out``; ``other``: the input of ``OTHER``.

        ``face``: a word of ``deid.faces.Face`` where one may be recognised; ``pixels``: one of ``deid.result.PIXELS``.
        """
        with _readable(self.place):
            pattern = None
            if changes:
                text = json.dumps(changes, sort_keys=True)
                self._db.execute("INSERT OR IGNORE INTO pattern (changes) VALUES (?)", (text,))
                pattern = self._count("SELECT id FROM pattern WHERE changes = ?", (text,))
            # The stamp of ``pending`` is the keyed one.
            self._db.execute(
                "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self.input_id(found), found.stamp, status, output, reason, other, pattern),
            )
            for table, word in (("face", face), ("pixels", pixels)):
                self._db.execute(f"DELETE FROM {table} WHERE id = ?", (self.input_id(found),))  # noqa: S608 (ours)
                if word:
                    self._db.execute(f"INSERT INTO {table} VALUES (?, ?)", (self.input_id(found), word))  # noqa: S608
        self._waiting += 1
        if self._waiting >= COMMIT_FILES or time.monotonic() - self._committed > COMMIT_S:
            self.commit()

    def written(self, target: Path) -> None:
        """A file has its name: its folders are synced before its row is committed."""
        assert self.out is not None
        while target != self.out:
            target = target.parent
            self._touched.add(target)

    def commit(self) -> None:
        """Put on disk what was recorded."""
        for folder in self._touched:
            sync_folder(folder)
        self._touched.clear()
        with _readable(self.place):
            self._db.commit()
        self._waiting, self._committed = 0, time.monotonic()

    def rows(self) -> Iterator[Row]:
        """What became of the run's inputs, in their order; skipped ones are left out."""
        after = 0
        query = (
            "SELECT input.seq, input.id, root, path, member, input.name, status, output, file.reason, other FROM input "  # noqa: S608 (constant)
            "JOIN file ON file.id = input.id WHERE input.seq > ? AND status <> 'skipped' "
            f"ORDER BY input.seq LIMIT {_PAGE}"
        )
        while rows := self._fetch(query, (after,)):
            for after, input_id, root, path, member, name, status, output, reason, other in rows:  # noqa: B007
                found = _shown(root, path, member, name)
                yield Row(input_id, printable(os.fsdecode(root)), found, status, output, reason, other)

    def shown(self, input_id: str) -> str | None:
        """The path of one of this run's inputs below its root; None where it is not one."""
        rows = self._fetch("SELECT root, path, member, name FROM input WHERE id = ?", (input_id,))
        return _shown(*rows[0]) if rows else None

    def counts(self) -> dict[str, int]:
        """Status -> inputs of this run; ``duplicates`` are counted apart from ``ok``, which they are too."""
        query = (
            "SELECT CASE WHEN status = 'ok' AND other IS NOT NULL THEN 'duplicates' ELSE status END AS what, count(*) "
            "FROM input JOIN file ON file.id = input.id GROUP BY what"
        )
        found = dict(self._fetch(query))
        return {name: int(found.get(name, 0)) for name in (OK, QUARANTINED, FAILED, "duplicates", SKIPPED)}

    def reasons(self) -> dict[str, int]:
        """Reason of quarantine -> inputs of this run."""
        query = (
            "SELECT substr(file.reason, 1, instr(file.reason, ':') - 1) AS word, count(*) AS n FROM input "
            "JOIN file ON file.id = input.id WHERE status = 'quarantined' GROUP BY word ORDER BY n DESC, word"
        )
        return dict(self._fetch(query))

    def faces(self) -> dict[str, int]:
        """How sure it is that a face may be recognised -> files written for this run's inputs."""
        return self._words("face")

    def pixels(self) -> dict[str, int]:
        """What became of the pixels -> files written for this run's inputs."""
        return self._words("pixels")

    def _words(self, table: str) -> dict[str, int]:
        query = (
            f"SELECT word, count(*) FROM input JOIN file ON file.id = input.id "  # noqa: S608 (a name of ours)
            f"JOIN {table} ON {table}.id = input.id "
            "WHERE status = 'ok' AND file.pattern IS NOT NULL GROUP BY word ORDER BY word"
        )
        return dict(self._fetch(query))

    def changes(self) -> dict[str, Counter[str]]:
        """Keyword -> what was done -> number of elements, over the files that were written for this run's inputs."""
        query = (
            "SELECT pattern.changes, count(*) FROM input JOIN file ON file.id = input.id "
            "JOIN pattern ON pattern.id = file.pattern GROUP BY pattern.id"
        )
        total: dict[str, Counter[str]] = {}
        with _readable(self.place):
            for text, files in self._db.execute(query):
                for keyword, words in json.loads(text).items():
                    total.setdefault(keyword, Counter()).update({word: n * files for word, n in words.items()})
        return dict(sorted(total.items()))

    def _fetch(self, query: str, values: tuple[object, ...] = ()) -> list[Any]:
        with _readable(self.place):
            return self._db.execute(query, values).fetchall()

    def _count(self, query: str, values: tuple[object, ...] = ()) -> int:
        return int(self._db.execute(query, values).fetchone()[0])


def _shown(root: bytes, path: bytes, member: int, name: bytes) -> str:
    decoded = name.decode("utf-8", "surrogatepass")
    return Input(Path(os.fsdecode(root)), Path(os.fsdecode(path)), member=member, name=decoded).shown


def _locked(path: Path) -> IO[str]:
    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise Busy("another run writes to this folder", place=str(path.parent.parent), advice="wait for it") from None
    return handle


@contextlib.contextmanager
def _readable(place: str) -> Iterator[None]:
    """Faults of the database as the node's own, without what SQLite says of values."""
    try:
        yield
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorname", "") == "SQLITE_FULL":
            raise StorageFull("the disk is full", place=place, advice="free some space, then run it again") from None
        line = f"the journal of the folder cannot be used ({type(exc).__name__})"
        raise DicomnodeError(line, place=place, advice="choose an empty --out") from None

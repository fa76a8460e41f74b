"""The pseudonym vault: which patient has which pseudonym, encrypted, and the keys that everything hangs on.

One master key gives a key for each use (``vault_key``): UIDs, date shifts, keyed hashes, finding a patient, encrypting
patient ids. Pseudonyms are random; without the vault's file nobody gets from one to a patient. ``rekey`` begins a new
epoch: patients are sealed and found by the new key, and the keys of the past stay, sealed, for the UIDs and dates that
were made with them (docs/decisions/0006-key-rotation.md). Two ids of one patient are joined by ``merge``.

It never writes a master key into the database, never stores a patient id in clear, and never stores anything for a
look-up that may not create. Sources: PS3.15 E.1.1 (no unkeyed hashes), E.3.6 (one shift a patient).
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import fcntl
import hmac
import json
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dicomnode.deid.pseudonym import Subject, keyed_digest, pseudo_uid
from dicomnode.deid.vault_key import KEY_BYTES, Keys
from dicomnode.deid.vault_key import KeySource as KeySource  # callers need no other module
from dicomnode.deid.vault_key import PatientKey as PatientKey
from dicomnode.domain import OriginalUid, Pseudonym, PseudoUid
from dicomnode.errors import NotFound, UsageError, VaultError

MAX_DAYS_BACK = 3650  # dates move 1 to 3650 days back: far enough to hide a birthday, never into the future
PSEUDONYM_PREFIX = "DN-"
_PSEUDONYM_BYTES = 10  # 16 base32 characters hold 80 bits; ten of them are shown
_PSEUDONYM_CHARACTERS = 10
PSEUDONYM = re.compile(rf"{PSEUDONYM_PREFIX}[A-Z2-7]{{{_PSEUDONYM_CHARACTERS}}}")
_NONCE_BYTES = 12  # AES-GCM, NIST SP 800-38D
_BUSY_TIMEOUT_S = 30.0
_ATTEMPTS = 5  # a random pseudonym of 50 bits that is taken five times running is no accident
_CHECK = b"dicomnode vault 1"

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS vault (
    id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL, key_check BLOB NOT NULL, created TEXT NOT NULL,
    unswept INTEGER NOT NULL DEFAULT 0)""",  # unswept: the file may still hold bytes of rows that are gone
    """CREATE TABLE IF NOT EXISTS patient (
    lookup BLOB PRIMARY KEY, pseudonym TEXT NOT NULL UNIQUE, sealed BLOB NOT NULL, created TEXT NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 1, merged_into TEXT)""",  # epoch: whose date key; merged_into: a pseudonym
    """CREATE TABLE IF NOT EXISTS past_epoch (number INTEGER PRIMARY KEY, sealed BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS reidentification (
    id INTEGER PRIMARY KEY, pseudonym TEXT NOT NULL, reason TEXT NOT NULL, who TEXT NOT NULL, found INTEGER NOT NULL,
    time TEXT NOT NULL)""",
)
_COLUMNS = (  # of vaults made before there were rotation and merging
    ("vault", "unswept", "INTEGER NOT NULL DEFAULT 0"),
    ("patient", "epoch", "INTEGER NOT NULL DEFAULT 1"),
    ("patient", "merged_into", "TEXT"),
)


@dataclass(frozen=True, slots=True)
class VaultStatus:
    """Numbers of the vault for ``vault status``; ``merged``: ids that are another one's patient."""

    patients: int
    merged: int
    reidentifications: int
    epoch: int
    key_source: str


@dataclass(frozen=True, slots=True)
class Move:
    """A pseudonym that became another one's: by how many days the dates of its objects must move to fit."""

    former: Pseudonym
    days: int


@dataclass(frozen=True, slots=True)
class Merged:
    """The one pseudonym of ids that were merged, and those that it replaces; ``already``: nothing was changed."""

    pseudonym: Pseudonym
    moves: tuple[Move, ...]
    already: bool


@dataclass(frozen=True, slots=True)
class _Row:
    lookup: bytes
    pseudonym: Pseudonym
    sealed: bytes
    epoch: int
    merged_into: Pseudonym | None


def both_or_neither(path: Path, key: KeySource) -> bool:
    """Whether vault and key are still to be made.

    Raises
    ------
    VaultError
        One of the two is there without the other.
    """
    created = not path.exists()
    if not created and not key.exists():
        line = "the vault is there but its key is not"
        raise VaultError(line, place=str(key.path), advice="restore the key; without it nothing opens")
    if created and key.path is not None and key.exists():
        line, advice = (
            "a key is there but its vault is not",
            f"restore the vault, or move {key.path} away to start anew",
        )
        raise VaultError(line, place=str(path), advice=advice)
    return created


class Vault:
    """An open vault; safe to use from several processes at once, each with its own. Open one with ``Vault.open``."""

    def __init__(self, path: Path, master: bytes, key_source: str, *, created: bool) -> None:
        self._path = path
        self._key_source = key_source
        self.created = created  # by this call to open: the operator is told where
        keys = Keys.of(master)
        self._lookup_key = keys.lookup
        self._cipher = AESGCM(keys.patient)
        self._check = keyed_digest(keys.hash, "key check", _CHECK.decode())
        self._own = keys
        self._use(1, {1: keys})

    def _use(self, epoch: int, epochs: dict[int, Keys]) -> None:
        """UIDs and keyed hashes are those of the first epoch for good, dates those of each patient's own."""
        self.epoch = epoch
        self._epochs = epochs
        self.uid_key, self._hash_key = epochs[1].uid, epochs[1].hash

    @classmethod
    def open(cls, path: Path, key: KeySource) -> Vault:
        """Open the vault at ``path``; make vault and key, mode 0600, where neither is there.

        A rotation that was killed is finished, or undone, by what the vault itself says.

        Raises
        ------
        VaultError
            One of the two is there without the other, or the key is not this vault's.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(path):
            created = both_or_neither(path, key)
            if created and key.path is not None:
                key.create()
            return cls.opened(path, key, created=created)

    @classmethod
    def opened(cls, path: Path, key: KeySource, *, created: bool = False) -> Vault:
        """``open`` for a caller that holds the lock (``locked``) and knows that the vault is there."""
        vault = cls(path, key.read(), key.name, created=created)
        staged = key.staged()
        # killed before the new key took its place, or before it was used
        if staged is not None and not created and not vault.fits():
            newer = cls(path, staged, key.name, created=False)
            if newer.fits():
                key.install()
                vault = newer
        vault.prepare()
        key.discard_staged()
        return vault

    def fits(self) -> bool:
        """Whether the key is the one that the file is under."""
        with self._connection() as db:
            return hmac.compare_digest(db.execute("SELECT key_check FROM vault").fetchone()[0], self._check)

    def prepare(self) -> None:
        """Make or complete the tables, check the key, read the keys of the past. For ``opened`` and rotation.

        Raises
        ------
        VaultError
            The key is not this vault's.
        """
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with self._connection("BEGIN IMMEDIATE") as db:
            for statement in _SCHEMA:
                db.execute(statement)
            for table, column, kind in _COLUMNS:
                if column not in {row[1] for row in db.execute(f"PRAGMA table_info({table})")}:
                    db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
            new = "INSERT OR IGNORE INTO vault (id, epoch, key_check, created) VALUES (1, 1, ?, ?)"
            db.execute(new, (self._check, _now()))
            epoch, stored, unswept = db.execute("SELECT epoch, key_check, unswept FROM vault").fetchone()
            past = db.execute("SELECT number, sealed FROM past_epoch").fetchall()
        if not hmac.compare_digest(stored, self._check):
            raise VaultError(
                "the key is not the one of this vault",
                place=str(self._path),
                advice="restore the right key; after 'dicomnode vault rotate' that is the new one",
            )
        self._use(epoch, {number: self._unseal_epoch(number, sealed) for number, sealed in past} | {epoch: self._own})
        if unswept:
            self._sweep()

    @contextlib.contextmanager
    def _connection(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own: processes and threads never share one."""
        with self._errors(), contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA secure_delete=ON")
            with db:
                db.execute(begin)
                yield db

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            kind = type(error).__name__
            raise VaultError(f"the vault cannot be read or written ({kind})", place=str(self._path)) from None

    @contextlib.contextmanager
    def _entries(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        """A transaction over the patients; refused where another process brought the vault under a new key."""
        with self._connection(begin) as db:
            if db.execute("SELECT epoch FROM vault").fetchone()[0] != self.epoch:
                line = "the vault was brought under a new key since it was opened"
                raise VaultError(line, place=str(self._path), advice="start this program again")
            yield db

    def _entry(self, issuer: str, patient_id: str, create: bool) -> _Row | None:
        """The row of the patient behind an id: its own, or that of the id that it was merged into."""
        lookup = self._lookup(issuer, patient_id)
        for _ in range(_ATTEMPTS):
            with self._entries() as db:
                row = _root(db, _found(db, "lookup", lookup))
            if row or not create:
                return row
            with (
                contextlib.suppress(sqlite3.IntegrityError),
                self._entries("BEGIN IMMEDIATE") as db,
            ):  # somebody was faster: look again
                self._insert(db, issuer, patient_id)
        raise VaultError("no pseudonym could be stored", place=str(self._path))

    def _insert(self, db: sqlite3.Connection, issuer: str, patient_id: str) -> None:
        lookup = self._lookup(issuer, patient_id)
        values = (lookup, _random_pseudonym(), self._seal(lookup, issuer, patient_id), _now(), self.epoch)
        db.execute("INSERT INTO patient (lookup, pseudonym, sealed, created, epoch) VALUES (?, ?, ?, ?, ?)", values)

    def pseudonym_for(self, issuer: str, patient_id: str, create: bool = True) -> Pseudonym | None:
        """The patient's pseudonym; a new random one when there is none and ``create``, else None."""
        row = self._entry(issuer, patient_id, create)
        return row.pseudonym if row else None

    def subject_for(self, issuer: str, patient_id: str, create: bool = True) -> Subject:
        """Pseudonym and date shift of a patient. Unknown and not ``create``: a passing pseudonym, nothing is stored."""
        row = self._entry(issuer, patient_id, create)
        if row is None:
            return Subject(_random_pseudonym(), self._days(self.epoch, _identity(issuer, patient_id)))
        return Subject(row.pseudonym, self._days_of(row))

    def knows(self, pseudonym: Pseudonym) -> bool:
        """Whether a pseudonym is a patient's; a passing one is nobody's."""
        with self._entries() as db:
            return _found(db, "pseudonym", pseudonym) is not None

    def days(self, issuer: str, patient_id: str) -> int:
        """By how many days every date of the patient moves: -1 to -3650, always the same for one patient."""
        return self.subject_for(issuer, patient_id, create=False).days

    def _days(self, epoch: int, identity: str) -> int:
        digest = keyed_digest(self._epochs[epoch].date, "days", identity)
        return -(1 + int.from_bytes(digest[:8], "big") % MAX_DAYS_BACK)

    def _days_of(self, row: _Row) -> int:
        key = self._unseal(row.lookup, row.sealed)
        return self._days(row.epoch, _identity(key.issuer, key.patient_id))

    def uid(self, original: OriginalUid) -> PseudoUid:
        """The pseudonymous UID of an original one; see ``pseudonym.pseudo_uid``."""
        return pseudo_uid(self.uid_key, original)

    def keyed_hash(self, domain: str, value: str) -> str:
        """64 hexadecimal digits by which an identifying value can be recognised again, but not read."""
        return keyed_digest(self._hash_key, domain, value).hex()

    def status(self) -> VaultStatus:
        """How much is in the vault."""
        with self._entries() as db:
            patients = db.execute("SELECT count(*) FROM patient WHERE merged_into IS NULL").fetchone()[0]
            merged = db.execute("SELECT count(*) FROM patient WHERE merged_into IS NOT NULL").fetchone()[0]
            read = db.execute("SELECT count(*) FROM reidentification").fetchone()[0]
        return VaultStatus(patients, merged, read, self.epoch, self._key_source)

    def reidentify(self, pseudonym: str, reason: str, who: str) -> list[PatientKey]:
        """Whom a pseudonym stands for: its own id first, then those merged into it. Who asked and why is written
        down first, found or not.

        Raises
        ------
        UsageError
            No reason, or nobody, is given.
        NotFound
            The vault does not know the pseudonym.
        """
        if not reason.strip() or not who.strip():
            raise UsageError("a re-identification needs a reason and a person", advice="--reason T")
        with self._entries("BEGIN IMMEDIATE") as db:
            row = _found(db, "pseudonym", pseudonym)
            joined = "SELECT lookup, sealed FROM patient WHERE merged_into = ? ORDER BY created, pseudonym"
            others = db.execute(joined, (pseudonym,)).fetchall()
            db.execute(
                "INSERT INTO reidentification (pseudonym, reason, who, found, time) VALUES (?, ?, ?, ?, ?)",
                (pseudonym, reason, who, int(row is not None), _now()),
            )
        if row is None:
            raise NotFound("the vault does not know this pseudonym", place=pseudonym)
        return [self._unseal(row.lookup, row.sealed), *(self._unseal(*other) for other in others)]

    def merge(self, kept: PatientKey, other: PatientKey) -> Merged:
        """Make ``other`` another id of the patient ``kept``; from now on both have the pseudonym of ``kept``.

        An id that the vault does not know yet gets its entry. Called again, it changes nothing and tells the same
        moves, for a caller that was killed between the vault and the repository.

        Raises
        ------
        UsageError
            Both are the same id.
        NotFound
            The vault knows neither.
        """
        lookups = [self._lookup(one.issuer, one.patient_id) for one in (kept, other)]
        if lookups[0] == lookups[1]:
            raise UsageError("both are the same id of the same issuer", place="vault merge")
        with self._entries("BEGIN IMMEDIATE") as db:
            if not any(_found(db, "lookup", lookup) for lookup in lookups):
                raise NotFound(
                    "the vault knows neither of the two", advice="is the issuer right? dicomnode vault status"
                )
            for one, lookup in zip((kept, other), lookups, strict=True):
                if _found(db, "lookup", lookup) is None:
                    self._insert(db, one.issuer, one.patient_id)
            first, second = (_root(db, _found(db, "lookup", lookup)) for lookup in lookups)
            assert first is not None
            assert second is not None
            if first.pseudonym != second.pseudonym:
                join = "UPDATE patient SET merged_into = ? WHERE pseudonym = ? OR merged_into = ?"
                db.execute(join, (first.pseudonym, second.pseudonym, second.pseudonym))
            days = self._days_of(first)
            rows = [_Row(*row) for row in db.execute(f"{_SELECT} WHERE merged_into = ?", (first.pseudonym,))]
        moves = tuple(Move(row.pseudonym, days - self._days_of(row)) for row in rows)
        return Merged(first.pseudonym, moves, already=first.pseudonym == second.pseudonym)

    def pseudonyms_of(self, pseudonym: Pseudonym) -> list[Pseudonym]:
        """All pseudonyms of the patient behind one, that in force first; empty: the vault does not know it."""
        with self._entries() as db:
            row = _root(db, _found(db, "pseudonym", pseudonym))
            if row is None:
                return []
            joined = db.execute("SELECT pseudonym FROM patient WHERE merged_into = ?", (row.pseudonym,))
            return [row.pseudonym, *(Pseudonym(other[0]) for other in joined)]

    def keys_of(self, pseudonym: Pseudonym) -> list[PatientKey]:
        """The ids of the patient behind a pseudonym, for finding their originals in the spool; never to be shown."""
        with self._entries() as db:
            root = _root(db, _found(db, "pseudonym", pseudonym))
            name = root.pseudonym if root else pseudonym
            rows = db.execute("SELECT lookup, sealed FROM patient WHERE ? IN (pseudonym, merged_into)", (name,))
            return [self._unseal(*row) for row in rows]

    def forget(self, pseudonym: Pseudonym) -> int:
        """Delete the patient behind a pseudonym with all ids, from the file's bytes too; how many ids there were.

        That, by whom and why they were re-identified stays, without the pseudonym.
        """
        names = self.pseudonyms_of(pseudonym)
        with self._entries("BEGIN IMMEDIATE") as db:
            for name in names:
                db.execute("DELETE FROM patient WHERE pseudonym = ?", (name,))
                db.execute("UPDATE reidentification SET pseudonym = '' WHERE pseudonym = ?", (name,))
            db.execute("UPDATE vault SET unswept = 1")
        self._sweep()
        return len(names)

    def rekey(self, master: bytes) -> None:
        """Bring everything under a new master key, as a new epoch, in one transaction; this object is useless then."""
        new = Vault(self._path, master, self._key_source, created=False)
        with self._entries("BEGIN IMMEDIATE") as db:
            db.execute("DELETE FROM past_epoch")
            for number, keys in self._epochs.items():
                db.execute("INSERT INTO past_epoch VALUES (?, ?)", (number, new._seal_epoch(number, keys)))
            for lookup, sealed in db.execute("SELECT lookup, sealed FROM patient").fetchall():
                key = self._unseal(lookup, sealed)
                fresh = new._lookup(key.issuer, key.patient_id)
                values = (fresh, new._seal(fresh, key.issuer, key.patient_id), lookup)
                db.execute("UPDATE patient SET lookup = ?, sealed = ? WHERE lookup = ?", values)
            db.execute("UPDATE vault SET epoch = ?, key_check = ?, unswept = 1", (self.epoch + 1, new._check))

    def swept(self) -> bool:
        """Whether no byte of deleted or re-sealed rows is left in the file; else the next to open it tries again."""
        with self._entries() as db:
            return not db.execute("SELECT unswept FROM vault").fetchone()[0]

    def _sweep(self) -> None:
        """Write the file anew, without what deleted and re-sealed rows left. A full disk must not keep it shut."""
        with self._errors(), contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S)) as db:
            db.isolation_level = None
            db.execute("PRAGMA synchronous=FULL")
            try:
                db.execute("VACUUM")
                busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                if not busy:
                    db.execute("UPDATE vault SET unswept = 0")
            except sqlite3.OperationalError:  # no room, or somebody reads on: ``swept`` tells
                return

    def _lookup(self, issuer: str, patient_id: str) -> bytes:
        return keyed_digest(self._lookup_key, "patient", _identity(issuer, patient_id))

    def _seal(self, lookup: bytes, issuer: str, patient_id: str) -> bytes:
        return self._encrypted(_identity(issuer, patient_id).encode(), lookup)

    def _unseal(self, lookup: bytes, sealed: bytes) -> PatientKey:
        issuer, patient_id = json.loads(self._decrypted(sealed, lookup))
        return PatientKey(issuer, patient_id)

    def _seal_epoch(self, number: int, keys: Keys) -> bytes:
        return self._encrypted(keys.uid + keys.date + keys.hash, f"epoch {number}".encode())

    def _unseal_epoch(self, number: int, sealed: bytes) -> Keys:
        data = self._decrypted(sealed, f"epoch {number}".encode())
        uid, date, digest = (data[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in range(3))
        return Keys(uid, date, digest, b"", b"")  # nobody is looked up or sealed by a key of the past

    def _encrypted(self, data: bytes, bound_to: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, bound_to)

    def _decrypted(self, sealed: bytes, bound_to: bytes) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to)
        except InvalidTag:
            raise VaultError("an entry of the vault was changed", place=str(self._path)) from None


_SELECT = "SELECT lookup, pseudonym, sealed, epoch, merged_into FROM patient"


def _found(db: sqlite3.Connection, column: str, value: object) -> _Row | None:
    row = db.execute(f"{_SELECT} WHERE {column} = ?", (value,)).fetchone()
    return _Row(*row) if row else None


def _root(db: sqlite3.Connection, row: _Row | None) -> _Row | None:
    """The row that a row was merged into: one step, since ``merge`` leaves no chains."""
    return row if row is None or row.merged_into is None else _found(db, "pseudonym", row.merged_into)


def _identity(issuer: str, patient_id: str) -> str:
    """Issuer and id as one text that no other pair gives."""
    if not patient_id.strip():
        raise VaultError("a patient without an id has no entry", advice="use the study as the patient's id")
    return json.dumps([issuer.strip(), patient_id.strip()])


def _random_pseudonym() -> Pseudonym:
    characters = base64.b32encode(secrets.token_bytes(_PSEUDONYM_BYTES)).decode()[:_PSEUDONYM_CHARACTERS]
    return Pseudonym(PSEUDONYM_PREFIX + characters)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def locked(vault: Path) -> Iterator[None]:
    """One process at a time makes, opens or rotates a vault."""
    path = vault.with_name(f"{vault.name}.lock")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

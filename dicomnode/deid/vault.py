"""The pseudonym vault: which patient has which pseudonym, encrypted, and the keys that everything hangs on.

One master key gives four derived keys (HKDF-SHA256): for UIDs, date shifts, finding a patient, and encrypting
patient ids. Pseudonyms are random; without the vault's file nobody gets from one to a patient. It never writes a key
into the database, never stores a patient id in clear, and never stores anything for a look-up that may not create.
Sources: RFC 5869 (HKDF), PS3.15 E.1.1 (no unkeyed hashes), E.3.6 (one shift a patient).
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import fcntl
import hmac
import json
import os
import secrets
import shlex
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dicomnode.deid.pseudonym import Subject, keyed_digest, pseudo_uid
from dicomnode.domain import OriginalUid, Pseudonym, PseudoUid
from dicomnode.errors import NotFound, UsageError, VaultError

KEY_BYTES = 32  # AES-256, HMAC-SHA256
MAX_DAYS_BACK = 3650  # dates move 1 to 3650 days back: far enough to hide a birthday, never into the future
PSEUDONYM_PREFIX = "DN-"
_PSEUDONYM_BYTES = 10  # 16 base32 characters hold 80 bits; ten of them are shown
_PSEUDONYM_CHARACTERS = 10
_NONCE_BYTES = 12  # AES-GCM, NIST SP 800-38D
_COMMAND_TIMEOUT_S = 30
_BUSY_TIMEOUT_S = 30.0
_ATTEMPTS = 5  # a random pseudonym of 50 bits that is taken five times running is no accident
_CHECK = b"dicomnode vault 1"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vault (
    id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL, key_check BLOB NOT NULL, created TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS patient (
    lookup BLOB PRIMARY KEY, pseudonym TEXT NOT NULL UNIQUE, sealed BLOB NOT NULL, created TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS reidentification (
    id INTEGER PRIMARY KEY, pseudonym TEXT NOT NULL, reason TEXT NOT NULL, who TEXT NOT NULL, found INTEGER NOT NULL,
    time TEXT NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the master key comes from: a file, an environment variable, or a command's output; at most one.

    With none of them it is the file ``default_file``, made at the first start. A key is 32 bytes, written as 64
    hexadecimal digits or as base64.
    """

    default_file: Path
    file: str = ""
    env: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.file, self.env, self.command))) > 1:
            raise VaultError("more than one source for the key", place="[vault]", advice="set one of key_*")

    @property
    def name(self) -> str:
        """One word for status pages: which kind of source, not where."""
        return "env" if self.env else "command" if self.command else "file"

    @property
    def path(self) -> Path | None:
        """The key's file; None for the other kinds."""
        if self.env or self.command:
            return None
        return (Path(self.file) if self.file else self.default_file).absolute()

    def exists(self) -> bool:
        """Whether a key file is there; the other kinds show when they are read."""
        return self.path.exists() if self.path else True

    def read(self) -> bytes:
        """The master key.

        Raises
        ------
        VaultError
            The source is not there, failed, or does not hold a key.
        """
        if self.env:
            text, place = os.environ.get(self.env, ""), "[vault] key_env"
        elif self.command:
            text, place = _output_of(self.command), "[vault] key_command"
        else:
            assert self.path is not None
            text, place = _read_private(self.path), str(self.path)
        return _decoded(text.strip(), place)


def _decoded(text: str, place: str) -> bytes:
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise VaultError("no key of 32 bytes there", place=place, advice="64 hexadecimal digits, or base64")
    return key


def _read_private(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            raise VaultError("others can read the key", place=str(path), advice=f"chmod 600 {path}")
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        line = "the key cannot be read"
        raise VaultError(line, place=str(path), advice="restore it from your safe; without it nothing opens") from None


def _output_of(command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (the operator's own command, without a shell)
            shlex.split(command), capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=True
        )
        return done.stdout.decode("ascii")
    except (OSError, ValueError, subprocess.SubprocessError):
        line = "the command gave no key"
        raise VaultError(line, place="[vault] key_command", advice="run it by hand") from None


def _derived(master: bytes, purpose: str) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"dicomnode vault 1 {purpose}".encode()).derive(master)


@dataclass(frozen=True, slots=True)
class VaultStatus:
    """Numbers of the vault for ``vault status``."""

    patients: int
    reidentifications: int
    epoch: int
    key_source: str


class Vault:
    """An open vault; safe to use from several processes at once, each with its own. Open one with ``Vault.open``."""

    def __init__(self, path: Path, master: bytes, key_source: str, *, created: bool) -> None:
        self._path = path
        self._key_source = key_source
        self.created = created  # by this call to open: the operator is told where
        self.uid_key = _derived(master, "uid")
        self._date_key = _derived(master, "date")
        self._lookup_key = _derived(master, "lookup")
        self._hash_key = _derived(master, "hash")
        self._cipher = AESGCM(_derived(master, "patient"))

    @classmethod
    def open(cls, path: Path, key: KeySource) -> Vault:
        """Open the vault at ``path``; make vault and key, mode 0600, where neither is there.

        Raises
        ------
        VaultError
            One of the two is there without the other, or the key is not this vault's.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.with_name(f"{path.name}.lock")):
            created = not path.exists()
            if not created and not key.exists():
                line = "the vault is there but its key is not"
                raise VaultError(line, place=str(key.path), advice="restore the key; without it nothing opens")
            if created and key.path is not None:
                if key.exists():
                    line = "a key is there but its vault is not"
                    advice = f"restore the vault, or move {key.path} away to start anew"
                    raise VaultError(line, place=str(path), advice=advice)
                _create_key(key.path)
            vault = cls(path, key.read(), key.name, created=created)
            vault._prepare()
            return vault

    def _prepare(self) -> None:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        check = keyed_digest(self._hash_key, "key check", _CHECK.decode())
        with self._connection() as db:
            db.executescript(_SCHEMA)
            db.execute("INSERT OR IGNORE INTO vault VALUES (1, 1, ?, ?)", (check, _now()))
            stored = db.execute("SELECT key_check FROM vault").fetchone()[0]
        if not hmac.compare_digest(stored, check):
            raise VaultError(
                "the key is not the one of this vault", place=str(self._path), advice="restore the right key"
            )

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own: processes and threads never share one."""
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S)) as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
                with db:
                    yield db
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            kind = type(error).__name__
            raise VaultError(f"the vault cannot be read or written ({kind})", place=str(self._path)) from None

    def pseudonym_for(self, issuer: str, patient_id: str, create: bool = True) -> Pseudonym | None:
        """The patient's pseudonym; a new random one when there is none and ``create``, else None."""
        lookup = self._lookup(issuer, patient_id)
        for _ in range(_ATTEMPTS):
            with self._connection() as db:
                row = db.execute("SELECT pseudonym FROM patient WHERE lookup = ?", (lookup,)).fetchone()
            if row or not create:
                return Pseudonym(row[0]) if row else None
            values = (lookup, _random_pseudonym(), self._seal(lookup, issuer, patient_id), _now())
            with (
                contextlib.suppress(sqlite3.IntegrityError),
                self._connection() as db,
            ):  # somebody was faster: look again
                db.execute("INSERT INTO patient VALUES (?, ?, ?, ?)", values)
        raise VaultError("no pseudonym could be stored", place=str(self._path))

    def subject_for(self, issuer: str, patient_id: str, create: bool = True) -> Subject:
        """Pseudonym and date shift of a patient. Unknown and not ``create``: a passing pseudonym, nothing is stored."""
        known = self.pseudonym_for(issuer, patient_id, create)
        return Subject(known or _random_pseudonym(), self.days(issuer, patient_id))

    def knows(self, pseudonym: Pseudonym) -> bool:
        """Whether a pseudonym is a patient's; a passing one is nobody's."""
        with self._connection() as db:
            return db.execute("SELECT 1 FROM patient WHERE pseudonym = ?", (pseudonym,)).fetchone() is not None

    def days(self, issuer: str, patient_id: str) -> int:
        """By how many days every date of the patient moves: -1 to -3650, always the same for one patient."""
        digest = keyed_digest(self._date_key, "days", _identity(issuer, patient_id))
        return -(1 + int.from_bytes(digest[:8], "big") % MAX_DAYS_BACK)

    def uid(self, original: OriginalUid) -> PseudoUid:
        """The pseudonymous UID of an original one; see ``pseudonym.pseudo_uid``."""
        return pseudo_uid(self.uid_key, original)

    def keyed_hash(self, domain: str, value: str) -> str:
        """64 hexadecimal digits by which an identifying value can be recognised again, but not read."""
        return keyed_digest(self._hash_key, domain, value).hex()

    def status(self) -> VaultStatus:
        """How much is in the vault."""
        with self._connection() as db:
            patients = db.execute("SELECT count(*) FROM patient").fetchone()[0]
            read = db.execute("SELECT count(*) FROM reidentification").fetchone()[0]
            epoch = db.execute("SELECT epoch FROM vault").fetchone()[0]
        return VaultStatus(patients, read, epoch, self._key_source)

    def reidentify(self, pseudonym: str, reason: str, who: str) -> tuple[str, str]:
        """(issuer, patient id) behind a pseudonym. Who asked and why is written down first, found or not.

        Raises
        ------
        UsageError
            No reason, or nobody, is given.
        NotFound
            The vault does not know the pseudonym.
        """
        if not reason.strip() or not who.strip():
            raise UsageError("a re-identification needs a reason and a person", advice="--reason T")
        with self._connection() as db:
            row = db.execute("SELECT lookup, sealed FROM patient WHERE pseudonym = ?", (pseudonym,)).fetchone()
            db.execute(
                "INSERT INTO reidentification (pseudonym, reason, who, found, time) VALUES (?, ?, ?, ?, ?)",
                (pseudonym, reason, who, int(row is not None), _now()),
            )
        if row is None:
            raise NotFound("the vault does not know this pseudonym", place=pseudonym)
        return self._unseal(*row)

    def _lookup(self, issuer: str, patient_id: str) -> bytes:
        return keyed_digest(self._lookup_key, "patient", _identity(issuer, patient_id))

    def _seal(self, lookup: bytes, issuer: str, patient_id: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, _identity(issuer, patient_id).encode(), lookup)

    def _unseal(self, lookup: bytes, sealed: bytes) -> tuple[str, str]:
        try:
            text = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], lookup)
        except InvalidTag:
            raise VaultError("an entry of the vault was changed", place=str(self._path)) from None
        issuer, patient_id = json.loads(text)
        return issuer, patient_id


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
def _locked(path: Path) -> Iterator[None]:
    """One process at a time makes or opens a vault."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create_key(path: Path) -> None:
    """A new random key, mode 0600, on disk before anything is encrypted with it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(secrets.token_bytes(KEY_BYTES).hex() + "\n")
        out.flush()
        os.fsync(out.fileno())
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""The master key of the pseudonym vault: where it comes from, what is derived from it, how a new one takes its place.

A new key file is written beside the old one first and renamed over it last, so that at any moment one of the two opens
the vault. That a file can be renamed over it is tried out before, with a copy of the old key. Never prints or logs a
key. Sources: RFC 5869 (HKDF); rename(2) is atomic (POSIX.1-2017).
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shlex
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dicomnode.durable import sync_folder
from dicomnode.errors import VaultError

KEY_BYTES = 32  # AES-256, HMAC-SHA256
_COMMAND_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Keys:
    """What is derived from one master key (HKDF-SHA256), a key for each use."""

    uid: bytes = field(repr=False)
    date: bytes = field(repr=False)
    hash: bytes = field(repr=False)
    lookup: bytes = field(repr=False)
    patient: bytes = field(repr=False)

    @classmethod
    def of(cls, master: bytes) -> Keys:
        """The keys of a master key of 32 bytes."""
        return cls(*(_derived(master, purpose) for purpose in ("uid", "date", "hash", "lookup", "patient")))


@dataclass(frozen=True, slots=True)
class PatientKey:
    """A patient as the hospital knows them. Identified; its ``repr`` tells nothing."""

    issuer: str = field(repr=False)
    patient_id: str = field(repr=False)


def _derived(master: bytes, purpose: str) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"dicomnode vault 1 {purpose}".encode()).derive(master)


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

    @property
    def next_path(self) -> Path | None:
        """Where a new key lies until the vault is under it; None for the other kinds."""
        return None if self.path is None else self.path.with_name(f"{self.path.name}.next")

    @property
    def _copy_path(self) -> Path | None:
        """Where a copy of the key lies while ``rehearse`` runs; None for the other kinds."""
        return None if self.path is None else self.path.with_name(f"{self.path.name}.copy")

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
            return read_key(self.path)
        return _decoded(text.strip(), place)

    def create(self) -> None:
        """A new random key in the file, before anything is encrypted with it."""
        assert self.path is not None
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_key(self.path, secrets.token_bytes(KEY_BYTES))

    def rehearse(self) -> None:
        """Rename a copy of the key over the key, as ``install`` will a new one, while failing is no harm.

        A copy and no link: renaming one name of a file over another of it does nothing (rename(2)).

        Raises
        ------
        VaultError
            The key file cannot be replaced, as where it is a mount point of its own (EBUSY). Nothing was changed.
        """
        assert self.path is not None
        assert self._copy_path is not None
        try:
            self._copy_path.unlink(missing_ok=True)
            _write_private(self._copy_path, self.path.read_bytes(), self.path.stat())
            self._copy_path.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as exc:
            with contextlib.suppress(OSError):  # the next start tries again
                self.discard_staged()
            line = f"the key file cannot be replaced ({exc.strerror}); nothing was changed"
            advice = "give the key by [vault] key_command, or mount the folder instead of the file, writable"
            raise VaultError(line, place=str(self.path), advice=advice) from None

    def stage(self, key: bytes) -> None:
        """Lay a new key beside the one in force, on disk before the vault is under it; mode and owner stay."""
        assert self.path is not None
        assert self.next_path is not None
        self.discard_staged()
        _write_key(self.next_path, key, self.path.stat())

    def staged(self) -> bytes | None:
        """The new key that a rotation laid down, None where there is none, or half of one."""
        if self.next_path is None or not self.next_path.exists():
            return None
        try:
            return read_key(self.next_path)
        except VaultError:
            return None

    def install(self) -> None:
        """Put the staged key in the place of the old one, which is gone then."""
        assert self.path is not None
        assert self.next_path is not None
        try:
            self.next_path.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as exc:
            line = f"the new key could not take the place of the old one: {exc.strerror}"
            advice = f"the vault is under the new key: copy the content of {self.next_path} into {self.path}"
            raise VaultError(line, place=str(self.path), advice=advice) from None

    def discard_staged(self) -> None:
        """Delete the key of a rotation that never came to be."""
        for path in (self.next_path, self._copy_path):
            if path is not None and path.is_file():  # in a read-only folder unlink fails even for what is not there
                path.unlink()


def read_key(path: Path) -> bytes:
    """The key in a file that nobody else can read.

    Raises
    ------
    VaultError
        The file is not there, can be read by others, or does not hold a key.
    """
    return _decoded(_read_private(path).strip(), str(path))


def _write_key(path: Path, key: bytes, like: os.stat_result | None = None) -> None:
    try:
        _write_private(path, key.hex().encode() + b"\n", like)
        sync_folder(path.parent)
    except OSError as exc:
        raise VaultError(f"the key cannot be written: {exc.strerror}", place=str(path)) from None


def _write_private(path: Path, data: bytes, like: os.stat_result | None) -> None:
    """A new file that is on disk on return, with mode and owner of another one."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        if like is not None:
            if os.geteuid() == 0:  # anybody else who can read a private file is its owner
                os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
        out.write(data)
        out.flush()
        os.fsync(descriptor)


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

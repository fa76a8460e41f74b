"""A new master key for the pseudonym vault. Why it does what it does: docs/decisions/0006-key-rotation.md.

The steps are ordered so that a kill at any point leaves a vault that opens: that the key file can be replaced is tried
out with the old key, the new key is on disk before the vault is under it, one transaction of the vault decides, and
the next to open it finishes or undoes the rest.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from dicomnode.deid.vault import Vault, locked
from dicomnode.deid.vault_key import KEY_BYTES, KeySource
from dicomnode.errors import UsageError, VaultError


@dataclass(frozen=True, slots=True)
class Rotation:
    """What became of a rotation.

    ``already``: the vault was under the given key before. ``swept``: nothing that the old key opens is in the file.
    """

    epoch: int
    key_source: str
    already: bool
    swept: bool


def rotate(path: Path, key: KeySource, given: bytes | None = None) -> Rotation:
    """Bring the vault at ``path`` under a new master key, as a new epoch.

    Parameters
    ----------
    path : Path
        The vault.
    key : KeySource
        Where the key in force comes from. A key file is replaced; the operator replaces what another source gives.
    given : bytes, optional
        The new key, 32 bytes; None: a random one, which only a key file can take.

    Raises
    ------
    UsageError
        A new key must be given, as the node cannot put one where the old one comes from.
    VaultError
        There is no vault, the key in force is not its key, or the new one cannot be stored. Nothing was changed.
    """
    if key.path is None and given is None:
        line = f"the key comes from [vault] key_{key.name}, where no new one can be put"
        raise UsageError(line, place="vault rotate", advice="give the new key: --new-key-file FILE")
    if not path.exists():
        raise VaultError("there is no vault yet", place=str(path), advice="the first start of the node makes it")
    with locked(path):
        if given is not None and (held := _under(path, key, given)) is not None:
            return Rotation(held.epoch, key.name, already=True, swept=held.swept())
        vault = Vault.opened(path, key)
        new = secrets.token_bytes(KEY_BYTES) if given is None else given
        if key.path is not None:
            key.rehearse()
            key.stage(new)
        vault.rekey(new)
        if key.path is not None:
            key.install()
        rotated = Vault(path, new, key.name, created=False)
        rotated.prepare()
        return Rotation(rotated.epoch, key.name, already=False, swept=rotated.swept())


def _under(path: Path, key: KeySource, given: bytes) -> Vault | None:
    """The vault, where it is under the given key already: rotated by a command that was killed, or run twice."""
    if key.path is not None:  # what a kill left is settled first: the key file is the one in force
        Vault.opened(path, key)
    vault = Vault(path, given, key.name, created=False)
    if not vault.fits():
        return None
    vault.prepare()
    return vault

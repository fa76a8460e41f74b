"""Rotation of the vault's key: known patients, UIDs and dates stay, the old key opens nothing, a kill costs nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dicomnode.deid import rotation
from dicomnode.deid.rotation import rotate
from dicomnode.deid.vault import KeySource, PatientKey, Vault
from dicomnode.domain import OriginalUid
from dicomnode.errors import UsageError, VaultError

PATIENTS = [("HOSP", f"MRN-{number}") for number in range(20)]
UID = OriginalUid("1.2.3.4")


def source(folder: Path, **how: str) -> KeySource:
    return KeySource(folder / "vault.key", **how)


def path(folder: Path) -> Path:
    return folder / "identified" / "vault.sqlite3"


def opened(folder: Path) -> Vault:
    return Vault.open(path(folder), source(folder))


def told(vault: Vault) -> list[object]:
    """What the repository stands on: pseudonyms, date shifts, UIDs and hashes."""
    known = [vault.subject_for(*patient, create=False) for patient in PATIENTS]
    return [known, vault.uid(UID), vault.keyed_hash("accession", "A1")]


def filled(folder: Path) -> list[object]:
    vault = opened(folder)
    for patient in PATIENTS:
        vault.pseudonym_for(*patient)
    return told(vault)


def stored(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path(folder).parent.iterdir()))


def test_known_patients_uids_dates_and_hashes_stay_over_several_rotations(tmp_path: Path) -> None:
    before = filled(tmp_path)
    keys = {(tmp_path / "vault.key").read_text()}
    for epoch in (2, 3, 4):
        assert rotate(path(tmp_path), source(tmp_path)).epoch == epoch
        vault = opened(tmp_path)
        assert vault.status().epoch == epoch
        assert told(vault) == before
        keys.add((tmp_path / "vault.key").read_text())
    assert len(keys) == 4
    assert stat.S_IMODE((tmp_path / "vault.key").stat().st_mode) == 0o600
    assert not (tmp_path / "vault.key.next").exists()
    first = before[0][0].pseudonym  # type: ignore[index]
    assert vault.reidentify(first, "test", "anna") == [PatientKey(*PATIENTS[0])]


def test_new_patients_get_dates_that_the_old_key_does_not_tell(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    old = [vault.days("HOSP", f"new-{n}") for n in range(100)]  # by the old key, nothing is stored
    rotate(path(tmp_path), source(tmp_path))
    vault = opened(tmp_path)
    new = [vault.subject_for("HOSP", f"new-{n}").days for n in range(100)]
    assert sum(a == b for a, b in zip(old, new, strict=True)) < 5
    rotate(path(tmp_path), source(tmp_path))
    assert [opened(tmp_path).days("HOSP", f"new-{n}") for n in range(100)] == new


def test_the_old_key_opens_nothing_and_reads_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    old = (tmp_path / "vault.key").read_bytes()
    with sqlite3.connect(path(tmp_path)) as db:
        sealed = [blob for row in db.execute("SELECT lookup, sealed FROM patient") for blob in row]
    assert all(blob in stored(tmp_path) for blob in sealed)
    rotate(path(tmp_path), source(tmp_path))
    assert not any(blob in stored(tmp_path) for blob in sealed)  # not in free pages or the journal either
    (tmp_path / "vault.key").write_bytes(old)
    with pytest.raises(VaultError, match="not the one of this vault"):
        opened(tmp_path)


def test_no_key_and_no_derived_key_is_in_the_file(tmp_path: Path) -> None:
    filled(tmp_path)
    vault = opened(tmp_path)
    old = bytes.fromhex((tmp_path / "vault.key").read_text())
    rotate(path(tmp_path), source(tmp_path))
    new = bytes.fromhex((tmp_path / "vault.key").read_text())
    assert not any(key in stored(tmp_path) for key in (old, new, vault.uid_key, vault._own.date, vault._own.hash))


def test_a_program_that_holds_the_vault_open_notices_and_writes_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    stale = opened(tmp_path)
    rotate(path(tmp_path), source(tmp_path))
    for ask in (
        lambda: stale.pseudonym_for(*PATIENTS[0]),
        lambda: stale.pseudonym_for("HOSP", "new"),
        lambda: stale.reidentify("DN-AAAAAAAAAA", "test", "anna"),
        stale.status,
        lambda: stale.rekey(b"k" * 32),
    ):
        with pytest.raises(VaultError, match="under a new key"):
            ask()
    assert opened(tmp_path).status().patients == len(PATIENTS)


def test_a_vault_of_the_first_form_is_completed(tmp_path: Path) -> None:
    before = filled(tmp_path)
    with sqlite3.connect(path(tmp_path)) as db:
        db.execute("DROP TABLE past_epoch")
        for table, column in (("vault", "unswept"), ("patient", "epoch"), ("patient", "merged_into")):
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    assert told(opened(tmp_path)) == before
    rotate(path(tmp_path), source(tmp_path))
    assert told(opened(tmp_path)) == before


def test_a_given_key_is_taken_and_taken_again_changes_nothing(tmp_path: Path) -> None:
    before = filled(tmp_path)
    given = b"n" * 32
    assert not rotate(path(tmp_path), source(tmp_path), given).already
    assert (tmp_path / "vault.key").read_text().strip() == given.hex()
    again = rotate(path(tmp_path), source(tmp_path), given)
    assert again.already
    assert again.epoch == 2
    assert told(opened(tmp_path)) == before


def test_a_key_that_the_node_cannot_put_must_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "ab" * 32, "cd" * 32
    monkeypatch.setenv("SITE_KEY", old)
    vault = Vault.open(path(tmp_path), source(tmp_path, env="SITE_KEY"))
    pseudonym = vault.pseudonym_for("HOSP", "1")
    with pytest.raises(UsageError, match="--new-key-file"):
        rotate(path(tmp_path), source(tmp_path, env="SITE_KEY"))
    assert rotate(path(tmp_path), source(tmp_path, env="SITE_KEY"), bytes.fromhex(new)).epoch == 2
    with pytest.raises(VaultError, match="that is the new one"):
        Vault.open(path(tmp_path), source(tmp_path, env="SITE_KEY"))
    # the same command again, before and after the operator has put the new key in place
    for text in (old, new):
        monkeypatch.setenv("SITE_KEY", text)
        assert rotate(path(tmp_path), source(tmp_path, env="SITE_KEY"), bytes.fromhex(new)).already
    assert Vault.open(path(tmp_path), source(tmp_path, env="SITE_KEY")).pseudonym_for("HOSP", "1") == pseudonym
    assert not (tmp_path / "vault.key").exists()


def test_a_wrong_key_rotates_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    right = (tmp_path / "vault.key").read_text()
    (tmp_path / "vault.key").write_text("00" * 32)
    with pytest.raises(VaultError, match="not the one of this vault"):
        rotate(path(tmp_path), source(tmp_path))
    (tmp_path / "vault.key").write_text(right)
    assert opened(tmp_path).status().epoch == 1


def test_without_a_vault_there_is_nothing_to_rotate(tmp_path: Path) -> None:
    with pytest.raises(VaultError, match="no vault yet"):
        rotate(path(tmp_path), source(tmp_path))
    assert not (tmp_path / "vault.key").exists()


def test_a_folder_that_cannot_be_written_rotates_nothing(tmp_path: Path) -> None:
    before = filled(tmp_path)
    (tmp_path / "vault.key.next").mkdir()  # takes the name, for root too
    with pytest.raises((VaultError, OSError)):
        rotate(path(tmp_path), source(tmp_path))
    (tmp_path / "vault.key.next").rmdir()
    vault = opened(tmp_path)
    assert vault.status().epoch == 1
    assert told(vault) == before


def test_a_key_file_that_cannot_be_replaced_rotates_nothing(tmp_path: Path) -> None:
    before = filled(tmp_path)
    key = (tmp_path / "vault.key").read_bytes()
    (tmp_path / "vault.key.copy").mkdir()  # takes the name, for root too
    with pytest.raises(VaultError, match="nothing was changed"):
        rotate(path(tmp_path), source(tmp_path))
    assert (tmp_path / "vault.key").read_bytes() == key
    assert not (tmp_path / "vault.key.next").exists()
    vault = opened(tmp_path)
    assert vault.status().epoch == 1
    assert told(vault) == before


MOUNTED = """
import sys
from test_deid_rotation import *
folder = Path(sys.argv[1])
for _ in range(2):
    try:
        rotate(path(folder), source(folder))
    except VaultError as exc:
        print(exc.code, exc.line, exc.advice, sep="|")
vault = opened(folder)
print(vault.status().epoch, vault.status().patients, sorted(p.name for p in folder.iterdir()))
"""


def _mounted(folder: Path, script: str, mount: str) -> str:
    """Run a script in a mount namespace of its own."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    words = [*namespace, "sh", "-ec", f'{mount}; exec "$@"', "sh", sys.executable, "-c", script, str(folder)]
    paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[2])))
    surroundings = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "mount", ["mount --bind {safe} {key}", "mount --bind {folder} {folder}; mount -o remount,ro,bind {folder}"]
)
def test_a_mounted_key_file_is_refused_before_the_vault_is_touched(tmp_path: Path, mount: str) -> None:
    """As a container gives a secret: nothing can be renamed over the file, or the folder is read-only."""
    folder, identified = tmp_path / "node", tmp_path / "identified"
    before = filled(folder)
    path(folder).parent.rename(identified)
    path(folder).parent.symlink_to(identified)
    safe = shutil.copy2(folder / "vault.key", tmp_path / "safe.key")
    said = _mounted(folder, MOUNTED, mount.format(safe=safe, key=folder / "vault.key", folder=folder)).splitlines()
    for line in said[:2]:
        assert "nothing was changed" in line
        assert "key_command" in line
    assert said[2:] == ["1 20 ['identified', 'vault.key']"]
    assert told(opened(folder)) == before


STUCK = """
import sys
from test_deid_rotation import *
folder = Path(sys.argv[1])
KeySource.rehearse = lambda self: None  # the mount came after the rehearsal
try:
    rotate(path(folder), source(folder))
except VaultError as exc:
    print(exc.advice)
(folder / "vault.key").write_bytes((folder / "vault.key.next").read_bytes())  # as it advises
vault = opened(folder)
print(vault.status().epoch, sorted(p.name for p in folder.iterdir()))
"""


def test_a_new_key_that_could_not_take_its_place_is_copied_there_by_hand(tmp_path: Path) -> None:
    before = filled(tmp_path / "node")
    safe = shutil.copy2(tmp_path / "node" / "vault.key", tmp_path / "safe.key")
    said = _mounted(tmp_path / "node", STUCK, f"mount --bind {safe} {tmp_path / 'node' / 'vault.key'}").splitlines()
    assert "copy" in said[0]
    assert said[1:] == ["2 ['identified', 'vault.key']"]
    shutil.copy2(safe, tmp_path / "node" / "vault.key")
    assert told(opened(tmp_path / "node")) == before


def test_the_key_file_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    filled(tmp_path)
    key = tmp_path / "vault.key"
    key.chmod(0o400)
    if os.geteuid() == 0:  # rotated by root, read by the node's own user
        os.chown(key, 10112, 10113)
    before, text = key.stat(), key.read_text()
    rotate(path(tmp_path), source(tmp_path))
    after = key.stat()
    assert key.read_text() != text
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def _killed_at(folder: str, point: str) -> None:
    """Rotate, and be killed (SIGKILL) when a step is reached."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if point == "the rehearsal's copy is written":
        os.fsync = die  # type: ignore[assignment]
    elif point == "half of the new key is written":
        rehearsed = KeySource.rehearse

        def then_die(self: KeySource) -> None:
            rehearsed(self)
            os.fsync = die  # type: ignore[assignment]

        KeySource.rehearse = then_die  # type: ignore[method-assign]
    elif point == "the new key is on disk":
        Vault.rekey = die  # type: ignore[method-assign]
    elif point == "some patients are re-sealed":
        kept, count = Vault._seal, iter(range(5))

        def seal(self: Vault, *what: object) -> bytes:
            if next(count, None) is None:
                die()
            return kept(self, *what)  # type: ignore[arg-type]

        Vault._seal = seal  # type: ignore[method-assign, assignment]
    elif point == "the vault is under the new key":
        KeySource.install = die  # type: ignore[method-assign]
    elif point == "the new key is in place":
        Vault._sweep = die  # type: ignore[method-assign]
    rotation.rotate(path(Path(folder)), source(Path(folder)))


@pytest.mark.parametrize(
    ("point", "epoch"),
    [
        ("the rehearsal's copy is written", 1),
        ("half of the new key is written", 1),
        ("the new key is on disk", 1),
        ("some patients are re-sealed", 1),
        ("the vault is under the new key", 2),
        ("the new key is in place", 2),
    ],
)
def test_a_kill_at_any_step_leaves_a_vault_that_opens(tmp_path: Path, point: str, epoch: int) -> None:
    before = filled(tmp_path)
    old = (tmp_path / "vault.key").read_text()
    with sqlite3.connect(path(tmp_path)) as db:
        sealed = [row[0] for row in db.execute("SELECT sealed FROM patient")]
    process = multiprocessing.get_context("spawn").Process(target=_killed_at, args=(str(tmp_path), point))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    vault = opened(tmp_path)
    assert vault.status().epoch == epoch
    assert told(vault) == before
    assert ((tmp_path / "vault.key").read_text() == old) == (epoch == 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["identified", "vault.key"]
    assert any(blob in stored(tmp_path) for blob in sealed) == (epoch == 1)
    assert rotate(path(tmp_path), source(tmp_path)).epoch == epoch + 1  # and the next one goes through
    assert told(opened(tmp_path)) == before


def test_a_file_that_cannot_be_written_anew_opens_and_is_swept_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reads on through all of it: the old bytes stay in the journal until the next start."""
    before = filled(tmp_path)
    with sqlite3.connect(path(tmp_path)) as db:
        sealed = [row[0] for row in db.execute("SELECT sealed FROM patient")]
    monkeypatch.setattr("dicomnode.deid.vault._BUSY_TIMEOUT_S", 0.2)
    with contextlib.closing(sqlite3.connect(path(tmp_path))) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM patient").fetchone()
        assert not rotate(path(tmp_path), source(tmp_path)).swept
        assert told(opened(tmp_path)) == before
        assert any(blob in stored(tmp_path) for blob in sealed)
    vault = opened(tmp_path)
    assert vault.swept()
    assert not any(blob in stored(tmp_path) for blob in sealed)

"""The vault: one pseudonym a patient, nothing readable without the key, and no key or vault lost in silence."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.rotation import rotate
from dicomnode.deid.vault import MAX_DAYS_BACK, KeySource, PatientKey, Vault
from dicomnode.domain import OriginalUid
from dicomnode.errors import NotFound, UsageError, VaultError


def opened(folder: Path) -> Vault:
    return Vault.open(folder / "identified" / "vault.sqlite3", KeySource(folder / "vault.key"))


def pseudonym_in_process(folder: str, number: int) -> str:
    return str(opened(Path(folder)).pseudonym_for("HOSP", f"patient-{number % 3}"))


def test_the_first_start_makes_vault_and_key_for_their_owner_only(tmp_path: Path) -> None:
    assert opened(tmp_path).created
    for path in (tmp_path / "vault.key", tmp_path / "identified" / "vault.sqlite3"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not opened(tmp_path).created


def test_a_vault_without_its_key_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "vault.key").unlink()
    with pytest.raises(VaultError, match="key is not"):
        opened(tmp_path)
    assert not (tmp_path / "vault.key").exists()


def test_a_key_without_its_vault_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "identified" / "vault.sqlite3").unlink()
    with pytest.raises(VaultError, match="vault is not"):
        opened(tmp_path)


def test_a_wrong_key_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "vault.key").write_text("00" * 32)
    with pytest.raises(VaultError, match="not the one of this vault"):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["", "short", "zz" * 32, "00" * 31])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    opened(tmp_path)
    (tmp_path / "vault.key").write_text(text)
    with pytest.raises(VaultError, match="32 bytes"):
        opened(tmp_path)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "vault.key").chmod(0o640)
    with pytest.raises(VaultError, match="chmod 600"):
        opened(tmp_path)


def test_the_key_may_come_from_the_environment_or_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_KEY", "ab" * 32)
    path = tmp_path / "vault.sqlite3"
    from_env = Vault.open(path, KeySource(tmp_path / "vault.key", env="SITE_KEY"))
    command = f"{sys.executable} -c \"print('ab' * 32)\""
    from_command = Vault.open(path, KeySource(tmp_path / "vault.key", command=command))
    assert from_env.uid_key == from_command.uid_key
    assert from_command.status().key_source == "command"
    assert not (tmp_path / "vault.key").exists()
    with pytest.raises(VaultError, match="key_command"):
        Vault.open(path, KeySource(tmp_path / "vault.key", command="false"))
    monkeypatch.delenv("SITE_KEY")
    with pytest.raises(VaultError, match="key_env"):
        Vault.open(path, KeySource(tmp_path / "vault.key", env="SITE_KEY"))


def test_two_sources_for_the_key_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(VaultError, match="more than one"):
        KeySource(tmp_path / "vault.key", env="A", command="b")


def test_a_patient_has_one_random_pseudonym(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    first = vault.pseudonym_for("HOSP", "4711")
    assert first is not None
    assert first.startswith("DN-")
    assert len(first) == 13
    assert vault.pseudonym_for("HOSP", " 4711 ") == first == opened(tmp_path).pseudonym_for("HOSP", "4711")
    assert len({first, vault.pseudonym_for("OTHER", "4711"), vault.pseudonym_for("HOSP", "4712")}) == 3
    assert opened(tmp_path / "elsewhere").pseudonym_for("HOSP", "4711") != first


def test_looking_up_without_creating_stores_nothing(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    assert vault.pseudonym_for("HOSP", "4711", create=False) is None
    one, two = (vault.subject_for("HOSP", "4711", create=False) for _ in range(2))
    assert one.pseudonym != two.pseudonym
    assert one.days == two.days
    assert vault.status().patients == 0


def test_a_patient_without_an_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VaultError, match="without an id"):
        opened(tmp_path).pseudonym_for("HOSP", "  ")


def test_issuer_and_id_cannot_be_mixed_up(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    assert vault.pseudonym_for('A","B', "C") != vault.pseudonym_for("A", 'B","C')


def test_nothing_in_the_files_can_be_read(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    vault.pseudonym_for("GENERAL-HOSPITAL", "MRN-4711-0815")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "identified").iterdir())
    assert b"MRN-4711" not in stored
    assert b"GENERAL-HOSP" not in stored
    assert vault.uid_key not in stored
    assert bytes.fromhex((tmp_path / "vault.key").read_text()) not in stored


def test_days_are_back_in_time_within_ten_years_and_differ(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    days = [vault.days("HOSP", str(number)) for number in range(500)]
    assert all(-MAX_DAYS_BACK <= one <= -1 for one in days)
    assert len(set(days)) > 400


@given(st.text(min_size=1, max_size=30))
def test_the_same_value_hashes_the_same_within_its_domain(value: str) -> None:
    vault = Vault(Path("unused"), b"k" * 32, "file", created=False)
    assert vault.keyed_hash("study", value) == vault.keyed_hash("study", value)
    assert vault.keyed_hash("study", value) != vault.keyed_hash("accession", value)


def test_uids_and_hashes_come_from_different_keys(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    digits = vault.uid(OriginalUid("1.2.3")).removeprefix("2.25.")
    assert f"{int(digits):032x}" != vault.keyed_hash("uid", "1.2.3")[:32]


def test_a_reidentification_needs_a_reason_and_is_written_down(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    pseudonym = vault.pseudonym_for("HOSP", "4711")
    assert pseudonym is not None
    with pytest.raises(UsageError):
        vault.reidentify(pseudonym, " ", "anna")
    assert vault.reidentify(pseudonym, "incidental finding", "anna") == [PatientKey("HOSP", "4711")]
    with pytest.raises(NotFound):
        vault.reidentify("DN-AAAAAAAAAA", "curiosity", "bob")
    with sqlite3.connect(tmp_path / "identified" / "vault.sqlite3") as db:
        rows = db.execute("SELECT pseudonym, reason, who, found FROM reidentification ORDER BY id").fetchall()
    assert rows == [(pseudonym, "incidental finding", "anna", 1), ("DN-AAAAAAAAAA", "curiosity", "bob", 0)]
    assert vault.status().reidentifications == 2


KEPT, OTHER, THIRD = (PatientKey("HOSP", name) for name in ("4711", "0815", "9999"))


def asked(vault: Vault, key: PatientKey) -> Subject:
    return vault.subject_for(key.issuer, key.patient_id, create=False)


def test_a_merged_id_has_the_pseudonym_and_the_dates_of_the_one_that_stays(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    one, two = (vault.subject_for(key.issuer, key.patient_id) for key in (KEPT, OTHER))
    merged = vault.merge(KEPT, OTHER)
    assert (merged.pseudonym, merged.already) == (one.pseudonym, False)
    assert [(move.former, move.days) for move in merged.moves] == [(two.pseudonym, one.days - two.days)]
    assert asked(opened(tmp_path), OTHER) == asked(vault, KEPT) == one
    assert vault.reidentify(one.pseudonym, "test", "anna") == [KEPT, OTHER]
    assert vault.reidentify(two.pseudonym, "test", "anna") == [OTHER]
    assert (vault.status().patients, vault.status().merged) == (1, 1)
    assert vault.merge(KEPT, OTHER) == replace(merged, already=True)
    assert vault.merge(OTHER, KEPT) == replace(merged, already=True)  # nobody changes places


def test_ids_are_merged_over_several_steps_without_chains(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    first, second, third = (vault.subject_for(key.issuer, key.patient_id) for key in (KEPT, OTHER, THIRD))
    vault.merge(KEPT, OTHER)
    merged = vault.merge(THIRD, OTHER)  # by any of its ids, the whole person
    assert merged.pseudonym == third.pseudonym
    assert {m.former: m.days for m in merged.moves} == {
        first.pseudonym: third.days - first.days,
        second.pseudonym: third.days - second.days,
    }
    assert {asked(vault, key) for key in (KEPT, OTHER, THIRD)} == {third}
    assert set(vault.pseudonyms_of(first.pseudonym)) == {s.pseudonym for s in (first, second, third)}


def test_an_id_is_merged_only_with_one_that_is_known(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    with pytest.raises(NotFound, match="neither"):
        vault.merge(KEPT, OTHER)
    with pytest.raises(UsageError, match="same id"):
        vault.merge(KEPT, PatientKey("HOSP", " 4711 "))
    assert vault.status().patients == 0
    known = vault.pseudonym_for(OTHER.issuer, OTHER.patient_id)
    merged = vault.merge(KEPT, OTHER)
    assert merged.pseudonym != known
    assert asked(vault, OTHER).pseudonym == merged.pseudonym


def test_merged_ids_and_their_dates_stay_over_a_rotation(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    vault.subject_for(KEPT.issuer, KEPT.patient_id)
    rotate(tmp_path / "identified" / "vault.sqlite3", KeySource(tmp_path / "vault.key"))
    vault = opened(tmp_path)
    vault.subject_for(OTHER.issuer, OTHER.patient_id)  # of the second epoch
    merged = vault.merge(KEPT, OTHER)
    before = asked(vault, OTHER)
    rotate(tmp_path / "identified" / "vault.sqlite3", KeySource(tmp_path / "vault.key"))
    vault = opened(tmp_path)
    assert asked(vault, OTHER) == asked(vault, KEPT) == before
    assert vault.merge(KEPT, OTHER) == replace(merged, already=True)


def test_a_forgotten_patient_is_in_no_byte_of_the_file_and_a_new_one_afterwards(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    for key in (KEPT, OTHER, THIRD):
        vault.pseudonym_for(key.issuer, key.patient_id)
    vault.merge(KEPT, OTHER)
    names = vault.pseudonyms_of(asked(vault, KEPT).pseudonym)
    vault.reidentify(names[0], "incidental finding", "anna")
    with sqlite3.connect(tmp_path / "identified" / "vault.sqlite3") as db:
        rows = db.execute("SELECT lookup, sealed, pseudonym FROM patient WHERE pseudonym IN (?, ?)", names).fetchall()
    assert vault.forget(names[1]) == 2  # by any of its pseudonyms
    stored = b"".join(path.read_bytes() for path in (tmp_path / "identified").iterdir())
    for lookup, sealed, name in rows:
        assert lookup not in stored
        assert sealed not in stored
        assert name.encode() not in stored
    assert vault.status().reidentifications == 1  # that it was done, by whom and why, stays
    assert b"incidental finding" in stored
    assert vault.status().patients == 1
    assert vault.pseudonym_for(KEPT.issuer, KEPT.patient_id) not in names


def test_a_changed_entry_is_noticed(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    first, second = vault.pseudonym_for("HOSP", "1"), vault.pseudonym_for("HOSP", "2")
    assert first is not None
    with sqlite3.connect(tmp_path / "identified" / "vault.sqlite3") as db:
        sealed = db.execute("SELECT sealed FROM patient WHERE pseudonym = ?", (second,)).fetchone()[0]
        db.execute("UPDATE patient SET sealed = ? WHERE pseudonym = ?", (sealed, first))
    with pytest.raises(VaultError, match="changed"):
        vault.reidentify(first, "test", "anna")


def test_a_damaged_vault_is_an_error_of_ours(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "identified" / "vault.sqlite3").write_bytes(b"junk" * 1000)
    with pytest.raises(VaultError, match="cannot be read"):
        opened(tmp_path)


def test_processes_that_race_agree_on_one_pseudonym_and_one_vault(tmp_path: Path) -> None:
    jobs = [(str(tmp_path), number) for number in range(12)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        made = pool.starmap(pseudonym_in_process, jobs, chunksize=1)
    assert len(set(made)) == 3
    assert opened(tmp_path).status().patients == 3

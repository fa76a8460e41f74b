"""``vault`` and ``reidentify``: what is told to whom, what is recorded, and what stops while a node runs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import Done, run, write_settings

from dicomnode.config import load_settings
from dicomnode.deid.vault import Vault
from dicomnode.domain import Pseudonym
from dicomnode.node import Node
from dicomnode.testing import sample_study, write_study

ID, OTHER = "MRN-4711", "MRN-0815"


@pytest.fixture(autouse=True)
def _own_surroundings(no_settings_from_outside):
    """An empty working folder."""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_settings(tmp_path)


def vault(settings: Path) -> Vault:
    return Node(load_settings(settings)).vault


def pseudonym(settings: Path, patient_id: str = ID) -> Pseudonym:
    name = vault(settings).pseudonym_for("", patient_id)
    assert name is not None
    return name


def trail(settings: Path) -> list[dict]:
    return list(Node(load_settings(settings)).audit.entries())


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


class TestReidentify:
    def test_prints_whom_it_stands_for_and_records_who_asked_and_why(self, settings):
        name = pseudonym(settings)
        done = run("reidentify", name, "--reason", "incidental finding", "--config", settings)
        assert done == Done(0, f"\t{ID}\n", "")
        as_json = run("reidentify", name, "--reason", "again", "--json", "--config", settings).json()
        assert as_json == {"pseudonym": name, "issuer": "", "patient_id": ID, "merged": []}
        entries = [e for e in trail(settings) if e["event"] == "reidentified"]
        assert [(e["pseudonym"], e["reason"]) for e in entries] == [(name, "incidental finding"), (name, "again")]
        assert entries[0]["actor"].startswith("command:")
        assert vault(settings).status().reidentifications == 2

    def test_an_unknown_pseudonym_is_one_line_and_recorded(self, settings):
        pseudonym(settings)
        done = run("reidentify", "DN-AAAAAAAAAA", "--reason", "test", "--config", settings)
        assert (done.code, done.out) == (1, "")
        assert "DN-AAAAAAAAAA: the vault does not know this pseudonym" in done.error()
        asked, ended = trail(settings)
        assert asked["pseudonym"] == "DN-AAAAAAAAAA"
        assert (ended["event"], ended["detail"]) == ("not-done", "reidentified: not-found")
        assert vault(settings).status().reidentifications == 1

    @pytest.mark.parametrize("reason", ["", "  ", "x" * 201])
    def test_a_reason_is_needed(self, settings, reason):
        done = run("reidentify", pseudonym(settings), "--reason", reason, "--config", settings)
        assert (done.code, done.out) == (2, "")
        assert "--reason" in done.error()
        assert vault(settings).status().reidentifications == 0

    def test_what_is_no_pseudonym_is_not_repeated(self, settings):
        done = run("reidentify", ID, "--reason", "test", "--config", settings)
        assert done.code == 2
        assert ID not in done.error()
        assert trail(settings) == []


class TestStatusAndRotate:
    def test_status_makes_no_vault(self, settings, tmp_path):
        done = run("vault", "status", "--config", settings)
        assert done.code == 1
        assert "no vault yet" in done.error()
        assert not (tmp_path / "var" / "vault.key").exists()

    def test_status_tells_numbers_epoch_and_kind_of_source(self, settings):
        pseudonym(settings)
        told = {"patients": 1, "merged": 0, "reidentifications": 0, "epoch": 1, "key_source": "file"}
        assert run("vault", "status", "--json", "--config", settings).json() == told
        assert "epoch\t1\n" in run("vault", "status", "--config", settings).out

    def test_rotation_keeps_the_pseudonyms_and_is_recorded(self, settings, tmp_path):
        name, key = pseudonym(settings), (tmp_path / "var" / "vault.key").read_text()
        done = run("vault", "rotate", "--json", "--config", settings)
        assert done.json() == {"epoch": 2, "key_source": "file", "already": False, "swept": True}
        new = (tmp_path / "var" / "vault.key").read_text()
        assert new != key
        assert new.strip() not in done.out + done.err
        assert pseudonym(settings) == name
        assert trail(settings)[-1]["event"] == "vault-rotated"
        assert "epoch 3" in run("vault", "rotate", "--config", settings).out

    @pytest.mark.parametrize("role", ["receiver", "worker", "web"])
    def test_rotation_waits_for_no_node(self, settings, tmp_path, role):
        pseudonym(settings)
        node = Node(load_settings(settings))
        before = (tmp_path / "var" / "vault.key").read_text()
        with node.lock(role):
            done = run("vault", "rotate", "--config", settings)
        assert done.code == 1
        assert "stop it first" in done.error()
        assert (tmp_path / "var" / "vault.key").read_text() == before

    def test_a_key_from_elsewhere_needs_the_new_one(self, settings, tmp_path, monkeypatch):
        monkeypatch.setenv("SITE_KEY", "ab" * 32)
        settings.write_text(settings.read_text() + '[vault]\nkey_env = "SITE_KEY"\n')
        name = pseudonym(settings)
        assert run("vault", "rotate", "--config", settings).code == 2
        assert trail(settings)[-1]["detail"].startswith("vault-rotated: ")
        new = tmp_path / "new.key"
        new.write_text("cd" * 32)
        new.chmod(0o644)
        assert "chmod 600" in run("vault", "rotate", "--new-key-file", new, "--config", settings).error()
        new.chmod(0o600)
        done = run("vault", "rotate", "--new-key-file", new, "--config", settings)
        assert done.code == 0
        assert "[vault] key_env must give the new key" in done.err
        assert "not the one of this vault" in run("vault", "status", "--config", settings).error()
        monkeypatch.setenv("SITE_KEY", "cd" * 32)
        assert pseudonym(settings) == name
        again = run("vault", "rotate", "--new-key-file", new, "--config", settings)
        assert "already: epoch 2" in again.out


class TestPatients:
    @pytest.fixture
    def repository(self, settings, tmp_path) -> Path:
        for n, patient in enumerate((ID, OTHER)):
            write_study(sample_study(1, matrix=64, patient_id=patient, seed=n), tmp_path / "in" / str(n))
        assert run("index", "add", tmp_path / "in", "--config", settings).code == 0
        return settings

    def test_merge_takes_the_studies_to_one_pseudonym(self, repository, monkeypatch):
        kept, former = pseudonym(repository), pseudonym(repository, OTHER)
        typed(monkeypatch, f"{ID}\n{OTHER}\n")
        words = ("vault", "merge", "--patient-id", "-", "--other-id", "-", "--json", "--config", repository)
        done = run(*words).json()
        assert done == {
            "pseudonym": kept, "replaced": [former], "studies": 1, "objects": 1, "answers": 0, "damaged": 0
        }  # fmt: skip
        assert run("index", "status", "--json", "--config", repository).json()["patients"] == 1
        assert trail(repository)[-1] | {"time": "", "actor": ""} == {
            "time": "", "event": "patients-merged", "actor": "", "pseudonym": kept
        }  # fmt: skip
        told = run("reidentify", kept, "--reason", "test", "--config", repository)
        assert told.out == f"\t{ID}\n\t{OTHER}\n"
        typed(monkeypatch, f"{ID}\n{OTHER}\n")
        assert run(*words).json()["studies"] == 0  # once more changes nothing
        assert run("index", "exclude", "--patient", former, "--config", repository).code == 0  # by any of its names
        assert run("index", "status", "--json", "--config", repository).json()["excluded_patients"] == 1

    def test_merge_refuses_beside_a_worker_and_strangers(self, repository, monkeypatch):
        words = ("vault", "merge", "--patient-id", "NOBODY-1", "--other-id", "NOBODY-2", "--config", repository)
        done = run(*words)
        assert done.code == 1
        assert "NOBODY" not in done.error()
        with Node(load_settings(repository)).lock("worker"):
            assert "stop it first" in run(*words).error()
        typed(monkeypatch, "\n")
        empty = run("vault", "merge", "--patient-id", "-", "--other-id", ID, "--config", repository)
        assert (empty.code, "--patient-id" in empty.error()) == (2, True)

    def test_a_patient_is_removed_by_the_hospitals_own_id(self, repository, monkeypatch, tmp_path):
        name = pseudonym(repository)
        typed(monkeypatch, f"{ID}\n")
        done = run("index", "remove", "--patient-id", "-", "--json", "--config", repository)
        assert done.json() == {
            "studies": 1, "answers": 0, "changed_answers": 0, "originals": 0, "ids": 1, "scrubbed": True
        }  # fmt: skip
        assert run("index", "status", "--json", "--config", repository).json()["studies"] == 1
        assert run("vault", "status", "--json", "--config", repository).json()["patients"] == 1
        files = [p for p in (tmp_path / "var").rglob("*") if p.is_file() and p.parent.name != "audit"]
        assert not [p for p in files if name.encode() in p.read_bytes() or ID.encode() in p.read_bytes()]
        again = run("index", "remove", "--patient-id", ID, "--config", repository)
        assert (again.code, "no such study or patient" in again.error()) == (1, True)
        assert ID not in json.dumps(trail(repository))
        assert run("vault", "status", "--json", "--config", repository).json()["patients"] == 1  # nothing was made

    def test_a_patient_of_another_issuer_is_somebody_else(self, repository):
        done = run("index", "remove", "--patient-id", ID, "--issuer", "OTHER", "--config", repository)
        assert done.code == 1
        assert run("index", "status", "--json", "--config", repository).json()["studies"] == 2

    def test_a_patient_is_excluded_by_the_hospitals_own_id(self, repository):
        assert run("index", "exclude", "--patient-id", ID, "--config", repository).code == 0
        node = Node(load_settings(repository))
        assert node.catalogue.is_excluded(pseudonym(repository))
        assert not node.catalogue.is_excluded(pseudonym(repository, OTHER))
        assert run("index", "exclude", "--patient-id", "NOBODY", "--config", repository).code == 1
        assert run("index", "exclude", "--config", repository).code == 2

    def test_an_excluded_patient_is_taken_back_and_the_trail_says_why(self, repository):
        whose = ("--patient-id", ID, "--config", repository)
        assert run("index", "exclude", *whose, "--reason", " withdrew ").code == 0
        assert run("index", "include", *whose, "--reason", "consent was given").code == 0
        assert not Node(load_settings(repository)).catalogue.is_excluded(pseudonym(repository))
        told = [(e["event"], e["pseudonym"], e["reason"]) for e in trail(repository)[-2:]]
        whom = pseudonym(repository)
        assert told == [("case-excluded", whom, "withdrew"), ("case-included", whom, "consent was given")]
        before = len(trail(repository))
        for command in ("include", "exclude", "remove"):
            refused = run("index", command, *whose, "--reason", "x" * 201)
            assert (refused.code, "at most 200 characters" in refused.error()) == (2, True)
        assert run("index", "include", "--config", repository).code == 2
        assert len(trail(repository)) == before
        assert not Node(load_settings(repository)).catalogue.is_excluded(pseudonym(repository))

    CHANGES = (
        ("vault", "rotate"),
        ("vault", "merge", "--patient-id", ID, "--other-id", OTHER),
        ("index", "remove", "--patient-id", ID),
    )

    @pytest.mark.parametrize("change", CHANGES)
    def test_no_patient_changes_while_studies_are_added(self, repository, tmp_path, monkeypatch, change):
        """Asked for at the moment at which ``index add`` has a pseudonym in hand and nothing is stored under it yet."""
        write_study(sample_study(1, matrix=64, patient_id=ID, seed=7), tmp_path / "late")
        key, said = (tmp_path / "var" / "vault.key").read_text(), []
        subject_for = Vault.subject_for

        def meanwhile(vault: Vault, *patient: str, **how: bool) -> object:
            subject = subject_for(vault, *patient, **how)
            said.append(_beside(*change, "--config", repository))
            return subject

        with monkeypatch.context() as patch:
            patch.setattr(Vault, "subject_for", meanwhile)
            done = run("index", "add", tmp_path / "late", "--config", repository)
        assert done.code == 0
        ((code, line),) = said
        assert code == 1
        assert "'dicomnode index add'" in line
        assert line.count("\n") == 1
        assert ID not in line
        assert (tmp_path / "var" / "vault.key").read_text() == key
        node = Node(load_settings(repository))
        assert len(node.catalogue.studies_of(pseudonym(repository))) == 2  # nothing under a name that leads nowhere
        assert run(*change, "--config", repository).code == 0  # and afterwards it goes through

    def test_studies_are_not_added_while_a_patient_changes_but_by_several_at_once(self, repository, tmp_path):
        node = Node(load_settings(repository))
        words = ("index", "add", tmp_path / "in", "--config", repository)
        with node.lock("patients"):
            done = run(*words)
            assert done.code == 1
            assert "'dicomnode vault merge'" in done.error()
        with node.lock("patients", shared=True):
            assert run(*words).code == 0
            study = ("index", "remove", "--study", "1.2.3", "--config", repository)
            assert "no such study" in run(*study).error()  # no pseudonym changes by it


def _beside(*words: object) -> tuple[int, str]:
    """Run a command as a process of its own; exit code and standard error."""
    command = [sys.executable, "-m", "dicomnode.cli", *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr

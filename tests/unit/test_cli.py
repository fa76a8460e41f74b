"""The commands: help with an example, one JSON object, one line for an error, and exit codes 0, 1 and 2."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from archive_samples import STUDY, an_answer
from workflow_samples import slice_picture

from dicomnode import __version__
from dicomnode.archive import schema
from dicomnode.cli import main
from dicomnode.cli.app import app
from dicomnode.cli.options import print_json, print_table
from dicomnode.cli.query import verdict_lines
from dicomnode.cli.train import as_typed
from dicomnode.config import load_settings
from dicomnode.domain import (
    Answer,
    Case,
    Finding,
    FindingStatus,
    ModelId,
    Pseudonym,
    PseudoUid,
    Role,
    Shows,
    Verdict,
    VerdictKind,
)
from dicomnode.errors import InputError
from dicomnode.models.embedder import Embedder
from dicomnode.models.manifest import read_manifest
from dicomnode.models.packing import CARD_SECTIONS
from dicomnode.node import Node, packs_folder
from dicomnode.testing import free_port, sample_repository, sample_study, write_study

PATIENTS = 3
CR_STORAGE = "1.2.840.10008.5.1.4.1.1.1"
EXAMPLE = re.compile(r"^Example: (dicomnode .+)$", re.MULTILINE)


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words."""
    group = typer.main.get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


class Bands(torch.nn.Module):
    """A network in a line: the mean of each of eight bands of a slice."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(images.shape[0], 8, -1).mean(2) + 0.01


def test_a_card_tells_the_options_of_its_training_and_no_folder() -> None:
    (training,) = [command for words, command in commands() if words == ("train", "xception")]
    typed = "--data /d --cenet /r --out /o --form literal --freeze --seed 3 --pack /p/mine --json"
    told = as_typed(training.make_context("xception", typed.split()))
    for words in ("dicomnode train xception", "--form literal", "--freeze", "--seed 3", "--epochs 30", "--pack PACK"):
        assert words in told
    assert "/" not in told and "json" not in told


def test_no_help_loses_a_word_in_brackets() -> None:
    """Typer takes "[deid]" for a colour and shows nothing."""
    told = [p.help or "" for _, command in commands() for p in command.params]
    assert [text for text in told if re.search(r"(?<!\\)\[[a-z]", text)] == []
    lost = []
    for words, command in commands():
        shown = shown_help(*words)
        for text in (command.help, *(p.help or "" for p in command.params)):
            in_brackets = re.findall(r"\[[^\[\]]*\]", " ".join(text.replace("\\[", "[").split()))
            lost += [(words, found) for found in in_brackets if found not in shown]
    assert lost == []
    assert "slices [n, 224, 224] in 0..1 and gives vectors [n, dim]." in shown_help("models", "pack")
    listed = shown_help("models")  # where each command has its first line
    assert listed.count("(needs dicomnode[train])") == 2
    assert "vectors [n, dim]." in listed


def shown_help(*words: str) -> str:
    """A help as a wide terminal shows it, in one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "300")
        return " ".join(run(*words, "--help").out.replace("\u2502", " ").split())


ALL = [pytest.param(words, command, id=" ".join(words)) for words, command in commands()]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one object that was printed."""
        return json.loads(self.out)

    def error(self) -> str:
        """The one line that was said."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in self.err
        return lines[0]


def run(*arguments: str | Path) -> Done:
    """A command in this process, through its entry point."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    assert isinstance(left.value.code, int)
    return Done(left.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def _own_surroundings(no_settings_from_outside):
    """An empty working folder."""


@pytest.fixture(scope="module", autouse=True)
def _model_loaded_once():
    """The real model, loaded by the first command that needs it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(Embedder, "load", functools.cache(Embedder.load))
    yield
    patch.undo()


@dataclass(frozen=True)
class Repository:
    """A node's folder with some indexed phantoms, one answer and one held item."""

    folder: Path
    settings: Path
    added: Done

    def run(self, *arguments: str | Path) -> Done:
        return run(*arguments, "--config", self.settings)

    def node(self) -> Node:
        return Node(load_settings(self.settings))


def write_settings(folder: Path, text: str = "") -> Path:
    path = folder / "node.toml"
    path.write_text(
        f"[node]\ndata_dir = {json.dumps(str(folder / 'var'))}\n[dicom]\nport = {free_port()}\npeers = []\n"
        f"[web]\nport = {free_port()}\n[deid]\nworkers = 1\n{text}"
    )
    return path


def with_pack(repository: Repository, pack: str, folder: Path) -> Path:
    """The repository's settings with another ``[models] pack``."""
    settings = folder / "other-pack.toml"
    settings.write_text(f"{repository.settings.read_text('utf-8')}\n[models]\npack = '{pack}'\n", "utf-8")
    return settings


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Repository:
    folder = tmp_path_factory.mktemp("node")
    settings = write_settings(folder)
    findings = sample_repository(folder / "studies", PATIENTS, slices=2, matrix=64)
    added = run("index", "add", folder / "studies", "--findings", findings, "--json", "--config", settings)
    made = Repository(folder, settings, added)
    node = made.node()
    answer = node.answers.add(STUDY, [PseudoUid(f"{STUDY}.1")], an_answer(), role=Role.QUERY)
    node.answers.add_result(answer.id, "sr", "pacs")
    node.answers.set_accession(answer.id, node.vault.keyed_hash("accession", "ACC-1"))
    node.quarantine.hold("audit", "something was left", place="(0010,0010)", advice="set [deid] options")
    return made


class TestEveryCommand:
    @pytest.mark.parametrize(("words", "command"), ALL)
    def test_has_help_with_an_example_that_it_understands(self, words, command):
        done = run(*words, "--help")
        assert (done.code, done.err) == (0, "")
        assert "--config" in done.out
        examples = EXAMPLE.findall(command.help)
        assert examples, "no example"
        for example in examples:
            arguments = shlex.split(example)[1 + len(words) :]
            assert example.startswith(f"dicomnode {' '.join(words)}")
            command.make_context(" ".join(words), arguments).close()  # raises where an option is unknown

    @pytest.mark.parametrize(("words", "command"), ALL)
    def test_says_what_each_argument_and_option_is_for(self, words, command):
        assert [p.name for p in command.params if p.name != "help" and not p.help] == []

    @pytest.mark.parametrize(("words", "command"), ALL)
    def test_refuses_an_unknown_option_in_one_line(self, words, command):
        done = run(*words, "--no-such-option")
        assert done.code == 2
        assert f"dicomnode {' '.join(words)}" in done.error()

    @pytest.mark.parametrize(("words", "command"), ALL)
    def test_refuses_an_unknown_setting_in_one_line_that_names_it(self, words, command, tmp_path):
        settings = tmp_path / "node.toml"
        settings.write_text("[dicom]\nprot = 1\n")
        (tmp_path / "file").write_text("")
        needed = ["1" if p.name in ("id_",) else str(tmp_path / "file") for p in command.params if p.required]
        given = []
        for parameter in (p for p in command.params if p.required):
            value = "1" if parameter.name in ("id_", "dim") else str(tmp_path / "file")
            given += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
        extra = {"deid": ["--dry-run", needed[0] if needed else str(tmp_path)]}.get(words[0], [])
        extra += {("results", "find"): ["--study", "1"], ("index", "remove"): ["--study", "1"]}.get(words, [])
        done = run(*words, *given, *extra, "--config", settings)
        assert done.code == 2, done
        assert "[dicom] prot" in done.error()


class TestUsage:
    def test_no_arguments_show_the_help(self):
        done = run()
        assert done.code == 2
        assert "index" in done.out
        assert done.err == ""

    def test_a_query_with_a_folder_without_a_file_is_a_mistake_of_the_caller(self, tmp_path):
        (tmp_path / "empty" / "below").mkdir(parents=True)
        done = run("query", tmp_path / "empty", "--config", write_settings(tmp_path))
        assert (done.code, done.out) == (2, "")
        assert f"{tmp_path / 'empty'}: there is no file in this folder" in done.error()
        assert not (tmp_path / "var").exists()

    def test_a_group_alone_shows_its_commands(self):
        done = run("results")
        assert done.code == 2
        assert "resend" in done.out

    def test_the_version_is_told(self):
        assert run("--version") == Done(0, f"dicomnode {__version__}\n", "")

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["nosuch"], "nosuch"),
            (["query"], "path"),
            (["query", "x", "-k", "many"], "-k"),
            (["query", "x", "-k", "0"], "-k"),
            (["query", "nosuch.dcm"], "nosuch.dcm"),
            (["serve", "--role", "cook"], "--role"),
            (["results", "show", "x"], "ID"),
            (["results", "find"], "--accession or --study"),
            (["results", "find", "--study", "1", "--accession", "2"], "--accession or --study"),
            (["index", "add", "nosuch"], "nosuch"),
            (["index", "add", ".", "--findings", "absent.csv"], "absent.csv"),
            (["index", "remove"], "--study or --patient"),
            (["deid", "x"], "--out"),
            (["deid", "--dry-run"], "file or folder"),
            (["deid", "nosuch", "--dry-run"], "nosuch"),
            (["doctor", "cure"], "cure"),
            (["doctor", "route"], "file"),
            (["train", "cenet", "--data", "d", "--out", "o", "--encoder", "vgg"], "--encoder"),
            (["train", "cenet", "--data", "nowhere", "--out", "run"], "slices.csv"),
            (["train", "xception", "--data", "nowhere", "--cenet", "run", "--out", "run"], "labels.csv"),
            (["config", "check", "--config", "absent.toml"], "absent.toml"),
        ],
    )
    def test_what_cannot_be_used_is_one_line_and_exit_2(self, arguments, named):
        done = run(*arguments)
        assert (done.code, done.out) == (2, "")
        assert named in done.error()

    def test_an_unknown_variable_of_the_environment_is_exit_2(self, monkeypatch):
        monkeypatch.setenv("DICOMNODE__DICOM__PROT", "1")
        done = run("config", "check")
        assert done.code == 2
        assert "DICOMNODE__DICOM__PROT" in done.error()

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["results", "show", "99"], "result 99"),
            (["results", "resend", "99"], "result 99"),
            (["quarantine", "show", "99"], "quarantine 99"),
            (["quarantine", "release", "99"], "quarantine 99"),
            (["quarantine", "discard", "99"], "quarantine 99"),
            (["index", "remove", "--study", "2.25.99"], "no such study"),
            (["index", "exclude", "--patient", "DN-NOBODY"], "no such patient"),
            (["models", "verify", "nosuch"], "nosuch"),
        ],
    )
    def test_what_fails_is_one_line_and_exit_1(self, arguments, named, tmp_path):
        (tmp_path / "folder").mkdir()
        done = run(*arguments)
        assert done.code == 1
        assert named in done.err.splitlines()[-1]
        assert "Traceback" not in done.err

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (
                ["--dry-run", "--report", "absent/r.json"],
                "--report absent/r.json: its folder does not exist (make it first)",
            ),
            (["--out", "file"], "--out file: it is a file"),
            (["--out", "file/below"], "--out file/below: the folder cannot be made (Not a directory)"),
            (["--out", "/proc/foo/bar"], "--out /proc/foo/bar: the folder cannot be made (No such file or directory)"),
        ],
    )
    def test_a_place_where_nothing_can_be_written_is_told_before_anything_is_read(
        self, options, line, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").touch()
        write_study(sample_study(1, matrix=64), tmp_path / "s")
        done = run("deid", "s", *options)
        assert done.code == 2
        assert line in done.error()
        assert {p.name for p in tmp_path.iterdir()} == {"file", "s"}

    def test_a_fault_of_the_program_is_one_line_without_what_it_was_about(self, monkeypatch):
        def broken(*_: object) -> None:
            raise RuntimeError("Doe^Jane")

        monkeypatch.setattr("dicomnode.cli.config.load_settings", broken)
        done = run("config", "show")
        assert done.code == 1
        assert "RuntimeError in" in done.error()
        assert "Doe" not in done.err

    def test_a_reader_that_goes_away_is_no_fault(self):
        command = [sys.executable, "-m", "dicomnode.cli", "config", "show"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(60) == 1


class TestPrinting:
    def test_names_of_settings_in_brackets_are_printed(self, repository):
        shown = repository.run("quarantine", "show", "1")
        assert "advice: set [deid] options" in shown.out
        listed = repository.run("quarantine", "list")
        assert "set [deid] options" in listed.out

    def test_a_table_that_is_no_terminal_is_tabs_and_nothing_is_cut(self, capsys):
        print_table("t", ["a", "b"], [["x" * 300, "[bold]"]])
        assert capsys.readouterr().out == "a\tb\n" + "x" * 300 + "\t[bold]\n"

    def test_json_holds_paths_and_other_scripts_as_they_are(self, capsys):
        print_json({"path": Path("/a/b"), "name": "ñ 山"})
        said = capsys.readouterr().out
        assert json.loads(said) == {"path": "/a/b", "name": "ñ 山"}
        assert "山" in said


class TestJson:
    def test_index_add(self, repository):
        assert repository.added.code == 0, repository.added
        data = repository.added.json()
        assert (data["studies"], data["instances"], data["findings"]) == (PATIENTS, 2 * PATIENTS, 2)
        assert data["skipped"] == {"not DICOM": 1}  # the findings file itself
        again = repository.run("index", "add", repository.folder / "studies", "--json")
        assert (again.code, again.json()["studies"], again.json()["already"]) == (0, 0, PATIENTS)

    def test_index_add_of_nothing_that_can_be_added_is_exit_1(self, repository, tmp_path):
        (tmp_path / "x.txt").write_text("no")
        done = repository.run("index", "add", tmp_path, "--json")
        assert (done.code, done.json()["studies"]) == (1, 0)
        done = repository.run("index", "add", tmp_path)
        assert (done.code, done.out) == (1, "")
        assert done.err.splitlines()[0] == "skipped: 1 files: not DICOM"
        assert done.err.splitlines()[-1].startswith(f"error: {tmp_path}: nothing was found to add")

    def test_index_add_says_what_was_added_and_why_there_are_fewer_vectors(self, tmp_path):
        settings = write_settings(tmp_path)
        files = write_study(sample_study(30, matrix=64), tmp_path / "study")
        shutil.copy(files[0], tmp_path / "study" / "copy.dcm")
        done = run("index", "add", tmp_path / "study", "--config", settings)
        assert done.code == 0, done
        assert "added 1 studies, 30 instances, 24 vectors" in done.out
        assert "1 files are copies of others" in done.out
        assert "24 key slices of 30 images are embedded: at most 24 a series" in done.out

    def test_index_add_says_how_labels_were_recorded(self, tmp_path):
        settings = write_settings(tmp_path)
        for n in range(2):
            slice_picture(n).save(tmp_path / f"{n}.png")
        (tmp_path / "labels.csv").write_text("path,label\n0.png,COVID\n1.png,normal\n")
        done = run("index", "add", tmp_path / "labels.csv", "--config", settings)
        assert "labels of the added cases: COVID: present 1; normal: none 1" in done.out

    def test_index_add_names_the_images_of_a_table_that_it_left_out_and_fails(self, tmp_path):
        settings, table = write_settings(tmp_path), tmp_path / "labels.csv"
        slice_picture(0).save(tmp_path / "0.png")
        lines = [f"b{n}.png,COVID" for n in range(60)]
        table.write_text("\n".join(["path,label,pateint", "0.png,COVID,p1", *lines]))
        done = run("index", "add", table, "--config", settings)
        assert done.code == 1
        _, *told = done.err.splitlines()  # the vault was made
        assert told[0] == "skipped: 60 files: no such file"
        assert told[1].startswith(f"{table}: column 'pateint' is not known and not used (known: path, label, patient")
        assert told[2] == f"{table}:3: b0.png: left out: no such file"
        assert told[-1] == "... and 10 more rows; --json names all"
        assert "added 1 studies" in done.out
        again = run("index", "add", table, "--json", "--config", settings)
        assert (again.code, again.json()["already"], len(again.json()["left_out"])) == (1, 1, 60)
        table.write_text("path,label\nb0.png,COVID\n")
        done = run("index", "add", table, "--config", settings)
        assert (done.code, done.err.splitlines()[-1]) == (1, f"error: {table}: none of its images could be added")

    def test_index_add_names_the_rows_of_findings_that_it_left_out_and_fails(self, repository, tmp_path):
        table = tmp_path / "f.csv"
        table.write_text("study,system,code,display\n1.2.840.99999,SCT,27925004,Nodule\n")
        done = repository.run("index", "add", repository.folder / "studies", "--findings", table)
        assert done.code == 1
        assert done.err.splitlines()[-1] == f"{table}:2: left out: its study is not here"
        assert f"{PATIENTS} studies were there already" in done.out
        assert "99999" not in done.out + done.err
        (tmp_path / "empty").mkdir()
        done = repository.run("index", "add", tmp_path / "empty", "--findings", table)
        assert done.code == 1
        assert f"{tmp_path / 'empty'}: nothing was found to add" in done.err.splitlines()[-1]
        table.write_text("study;system;code;display\n")
        line = repository.run("index", "add", repository.folder / "studies", "--findings", table).error()
        assert line.endswith("column 'study' is missing (columns: study;system;code;display) (save it with commas)")

    def test_index_status(self, repository):
        data = repository.run("index", "status", "--json").json()
        assert set(data) >= {"studies", "patients", "instances", "vectors", "tail", "model_id", "snapshot"}
        assert (data["studies"], data["patients"], data["snapshot"]) == (PATIENTS, PATIENTS, None)
        assert data["vectors"] == data["tail"] == 2 * PATIENTS

    def test_index_verify_and_rebuild(self, repository):
        done = repository.run("index", "verify", "--json")
        assert (done.code, done.json()) == (0, {"ok": True, "problems": []})
        data = repository.run("index", "rebuild", "--json").json()
        assert data["embedded"] == 0
        assert data["vectors"] == 2 * PATIENTS

    def test_query(self, repository, tmp_path):
        study = sample_study(2, matrix=64, patient_id="ASKING", seed=77)
        write_study(study, tmp_path / "query")
        done = repository.run("query", tmp_path / "query", "-k", "2", "--json")
        assert done.code == 0
        data = done.json()
        wanted = {"query", "model_id", "verdict", "p", "no_similar_case", "calibrated", "cases"}
        assert set(data) >= wanted
        assert (data["verdict"], data["p"], data["no_similar_case"]) == ("repository-too-small", None, False)
        assert [c["rank"] for c in data["cases"]] == [1, 2]
        case = {"rank", "similarity", "subject", "study_uid", "modality", "status", "findings", "matches"}
        for found in data["cases"]:
            assert set(found) >= case
            assert 0 <= found["similarity"] <= 1
            assert all(set(m) == {"query_instance", "instance", "similarity"} for m in found["matches"])
            assert all(set(f) == {"system", "code", "display"} for f in found["findings"])
        assert "ASKING" not in done.out + done.err
        assert study[0].StudyInstanceUID not in done.out + done.err

    def test_a_query_that_cannot_be_read_is_named(self, repository, tmp_path):
        picture = tmp_path / "cut.png"
        slice_picture().save(picture)
        picture.write_bytes(picture.read_bytes()[:-2000])
        for typed in (picture, tmp_path):
            line = repository.run("query", typed).error()
            assert line == f"error: {picture}: the picture is damaged or cut short"

    def test_query_of_words_finds_the_cases_that_have_them(self, repository, tmp_path):
        slice_picture().save(tmp_path / "a.png")
        data = repository.run("query", tmp_path / "a.png", "--text", "nodule", "--json").json()
        assert [c["findings"][0]["display"] for c in data["cases"]] == ["Nodule"]
        assert repository.run("query", tmp_path / "a.png", "--text", "nothing-has-this", "--json").json()["cases"] == []

    def test_query_of_words_says_that_the_verdict_is_about_the_whole_repository(self, repository, tmp_path):
        slice_picture().save(tmp_path / "a.png")
        told = (
            'Only cases with "nodule" among their findings are listed. The verdict is about the whole repository, not'
        )
        lines = repository.run("query", tmp_path / "a.png", "--text", "nodule").out.splitlines()
        assert (lines[0].split(":")[0], lines[1]) == ("repository-too-small", f"{told} about these cases.")
        assert "whole repository" not in repository.run("query", tmp_path / "a.png").out
        (one,) = an_answer().cases
        asked = {"modality": "CT", "text": "nodule"}
        found = Answer(asked, ModelId("m"), Verdict(VerdictKind.SIMILAR, 0.4, "as near"), (one,), 22)
        assert verdict_lines(found)[1:] == [
            f"{told.replace('The verdict is', 'The verdict and its p are')} about these cases."
        ]
        assert len(verdict_lines(replace(found, cases=()))) == 1

    def test_a_query_that_cannot_be_searched_has_no_table(self, repository, tmp_path):
        (file,) = write_study(sample_study(1, matrix=64, Modality="US"), tmp_path)
        done = repository.run("query", file)
        assert done.code == 0
        (line,) = done.out.splitlines()
        assert line.startswith("not-searchable: The study holds no CT or MR slices")

    def test_query_of_words_that_no_case_has_says_so(self, repository, tmp_path):
        slice_picture().save(tmp_path / "a.png")
        done = repository.run("query", tmp_path / "a.png", "--text", "nothing-has-this")
        assert (done.code, done.out) == (0, 'No case in this repository has "nothing-has-this" among its findings.\n')

    @pytest.mark.parametrize(("asked", "cautioned"), [("MR", True), ("CT", False)])
    def test_query_says_where_no_case_is_of_the_modality_of_the_study(self, asked, cautioned):
        one = Case(1, 0.9, Pseudonym("P1"), PseudoUid("2.25.1"), PseudoUid("2.25.2"), "CT", FindingStatus.NONE, (), ())
        found = Answer({"modality": asked}, ModelId("m"), Verdict(VerdictKind.SIMILAR, 0.4, "as near"), (one,), 22)
        first, *more = verdict_lines(found)
        assert first == "similar (p = 0.400): as near; 22 cases searched"
        assert more == (["Caution: this study is MR, and none of the cases listed is."] if cautioned else [])

    def test_query_says_where_the_model_learnt_from_nothing_like_the_study(self):
        one = Case(1, 0.9, Pseudonym("P1"), PseudoUid("2.25.1"), PseudoUid("2.25.2"), "MR", FindingStatus.NONE, (), ())
        beyond = {"taught": [{"modality": "CT", "region": "CHEST"}], "shows": {"modality": "MR", "region": "HEAD"}}
        asked = {"modality": "MR", "untaught": beyond}
        found = Answer(asked, ModelId("m"), Verdict(VerdictKind.SIMILAR, 0.4, "as near"), (one,), 22)
        assert verdict_lines(found)[1:] == ["Caution: the model learnt from CT (chest) and was not taught MR (head)."]
        assert Answer.from_json(found.as_json()).untaught == found.untaught

    def test_query_for_people(self, repository, tmp_path):
        slice_picture().save(tmp_path / "a.png")
        done = repository.run("query", tmp_path / "a.png")
        assert done.code == 0
        assert done.out.count("\n") == 2 + PATIENTS
        assert "repository-too-small" in done.out

    def test_results(self, repository):
        (row,) = repository.run("results", "list", "--json").json()["results"]
        assert set(row) >= {"id", "study_uid", "state", "destination", "created"}
        assert (row["study_uid"], row["state"], row["destination"]) == (STUDY, "pending", "pacs")
        shown = repository.run("results", "show", str(row["id"]), "--json").json()
        assert shown["answer"]["cases"][0]["rank"] == 1
        assert "/v/r/" in shown["link"]
        for found in (["--study", STUDY], ["--accession", "ACC-1"]):
            assert repository.run("results", "find", *found, "--json").json()["results"] == [row]
        assert repository.run("results", "find", "--accession", "ACC-2", "--json").json() == {"results": []}
        assert repository.run("results", "find", "--accession", "ACC-2") == Done(0, "nothing found\n", "")
        assert row["created"] in repository.run("results", "list").out

    def test_a_result_is_shown_with_its_verdict_and_cautions_before_the_cases(self, repository):
        node = repository.node()
        beyond = {"taught": [{"modality": "CT", "region": "CHEST"}], "shows": {"modality": "MR", "region": "HEAD"}}
        said = replace(an_answer(), query={"modality": "MR", "slices": 1, "untaught": beyond})
        uid = PseudoUid("2.25.778")
        answer = node.answers.add(uid, [uid], said, role=Role.QUERY)
        result = node.answers.add_result(answer.id, "sr", "nobody")
        node.answers.mark_failed(result, "never to be sent")
        try:
            shown = repository.run("results", "show", str(result)).out.splitlines()
            assert shown[-4:-1] == [
                "similar (p = 0.400); 30 cases searched",
                "Caution: this study is MR, and none of the cases listed is.",
                "Caution: the model learnt from CT (chest) and was not taught MR (head).",
            ]
            assert shown[-4:-1] == verdict_lines(said)
            assert shown[-1].startswith("1. 0.900 ")
        finally:
            with node.answers.engine.begin() as db:
                db.execute(schema.results.delete().where(schema.results.c.id == result))

    def test_findings_are_told_once_and_unknown_is_no_blank(self, repository):
        node = repository.node()
        first = an_answer().cases[0]
        nodule = (Finding("SCT", "27925004", "Nodule"), Finding("I10", "R91.1", "Nodule"))
        cases = (
            replace(first, rank=1, status=FindingStatus.PRESENT, findings=nodule),
            replace(first, rank=2, status=FindingStatus.UNKNOWN, findings=()),
            replace(first, rank=3, status=FindingStatus.NONE, findings=()),
        )
        uid = PseudoUid("2.25.777")
        answer = node.answers.add(uid, [uid], replace(an_answer(), cases=cases), role=Role.QUERY)
        result = node.answers.add_result(answer.id, "sr", "nobody")
        node.answers.mark_failed(result, "never to be sent")
        try:
            lines = repository.run("results", "show", str(result)).out.splitlines()[-3:]
            assert [line.split(f"{first.subject} ")[1] for line in lines] == ["Nodule", "unknown", "no finding"]
        finally:
            with node.answers.engine.begin() as db:
                db.execute(schema.results.delete().where(schema.results.c.id == result))

    def test_a_result_whose_object_is_gone_cannot_be_sent_again(self, repository):
        done = repository.run("results", "resend", "1")
        assert done.code == 1
        assert "send the study again" in done.error()

    def test_quarantine(self, repository):
        (item,) = [i for i in repository.run("quarantine", "list", "--json").json()["items"] if i["reason"] == "audit"]
        assert set(item) >= {"id", "reason", "state"}
        node = repository.node()
        decided = node.quarantine.hold("input", "one of index add")
        node.quarantine.set_state(decided, "discarded")
        tables = [repository.run("quarantine", "list", *more).out for more in ([], ["--all"])]
        assert [f"\n{decided}\tdiscarded" in table for table in tables] == [False, True]
        assert decided in [i["id"] for i in repository.run("quarantine", "list", "--json").json()["items"]]
        shown = repository.run("quarantine", "show", str(item["id"]), "--json").json()
        assert shown.pop("commands")[-1] == f"dicomnode quarantine discard {item['id']} --reason TEXT"
        assert shown == item

    def test_an_item_without_objects_cannot_be_released_but_discarded_once(self, repository):
        node = repository.node()
        item = str(node.quarantine.hold("input", "a file of 'index add'"))
        done = repository.run("quarantine", "release", item)
        assert done.code == 2
        assert "index add" in done.error()
        assert repository.run("quarantine", "discard", item).code == 0
        assert repository.run("quarantine", "discard", item, "--reason", "a test").code == 2
        trail = "".join(p.read_text() for p in (repository.folder / "var" / "audit").iterdir())
        assert trail.count("quarantine-discarded") == trail.count("not stated") == 1

    def test_models(self, repository):
        (pack,) = repository.run("models", "list", "--json").json()["packs"]
        assert (pack["name"], pack["active"]) == ("cenet-xception", True)
        data = repository.run("models", "verify", "--json").json()
        assert data == {"ok": True, "name": "cenet-xception", "model_id": pack["model_id"]}
        folder = packs_folder() / "cenet-xception"
        data = repository.run("models", "compare", folder, folder, "--json").json()
        assert (data["overlap_at_10"], data["studies"], data["skipped"]) == (1.0, PATIENTS, 0)
        assert data["precision_at_10"] == {"one": None, "other": None}
        assert "20 labelled patients" in repository.run("models", "compare", folder, folder).out

    def test_models_are_packed_activated_taken_back_and_discarded(self, repository, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "nice", lambda _by: 0)  # the command's process is the tests' own here
        program = torch.export.export(
            Bands().eval(), (torch.zeros(2, 224, 224),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        torch.export.save(program, tmp_path / "bands.pt2")
        (tmp_path / "card.md").write_text("".join(f"## {section}\n\nof a test\n\n" for section in CARD_SECTIONS))
        packing = ("models", "pack", tmp_path / "bands.pt2", "--name", "bands", "--dim", "8", "--card")
        assert repository.run(*packing, tmp_path / "absent.md").code == 2
        wrong = repository.run(*packing, tmp_path / "card.md", "--taught", "CT:KNEECAP").error()
        assert "'CT:KNEECAP' is not MODALITY:REGION" in wrong and "LIMB" in wrong
        made = repository.run(*packing, tmp_path / "card.md", "--taught", "ct:chest", "--taught", "CR", "--json").json()
        assert read_manifest(Path(made["path"])).taught == (Shows("CT", "CHEST"), Shows("CR"))
        radiograph = sample_study(1, matrix=64, BurnedInAnnotation="NO", Modality="CR", SOPClassUID=CR_STORAGE)
        write_study(radiograph, tmp_path / "cr")
        asked = repository.run("query", tmp_path / "cr", "--json").json()
        assert (asked["verdict"], asked["cases"]) == ("not-searchable", [])
        assert "nothing is overwritten" in repository.run(*packing, tmp_path / "card.md").error()
        states = {p["name"]: p["state"] for p in repository.run("models", "list", "--json").json()["packs"]}
        assert states == {"bands": "none", "cenet-xception": "active"}
        told = replace(repository, settings=with_pack(repository, "bands", tmp_path)).run("doctor", "--json").json()
        (of_index,) = [check for check in told["checks"] if check["check"] == "index"]
        assert (of_index["state"], of_index["advice"]) == ("fail", "dicomnode models activate bands")
        done = repository.run("models", "activate", "bands", "--json").json()
        assert done == {"active": made["model_id"], "embedded": PATIENTS, "left_out": 0}
        asked = repository.run("query", tmp_path / "cr", "--json").json()
        assert (asked["query"]["modality"], len(asked["cases"]), "untaught" in asked["query"]) == (
            "CR",
            PATIENTS,
            False,
        )
        told = repository.run("models", "status", "--json").json()
        assert (told["active"], told["taking_over"]) == (made["model_id"], False)
        assert [m["state"] for m in told["models"]] == ["active", "complete"]
        assert repository.run("models", "discard", "bands").code == 2
        back = repository.run("models", "activate", "cenet-xception", "--json").json()
        assert back["embedded"] == 0
        assert repository.run("models", "discard", "bands", "--json").json()["discarded"] > 0
        assert "no vectors here" in repository.run("models", "discard", "bands").error()
        assert [m["state"] for m in repository.run("models", "status", "--json").json()["models"]] == ["active"]
        assert repository.run("index", "verify").code == 0
        kept = repository.folder / "var" / "packs"  # what has vectors outlives the pack that an upgrade replaces
        assert {read_manifest(p).name for p in kept.iterdir()} >= {"cenet-xception"}
        shutil.rmtree(made["path"])

    def test_a_pack_of_another_format_hides_no_other(self, repository):
        strange = repository.folder / "var" / "packs" / "strange"
        strange.mkdir(parents=True)
        (strange / "manifest.json").write_text('{"format": 2}')
        done = repository.run("models", "list", "--json")
        shutil.rmtree(strange)
        assert done.code == 1
        assert "cenet-xception" in {p["name"] for p in done.json()["packs"] if p["active"]}
        line = f"{strange / 'manifest.json'}: has pack format 2; this version reads 1"
        assert (done.json()["unreadable"], done.error()) == ([line], f"error: {line}")

    def test_nothing_is_kept_of_a_pack_that_is_refused(self, repository, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "nice", lambda _by: 0)
        damaged, kept = tmp_path / "damaged", repository.folder / "var" / "packs"
        shutil.copytree(packs_folder() / "cenet-xception", damaged)
        (damaged / "golden.safetensors").write_bytes(b"x")
        before = sorted(kept.glob("*"))
        assert str(damaged) in repository.run("models", "activate", damaged).error()
        assert sorted(kept.glob("*")) == before

    def test_config(self, repository):
        checked = repository.run("config", "check", "--json").json()
        assert checked.items() >= {"ok": True, "file": str(repository.settings)}.items()
        assert [w["line"] for w in checked["warnings"]] == ["no peer takes results"]
        assert checked["data_dir"] == str(repository.folder / "var")
        data = repository.run("config", "show", "--json").json()
        assert set(data) >= {"node", "dicom", "deid", "vault", "models", "index", "retrieval", "report", "web"}

    def test_config_check_refuses_what_the_recipe_cannot_honour(self, tmp_path):
        settings = write_settings(tmp_path, 'options = ["clean-graphics"]\n')
        done = run("config", "check", "--config", settings)
        assert done.code == 2
        assert "clean-graphics" in done.error()

    def test_config_check_misses_the_key_of_a_vault(self, tmp_path):
        settings = tmp_path / "s.toml"
        settings.write_text(
            f"[node]\ndata_dir = '{tmp_path / 'var'}'\n[vault]\nkey_file = '{tmp_path / 'key'}'\n", "utf-8"
        )
        assert run("config", "check", "--config", settings).code == 0  # both are made at the first start
        _ = Node(load_settings(settings)).vault
        assert run("config", "check", "--config", settings).code == 0
        (tmp_path / "key").unlink()
        done = run("config", "check", "--config", settings)
        assert (done.code, str(tmp_path / "key") in done.error()) == (1, True)

    def test_config_check_and_doctor_warn_alike_where_no_peer_takes_results(self, tmp_path):
        settings = write_settings(tmp_path)
        checked = run("config", "check", "--json", "--config", settings)
        (warning,) = checked.json()["warnings"]
        assert (checked.code, warning["line"]) == (0, "no peer takes results")
        assert warning in run("doctor", "--json", "--config", settings).json()["checks"]
        settings.write_text(settings.read_text().replace("peers = []\n", ""))  # the example peer takes them
        assert run("config", "check", "--json", "--config", settings).json()["warnings"] == []

    def test_a_relative_data_folder_is_named_by_its_absolute_path(self, tmp_path):
        settings = write_settings(tmp_path)
        settings.write_text(settings.read_text().replace(json.dumps(str(tmp_path / "var")), '"var"'))
        done = run("config", "check", "--config", settings)
        assert done.code == 0
        assert f"data_dir: {tmp_path / 'var'}" in done.out
        assert f"warn [node] data_dir 'var' is relative: here it is {tmp_path / 'var'}" in done.out
        assert str(tmp_path / "var") in run("config", "show", "--config", settings).out
        made = run("index", "remove", "--study", "1", "--config", settings)
        assert f"vault created: {tmp_path / 'var' / 'identified' / 'vault.sqlite3'}" in made.err
        assert f"its key is {tmp_path / 'var' / 'vault.key'}" in made.err

    def test_doctor(self, repository):
        done = repository.run("doctor", "--json")
        data = done.json()
        assert (done.code, data["ok"]) == (0, True), data
        assert all(set(c) == {"check", "state", "line", "advice"} for c in data["checks"])

    def test_doctor_says_no_with_exit_1_and_the_advice(self, repository):
        key = repository.folder / "var" / "vault.key"
        key.chmod(0o644)
        try:
            done = repository.run("doctor")
        finally:
            key.chmod(0o600)
        assert done.code == 1
        assert f"-> chmod 600 {key}" in done.out

    def test_doctor_route(self, repository, tmp_path):
        (file,) = write_study(sample_study(1, matrix=64), tmp_path)
        done = repository.run("doctor", "route", file, "--json")
        assert (done.code, done.json()["ok"]) == (0, True)

    def test_deid(self, repository, tmp_path):
        (file,) = write_study(sample_study(1, matrix=64), tmp_path / "in")
        (tmp_path / "in" / "junk").write_text("no")
        done = repository.run("deid", tmp_path / "in", "--out", tmp_path / "out", "--json")
        assert done.code == 1
        data = done.json()
        assert set(data) >= {"files", "counts", "profile"}
        assert data["counts"] == {"ok": 1, "quarantined": 1, "failed": 0, "duplicates": 0, "skipped": 0}
        (ok,) = [f for f in data["files"] if f["status"] == "ok"]
        assert (ok["input"], Path(ok["output"]).is_file()) == (str(file), True)
        again = repository.run("deid", tmp_path / "in", "--out", tmp_path / "out", "--json", "--report-paths", "hashed")
        (hashed,) = [f for f in again.json()["files"] if f["status"] == "ok"]
        located = repository.run("deid", tmp_path / "in", "--locate", hashed["input"])
        assert (located.code, located.out) == (0, f"{file}\n")

    def test_deid_explain(self, repository, tmp_path):
        (file,) = write_study(sample_study(1, matrix=64, name="Doe^Jane"), tmp_path)
        done = repository.run("deid", "--explain", file, "--json")
        assert done.code == 0
        assert any("Patient's Name" in line for line in done.json()["attributes"])
        assert done.json()["pixels"].startswith("Pixel Data: copied as they are")
        assert "Doe" not in done.out
        out = repository.run("deid", "--explain", file).out
        assert "Patient's Name" in out
        assert "\nPixel Data: copied as they are" in out

    def test_training_prints_its_figures_as_one_object(self, tmp_path, monkeypatch):
        """A real run takes minutes (test_models_training has a short one): here what it returns is printed."""
        figures = {"checkpoint": tmp_path / "checkpoint.pt", "mean": {"lungs": 0.9}}
        monkeypatch.setattr("dicomnode.models.training.cenet.train_cenet", lambda _options: figures)
        done = run("train", "cenet", "--data", tmp_path, "--out", tmp_path, "--json")
        assert done.json() == {"checkpoint": str(tmp_path / "checkpoint.pt"), "mean": {"lungs": 0.9}}


class TestRepositoryCommands:
    def test_remove_and_exclude_are_recorded_and_done(self, tmp_path):
        settings = write_settings(tmp_path)
        sample_repository(tmp_path / "studies", 2, slices=1, matrix=64)
        assert run("index", "add", tmp_path / "studies", "--config", settings).code == 0
        node = Node(load_settings(settings))
        (one, patient, _), (two, _, _) = node.catalogue.study_sources()
        thumbnails = tmp_path / "var" / "thumbnails"
        assert len(list(thumbnails.rglob("*.webp"))) == 2
        assert run("index", "exclude", "--patient", patient, "--config", settings).code == 0
        assert len(list(thumbnails.rglob("*.webp"))) == 1
        assert run("index", "remove", "--study", two, "--config", settings).code == 0
        status = run("index", "status", "--json", "--config", settings).json()
        assert (status["studies"], status["excluded_patients"]) == (1, 1)
        assert not list(thumbnails.rglob("*.webp"))
        trail = "".join(p.read_text() for p in (tmp_path / "var" / "audit").iterdir())
        assert "case-excluded" in trail
        assert "case-removed" in trail
        assert run("index", "remove", "--patient", patient, "--config", settings).code == 0
        assert run("index", "status", "--json", "--config", settings).json()["studies"] == 0
        assert not list((tmp_path / "var" / "archive").rglob("*.dcm"))
        assert one


def test_the_line_of_an_error_names_place_and_advice(monkeypatch):
    def broken(*_: object) -> None:
        raise InputError("is damaged", place="file.dcm", advice="send it again")

    monkeypatch.setattr("dicomnode.cli.config.load_settings", broken)
    assert run("config", "show") == Done(1, "", "error: file.dcm: is damaged (send it again)\n")

"""``dicomnode user``: who may sign in, and that a password is never seen, listed or left in an argument."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from dicomnode.cli import main
from dicomnode.config import load_settings
from dicomnode.node import Node

PASSWORD = "correct horse battery"


@pytest.fixture
def settings(no_settings_from_outside, tmp_path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(
        f'[node]\ndata_dir = {json.dumps(str(tmp_path / "var"))}\n[web]\nport = 0\nauth = {{method = "users"}}\n'
    )
    return path


def run(monkeypatch, settings, *arguments, stdin=""):
    """(exit code, stdout, stderr) of a command in this process."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        main(["user", *arguments, "--config", str(settings)])
    return left.value.code, out.getvalue(), err.getvalue()


def add(monkeypatch, settings, name="anna", *more, password=PASSWORD):
    return run(monkeypatch, settings, "add", name, "--password-stdin", *more, stdin=f"{password}\n")


def events(settings) -> list[tuple[str, str]]:
    return [(e["event"], e.get("reason", "")) for e in Node(load_settings(settings)).audit.entries()]


def test_a_user_is_added_listed_and_disabled_and_all_three_are_written_down(monkeypatch, settings):
    assert add(monkeypatch, settings, "Anna", "--admin") == (0, "added\n", "")
    code, out, _ = run(monkeypatch, settings, "list", "--json")
    (user,) = json.loads(out)["users"]
    assert code == 0
    assert (user["name"], user["admin"], user["disabled"]) == ("anna", True, False)
    assert set(user) == {"name", "admin", "disabled", "created"}
    assert run(monkeypatch, settings, "disable", "anna")[0] == 0
    assert json.loads(run(monkeypatch, settings, "list", "--json")[1])["users"][0]["disabled"] is True
    said = [e for e in events(settings) if e[0] != "users-listed"]
    assert said == [("user-added", "user anna"), ("user-disabled", "user anna")]
    assert ("users-listed", "") in events(settings)


def test_the_list_is_a_table_without_any_hash(monkeypatch, settings):
    add(monkeypatch, settings)
    _, out, _ = run(monkeypatch, settings, "list")
    assert out.splitlines()[0].split("\t") == ["name", "admin", "disabled", "created"]
    assert out.splitlines()[1].startswith("anna\t\t\t")
    assert "argon2" not in out


def test_a_password_that_is_too_short_is_refused_and_nothing_is_added(monkeypatch, settings):
    code, _, err = add(monkeypatch, settings, password="short")
    assert code == 2
    assert "at least 12 characters" in err
    assert "short" not in err.replace("shorter", "")
    assert Node(load_settings(settings)).users.all() == []
    assert events(settings) == []


def test_a_name_that_cannot_be_one_is_refused_before_anything_is_written_down(monkeypatch, settings):
    assert add(monkeypatch, settings, "an na")[0] == 2
    assert events(settings) == []


def test_a_user_who_is_there_is_left_as_he_is(monkeypatch, settings):
    add(monkeypatch, settings)
    code, _, err = add(monkeypatch, settings, password="another password")
    assert code == 2
    assert "dicomnode user password anna" in err
    assert Node(load_settings(settings)).users.check("anna", PASSWORD)


def test_another_password_and_a_disabled_user_again(monkeypatch, settings):
    add(monkeypatch, settings)
    code, out, _ = run(monkeypatch, settings, "password", "anna", "--password-stdin", stdin="another password\n")
    assert (code, out) == (0, "changed; sessions are ended\n")
    assert Node(load_settings(settings)).users.check("anna", "another password")
    run(monkeypatch, settings, "disable", "anna")
    assert add(monkeypatch, settings)[1] == "added again\n"


@pytest.mark.parametrize("command", ["disable", "password"])
def test_a_user_who_is_not_there_is_named(monkeypatch, settings, command):
    more = ["--password-stdin"] if command == "password" else []
    code, _, err = run(monkeypatch, settings, command, "nobody", *more, stdin=f"{PASSWORD}\n")
    assert code == 1
    assert err.startswith("error: user nobody: there is no such user")


def test_without_a_terminal_the_way_to_give_a_password_is_told(monkeypatch, settings):
    code, _, err = run(monkeypatch, settings, "add", "anna")
    assert code == 2
    assert "--password-stdin" in err


def test_adding_a_user_where_sign_in_is_off_says_so(monkeypatch, settings):
    settings.write_text(settings.read_text().replace('auth = {method = "users"}', ""))
    assert "sign-in is off" in add(monkeypatch, settings)[1]


def read_until(terminal: int, prompt: str, seconds: float = 60) -> str:
    """What a terminal shows until it holds this; with "", until the program ends."""
    seen, until = "", time.monotonic() + seconds
    while time.monotonic() < until and not (prompt and prompt in seen):
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            read = os.read(terminal, 4096)
        except OSError:  # Linux says so where the program has ended
            break
        if not read:
            break
        seen += read.decode(errors="replace")
    return seen


@pytest.mark.parametrize(("second", "code"), [(PASSWORD, 0), ("something else", 2)])
def test_on_a_terminal_the_password_is_asked_for_twice_and_not_shown(settings, second, code):
    command = [sys.executable, "-m", "dicomnode.cli", "user", "add", "anna", "--config", str(settings)]
    pid, terminal = pty.fork()  # getpass asks the controlling terminal; the space comes once its echo is off
    if pid == 0:
        os.execv(command[0], command)
    seen = ""
    try:
        for prompt, typed in (("characters): ", PASSWORD), ("again: ", second)):
            seen += read_until(terminal, prompt)
            assert prompt in seen, seen
            os.write(terminal, f"{typed}\n".encode())
        seen += read_until(terminal, "")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(terminal)
    assert PASSWORD not in seen
    assert ("added" in seen) is (code == 0)
    assert ("differ" in seen) is (code == 2)

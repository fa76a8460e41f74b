"""No log line can identify a patient: unknown keys, odd values, exceptions and libraries are all reduced."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import structlog

import dicomnode
from dicomnode.domain import VerdictKind
from dicomnode.errors import InputError
from dicomnode.telemetry.logging import KEYS, Shape, describe, has_shape, keep_allowed

MARKER = "PLANTED^MARKER"
PACKAGE = Path(dicomnode.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def in_a_process(body: str) -> list[dict]:
    """Run code with logging configured at debug level; its lines of standard error, which must all be JSON."""
    script = "from dicomnode.telemetry.logging import configure_logging\nconfigure_logging('debug', json=True)\n"
    done = subprocess.run(
        [sys.executable, "-c", script + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    assert MARKER not in done.stdout + done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


def _refuse(line: str) -> None:
    raise InputError(line, place="folder/file.dcm")


def test_known_keys_with_fitting_values_are_kept():
    said = {"event": "study_done", "job": 7, "seconds": 1.5, "verdict": VerdictKind.NONE, "status": "A700", "row": None}
    kept = keep_allowed(None, "info", dict(said))
    assert kept == {**said, "verdict": "none"}


def test_unknown_keys_are_left_out_and_named():
    kept = keep_allowed(None, "info", {"event": "x", "patient_name": MARKER, "ds": object(), MARKER: 1})
    assert kept == {"event": "x", "dropped": ["ds", "patient_name", "unnamed"]}


@pytest.mark.parametrize("value", [MARKER, "Doe", "DOE JANE", "1.2.840.113619.2.5", "", {"a": 1}, b"x", "a" * 41])
def test_a_known_key_with_an_odd_value_is_left_out(value):
    assert keep_allowed(None, "info", {"event": "x", "reason": value})["dropped"] == ["reason"]


@pytest.mark.parametrize(
    ("value", "shape", "fits"),
    [
        (float("nan"), Shape.NUMBER, False),
        (True, Shape.NUMBER, True),
        ("PatientName", Shape.KEYWORD, True),
        ("Smith", Shape.KEYWORD, False),
        ("OSError", Shape.CLASS, True),
        ("Smith", Shape.CLASS, False),
        ("2.25.12345", Shape.UID, True),
        ("1.2.840.113619.2.5", Shape.UID, False),
        ("12345678", Shape.PSEUDONYM, False),
        ("engine.py:120", Shape.PLACE, True),
        ("cuda:0", Shape.PLACE, True),
        ("a\nb", Shape.LINE, False),
    ],
)
def test_shapes_hold(value, shape, fits):
    assert has_shape(value, shape) is fits


def test_an_event_that_is_a_sentence_is_not_an_event():
    assert keep_allowed(None, "info", {"event": f"received {MARKER}"})["event"] == "unnamed_event"


def test_an_exception_is_described_by_class_place_code_and_line():
    with pytest.raises(InputError) as raised:
        _refuse("not DICOM")
    said = describe(raised.value)
    assert said["error"] == "InputError"
    assert said["code"] == "input"
    assert said["line"] == "not DICOM"
    assert said["where"].startswith("test_telemetry_logging.py:")


def test_at_debug_level_no_way_of_logging_lets_the_marker_through():
    lines = in_a_process(f"""
        import logging, threading, warnings, structlog
        marker = {MARKER!r}
        log = structlog.get_logger("dicomnode.scp.store")
        log.debug("study_done", job=3, patient=marker, reason=marker)
        log.info("received %s", marker)
        log.info(f"received {{marker}}", stack_info=True)
        try:
            raise ValueError(marker)
        except ValueError:
            log.exception("step_failed", job=3)
        for name in ("pynetdicom.events", "pydicom", "deid", "dbos", "uvicorn.error", "uvicorn.access",
                     "sqlalchemy.engine", "alembic", "somebody.else"):
            library = logging.getLogger(name)
            library.setLevel(logging.DEBUG)
            library.debug("%s", marker)
            library.error(f"bad {{marker}}")
            library.error("bad %s %d", marker)
            try:
                raise KeyError(marker)
            except KeyError:
                library.exception("oh %s", marker)
        warnings.warn(marker)
        def thread():
            raise OSError(marker)
        t = threading.Thread(target=thread); t.start(); t.join()
        raise RuntimeError(marker)
    """)
    by_event = {line["event"]: line for line in lines}
    assert by_event["study_done"]["dropped"] == ["patient", "reason"]
    assert by_event["study_done"]["job"] == 3
    assert by_event["study_done"]["logger"] == "dicomnode.scp.store"
    assert by_event["step_failed"]["error"] == "ValueError"
    assert by_event["process_failed"]["error"] == "RuntimeError"
    assert by_event["thread_failed"]["error"] == "OSError"
    told = {line["logger"] for line in lines if line["event"] == "library_message"}
    assert {"pydicom", "dbos", "uvicorn.error", "sqlalchemy.engine", "py.warnings"} <= told
    assert not {"uvicorn.access", "pynetdicom.events"} & told


def test_a_command_does_not_tell_that_a_library_had_something_to_say():
    lines = in_a_process("""
        import logging, warnings
        import structlog
        configure_logging("warning", json=True, libraries=False)
        for name in ("pynetdicom.transport", "pydicom", "dbos", "somebody.else"):
            logging.getLogger(name).error("without content")
        warnings.warn("odd value")
        structlog.get_logger("dicomnode").warning("ours")
    """)
    assert [line["event"] for line in lines] == ["ours"]


def test_a_peer_that_is_not_there_is_told_by_our_error_alone():
    lines = in_a_process("""
        import structlog
        from dicomnode.errors import PeerError
        from dicomnode.scu.send import echo
        from dicomnode.testing import free_port
        from dicomnode.workflow.peers import Destination
        try:
            echo(Destination("archive", "PACS", "127.0.0.1", free_port(), True, ()), "NODE")
        except PeerError as exc:
            structlog.get_logger("dicomnode").warning("result_waits", peer="archive", line=exc.line)
    """)
    assert [line["event"] for line in lines] == ["result_waits"]
    assert "archive cannot be reached" in lines[0]["line"]


def test_real_libraries_that_quote_data_say_nothing_of_it():
    lines = in_a_process(f"""
        from pydicom import Dataset
        ds = Dataset()
        ds.StudyDate = {MARKER!r}
        ds.PatientAge = {MARKER!r}
        ds.StudyInstanceUID = {MARKER!r}
    """)
    assert {line["event"] for line in lines} == {"library_message"}


def test_dbos_adds_no_console_handler_of_its_own():
    assert (
        in_a_process("""
        import logging
        from dbos._logger import init_logger
        init_logger()
        assert [type(h).__name__ for h in logging.getLogger("dbos").handlers] == ["_LibraryHandler"]
    """)
        == []
    )


def test_lines_below_the_level_are_not_written():
    lines = in_a_process("""
        import structlog
        configure_logging("warning", json=True)
        structlog.get_logger("dicomnode").info("quiet")
        structlog.get_logger("dicomnode").warning("loud")
    """)
    assert [line["event"] for line in lines] == ["loud"]
    assert lines[0]["time"].endswith("Z")


def test_a_terminal_gets_readable_lines(monkeypatch):
    from dicomnode.telemetry import logging as ours

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    before, hooks = structlog.get_config(), (sys.excepthook, ours.threading.excepthook)
    monkeypatch.setattr(ours, "_reduce_libraries", lambda _handler: None)  # the test run keeps its own handlers
    out = Terminal()
    try:
        ours.configure_logging("info", stream=out)
        structlog.get_logger("dicomnode").info("study_done", job=3, name=MARKER)
    finally:
        structlog.configure(**before)
        sys.excepthook, ours.threading.excepthook = hooks
    assert "study_done" in out.getvalue()
    assert not out.getvalue().startswith("{")
    assert MARKER not in out.getvalue()


def logged_keys():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id in {"log", "_log"}:
                for keyword in node.keywords:
                    if keyword.arg not in (None, "exc_info"):
                        yield keyword.arg, f"{path.relative_to(PACKAGE)}:{node.lineno}"


def test_every_key_that_the_code_logs_is_in_the_registry():
    unknown = [f"{place}: {key}" for key, place in logged_keys() if key not in KEYS]
    assert unknown == []

"""Options and printing that every command shares."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dicomnode.config import load_settings, settings_file
from dicomnode.domain import REGION_WORDS, Finding, FindingStatus, Shows
from dicomnode.errors import DicomnodeError, UsageError
from dicomnode.node import Node
from dicomnode.telemetry.audit import AuditError, AuditEvent
from dicomnode.telemetry.logging import configure_logging

Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file; else $DICOMNODE_CONFIG, else config/dicomnode.toml, else defaults."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Taught = Annotated[
    list[str] | None,
    typer.Option(help="What its training images show, as CT:CHEST; repeatable. An answer to anything else says so."),
]

TELL_S = 30.0  # between two lines of progress where there is no terminal

# No markup: "[retrieval] k" is the name of a setting and "[x]" may be part of a path.
out = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)


_opened: ContextVar[ExitStack] = ContextVar("_opened")


def shows_of(text: str) -> Shows:
    """A value of ``Taught``: MODALITY, or MODALITY:REGION."""
    modality, _, region = text.upper().partition(":")
    if not re.fullmatch(r"[A-Z]{2,16}", modality) or (region and region not in REGION_WORDS):
        known = " ".join(REGION_WORDS)
        raise UsageError(f"--taught {text[:40]!r} is not MODALITY:REGION", advice=f"regions are {known}")
    return Shows(modality, region)


@contextmanager
def one_command() -> Iterator[None]:
    """Around a command: what ``open_node`` opens for it is closed at its end, however it ends."""
    with ExitStack() as opened:
        before = _opened.set(opened)
        try:
            yield
        finally:
            _opened.reset(before)


def open_node(config: Path | None) -> Node:
    """The node of the settings in force, closed when the command ends; of logs, our own warnings go to stderr."""
    settings = load_settings(config)
    level = "warning" if settings.node.log_level == "info" else settings.node.log_level
    configure_logging(level, libraries=False)
    node = Node(settings)
    _opened.get().callback(node.close)
    _opened.get().push(partial(_record_failure, node))
    return node


def _record_failure(node: Node, _kind: type[BaseException] | None, exc: BaseException | None, _trace: object) -> None:
    """What the audit trail was told before it was done was not done, or not wholly, where the command ends so."""
    if exc is None or (event := node.audit.last) is None:
        return
    word = exc.code if isinstance(exc, DicomnodeError) else type(exc).__name__
    try:
        node.record(AuditEvent.NOT_DONE, detail=f"{event}: {word}")
    except AuditError as fault:  # the error that ends the command is the one to be told last
        err.print(f"warning: {fault}")


def file_in_force(config: Path | None) -> Path | None:
    """Absolute path of the settings file, for child processes."""
    path = settings_file(config)
    return None if path is None else path.resolve()


def iso(seconds: float) -> str:
    """ISO 8601, UTC, of seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


# What is said of a case without findings; unknown never reads as none.
NO_FINDINGS = {FindingStatus.PRESENT: "", FindingStatus.NONE: "no finding", FindingStatus.UNKNOWN: "unknown"}


def told_once(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings by their text: one that several code systems name alike is told once."""
    told: dict[str, list[Finding]] = {}
    for finding in findings:
        told.setdefault(finding.display, []).append(finding)
    return told


def print_json(value: Any) -> None:
    """One JSON object on stdout; paths as text."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n")


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A plain table; nothing is cut off where the output is not a terminal."""
    if not out.is_terminal:
        for row in [columns, *rows]:
            sys.stdout.write("\t".join(row) + "\n")
        return
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    out.print(table)


@contextmanager
def progress_bar(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr with the time that is past and the time that remains; ``update(done, total)``.

    Where stderr is no terminal, a line now and then; nothing if ``quiet``.
    """
    if not quiet and not err.is_terminal:
        yield _line_now_and_then(what)
        return
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    with Progress(*columns, console=err, disable=quiet, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line_now_and_then(what: str) -> Callable[[int, int], None]:
    told = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_S:
            told = time.monotonic()
            err.print(f"{done} of {total} {what}")

    return update

"""How far a training is, for the one who waits: a bar with the time that remains on a terminal, log lines elsewhere.

Writes to standard error only, so that ``--json`` stays one object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)


def tell(line: str) -> None:
    """One line for the person at the terminal; labels and counts, never a patient."""
    _console().print(line)


@contextmanager
def steps_bar(done: int, total: int) -> Iterator[Callable[[str], None]]:
    """A bar over all steps of a run; ``advance(what)`` moves it by one. Nothing is drawn where there is no terminal."""
    console = _console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("training", total=total, completed=done)
        yield lambda what: bar.update(task, advance=1, description=what)

"""A CSV table as rows with their numbers, and what is wrong with its form: labels, findings, training's tables.

UTF-8, with or without the byte order mark that spreadsheets write. It judges the form alone: which columns are needed
and what stands in them is for those who read it. It never guesses where a row with too many cells was meant to be cut.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicomnode.errors import InputError, UsageError

Row = Mapping[str, str]
TOLD_COLUMNS = 20  # named in a line; the rest is counted
# No name of a column: a table without a header begins with a row, which may hold a patient's name, date or UID.
_NO_NAME = re.compile(r"\d{4}|\^|.{80}")


class DataProblems(InputError):
    """A table that cannot be trained on; ``problems`` are all its lines."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        one = len(problems) == 1
        line = problems[0] if one else f"has {len(problems)} problems, the first: {problems[0]}"
        super().__init__(f"{line}; nothing was written", place=str(path))


@dataclass(frozen=True, slots=True)
class CsvRows:
    """What a table holds.

    Attributes
    ----------
    names : columns of the header.
    rows : (number, cells by column, stripped); the header is row 1, and a cell that a row lacks is empty.
    problems : columns that are there twice, and rows with more cells than the header.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[int, Row], ...]
    problems: tuple[str, ...]


def read_csv(path: Path) -> CsvRows:
    """A table.

    Raises
    ------
    UsageError
        There is no such file.
    InputError
        It cannot be read, or is no CSV in UTF-8.
    """
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        names = tuple(reader.fieldnames or ())
        found = [(reader.line_num, row) for row in reader]
    except csv.Error as e:
        raise InputError(f"is not a readable CSV file: row {reader.line_num}: {e}", place=str(path)) from e
    # Spreadsheets leave empty names and cells behind the last column.
    problems = [f"column {name!r} is there twice" for name, times in Counter(names).items() if name and times > 1]
    problems += [
        f"row {number} has {len(names) + len(row[None])} cells, the header {len(names)}: quote a cell with a comma"
        for number, row in found
        if any(cell.strip() for cell in row.get(None, ()))
    ]
    rows = tuple((n, {k: (v or "").strip() for k, v in row.items() if k is not None}) for n, row in found)
    return CsvRows(names, rows, tuple(problems))


def needed_rows(path: Path, columns: Sequence[str]) -> tuple[tuple[int, Row], ...]:
    """Rows of a table of a sound form that has ``columns``; any others are theirs to judge who read it.

    Raises
    ------
    UsageError
        There is no such file.
    InputError
        It cannot be read, lacks one of ``columns``, has a problem of form or a NUL byte: the first is told.
    """
    table = read_csv(path)
    missing = next((name for name in columns if name not in table.names), None)
    if missing is not None:
        raise InputError(_lacks(missing, table.names), place=str(path), advice=_mend(missing, table.names))
    problems = list(table.problems)
    problems += [
        f"row {number} has a NUL byte in column {name!r}"
        for number, row in table.rows
        for name, cell in row.items()
        if "\0" in cell
    ]
    if problems:
        raise InputError(problems[0], place=str(path))
    return table.rows


def _lacks(missing: str, names: Sequence[str]) -> str:
    """That a column is missing, and which are there."""
    told = ["..." if _NO_NAME.search(n) else n if n.isprintable() else repr(n)[1:-1] for n in names if n]
    more = f", and {len(told) - TOLD_COLUMNS} more" if len(told) > TOLD_COLUMNS else ""
    return f"column {missing!r} is missing (columns: {', '.join(told[:TOLD_COLUMNS]) or 'none'}{more})"


def _mend(missing: str, names: Sequence[str]) -> str:
    """What to do where the columns are those that were meant, in another form."""
    if any(";" in name or "\t" in name for name in names):
        return "save it with commas"
    meant = next((name for name in names if name.strip().lower() == missing), None)
    return "" if meant is None else f"names are in small letters, without spaces: {missing!r}, not {meant!r}"


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as e:
        raise UsageError("no such file", place=str(path)) from e
    except IsADirectoryError as e:
        raise UsageError("is a folder, not a table", place=str(path)) from e
    except OSError as e:
        raise InputError(f"cannot be read ({e.strerror})", place=str(path)) from e
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        row = content.count(b"\n", 0, e.start) + 1
        raise InputError(
            f"is not a readable CSV file: row {row} is not UTF-8", place=str(path), advice="save it as CSV UTF-8"
        ) from e

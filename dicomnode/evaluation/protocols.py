"""Protocols as files: which images are the index, which are the queries, what is relevant, what is closed.

A protocol is a TOML file in ``config/protocols`` (shipped in the wheel). It may hold what a pack must not have been
trained on; where a pack's manifest names such data, the table says so beside the figure. Kinds: ``labels`` (LABELS.csv
files), ``lesion`` (lung and infection masks), ``organs`` (DICOM series by body region and modality).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dicomnode.errors import InputError, UsageError
from dicomnode.evaluation.labels import Checks, Row, read_rows
from dicomnode.evaluation.lesion import lesion_rows
from dicomnode.evaluation.organs import organ_rows
from dicomnode.evaluation.task import Rules

KINDS = ("labels", "lesion", "organs")
_HERE = Path(__file__).resolve().parent.parent
FOLDERS = (_HERE.parent / "config" / "protocols", _HERE / "_config" / "protocols")


@dataclass(frozen=True, slots=True)
class Protocol:
    """A protocol as read from its file.

    Attributes
    ----------
    trained_on : what a pack measured under it was trained on, in words.
    not_trained_on : words that must not occur among the names of a pack's training data.
    parts : the tables of the file that the kind reads.
    """

    name: str
    title: str
    about: str
    kind: str
    rules: Rules
    trained_on: str
    not_trained_on: tuple[str, ...]
    parts: Mapping[str, Any]

    def broken_by(self, about: Mapping[str, Any]) -> str:
        """Why a pack does not follow the protocol, by its manifest's ``about``; "" where nothing says so."""
        named = [str(d.get("name", "")) for d in about.get("data", []) if isinstance(d, Mapping)]
        for word in self.not_trained_on:
            for data in named:
                if word.lower() in data.lower():
                    return f"outside the protocol: this pack was trained on {data}"
        return ""


def find_protocol(name: str) -> Protocol:
    """A protocol by the name of its file, or by the path of one.

    Raises
    ------
    UsageError
        There is none of that name.
    InputError
        The file is not a protocol; the key is named.
    """
    for path in (*(folder / f"{name}.toml" for folder in FOLDERS), Path(name)):
        if path.suffix == ".toml" and path.is_file():
            return _read(path)
    raise UsageError(f"no protocol is called {name!r}; there are: {', '.join(names())}", place="--protocol")


def names() -> list[str]:
    """The protocols that come with the program."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")})


def _read(path: Path) -> Protocol:
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InputError("is not a TOML file that can be read", place=str(path)) from exc
    known = {"title", "about", "kind", "trained_on", "not_trained_on", "rules", "index", "queries", "masks", "series"}
    for key in raw:
        if key not in known:
            raise InputError(f"unknown key {key!r}", place=str(path))
    for key in ("title", "about", "kind"):
        if not isinstance(raw.get(key), str):
            raise InputError(f"key {key!r} is missing", place=str(path))
    if raw["kind"] not in KINDS:
        raise InputError(f"kind {raw['kind']!r} is none of {', '.join(KINDS)}", place=str(path))
    try:
        rules = Rules(graded=raw["kind"] == "lesion", **raw.get("rules", {}))
    except TypeError as exc:
        raise InputError("[rules] has an unknown key; known are close_group, close_near", place=str(path)) from exc
    parts: dict[str, Any] = {k: raw[k] for k in ("index", "queries", "masks", "series") if k in raw}
    forbidden = tuple(raw.get("not_trained_on", ()))
    return Protocol(
        path.stem, raw["title"], raw["about"], raw["kind"], rules, raw.get("trained_on", ""), forbidden, parts
    )


@contextmanager
def open_protocol(protocol: Protocol, data: Path, checks: Checks) -> Iterator[tuple[list[Row], list[Row]]]:
    """Index and query rows of a protocol on the data sets below ``data``; unpacked files live until the end.

    Raises
    ------
    InputError
        A data set, file or column is missing; the file is named.
    """
    if not data.is_dir():
        raise InputError("no such folder of data sets", place=str(data), advice="--data DIR")
    if protocol.kind == "lesion":
        yield lesion_rows(data, protocol.parts["masks"], checks)
    elif protocol.kind == "organs":
        with organ_rows(data, protocol.parts["series"], checks) as rows:
            yield rows, rows
    else:
        yield (
            _selected(data, protocol.parts["index"], checks),
            _selected(data, protocol.parts["queries"], checks),
        )


def _selected(data: Path, part: Mapping[str, Any], checks: Checks) -> list[Row]:
    """Rows of ``file`` where every column of ``where`` has its value, grouped and split by blocks of rows where asked.

    ``block``: rows of the file that are one group (neighbours of a file without patients); ``held_out``: [remainder,
    of]: rows (or blocks) whose number leaves this remainder; ``keep``: those ("in") or the others ("out").
    """
    path = data / part["file"]
    where: Mapping[str, str] = part.get("where", {})
    rows = read_rows(path, checks, needed=("path", "label", *where))
    block = int(part.get("block", 0))
    if block:
        rows = [replace(r, group=f"block{i // block:03d}") for i, r in enumerate(rows)]
    if "held_out" in part:
        remainder, of = part["held_out"]
        by = block if part.get("split_by_block", False) else 1
        inside = part["keep"] == "in"
        rows = [r for i, r in enumerate(rows) if ((i // by) % of == remainder) == inside]
    rows = [r for r in rows if all(r.columns.get(k) == v for k, v in where.items())]
    if not rows:
        raise InputError(f"no row has {dict(where)}", place=str(path))
    return rows

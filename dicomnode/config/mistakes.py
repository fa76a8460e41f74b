"""What is wrong in the settings, as one line that a person who types TOML by hand can act on.

Lists of tables (``[[dicom.peers]]``) are told by the table's own name or title, a misspelt setting with the one that
was probably meant. Values are never repeated: one may be a password.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dicomnode.errors import SettingsError

_NAMES = ("name", "title")  # what a table of a list calls itself by
_MISSPELT = "extra_forbidden"
_NOT_A_LIST = ("tuple_type", "list_type")
_NOT_A_TABLE = ("model_type", "dict_type", "model_attributes_type")
_MEANT = 0.6  # likeness from which a name is suggested (difflib's default)

Place = tuple[str | int, ...]


def first_mistake(
    exc: ValidationError, model: type[BaseModel], file: Path | None, data: Mapping[str, Any]
) -> SettingsError:
    """The first mistake; a misspelt name comes before the required one that it stands for.

    Parameters
    ----------
    file, data : the settings file and what it holds; a mistake in what it does not hold came from the environment.
    """
    errors = sorted(exc.errors(include_input=False, include_url=False), key=lambda e: e["type"] != _MISSPELT)
    kind, loc = errors[0]["type"], errors[0]["loc"]
    message, advice = errors[0]["msg"].removeprefix("Value error, "), ""
    if kind == _MISSPELT:
        message, advice = "unknown setting", _meant(model, loc)
    elif kind in _NOT_A_LIST and _tables_at(model, loc):
        message, advice = "is one table where several are possible", f"write [[{'.'.join(map(str, loc))}]]"
    elif kind in _NOT_A_TABLE and len(loc) == 1:
        message, advice = "is a section", f"write [{loc[0]}] and its settings below"
    elif kind == "missing":
        message = "is required"
    place = place_of(loc, data)
    in_file = file is not None and loc and loc[0] in data
    return SettingsError(message, place=f"{file}: {place}" if in_file else place, advice=advice)


def place_of(loc: Place, data: Mapping[str, Any]) -> str:
    """The setting as the file writes it: ``[dicom] port``, ``[[dicom.peers]] "ct1": port``."""
    if not loc:
        return "settings"
    for i, part in enumerate(loc):
        if isinstance(part, int) and i + 1 < len(loc):
            table = f"[[{'.'.join(map(str, loc[:i]))}]] {_called(loc[: i + 1], data)}"
            return f"{table}: {_joined(loc[i + 1 :])}"
    return f"[{loc[0]}] {_joined(loc[1:])}".rstrip()


def _joined(parts: Sequence[str | int]) -> str:
    return ".".join(f"{p + 1}" if isinstance(p, int) else p for p in parts)


def _called(loc: Place, data: Mapping[str, Any]) -> str:
    """The name of a table of a list; its number, from 1, where it has none."""
    table: Any = data
    try:
        for part in loc:
            table = table[part]
        names = [table[key] for key in _NAMES if isinstance(table.get(key), str)]
    except (KeyError, IndexError, TypeError, AttributeError):
        names = []
    number = loc[-1]
    assert isinstance(number, int)
    return f'"{names[0]}"' if names else f"number {number + 1}"


def _meant(model: type[BaseModel], loc: Place) -> str:
    """The name that is probably meant by the last one of ``loc``, else the section that has a setting of that name."""
    name = str(loc[-1])
    here = _model_at(model, loc[:-1])
    if here is None:
        return ""
    if close := difflib.get_close_matches(name, here.model_fields, n=1, cutoff=_MEANT):
        return f"did you mean {close[0]}?"
    elsewhere = [s for s in model.model_fields if (m := _model_at(model, (s,))) and name in m.model_fields]
    return f"it belongs to [{elsewhere[0]}]" if len(elsewhere) == 1 else ""


def _model_at(model: type[BaseModel], loc: Place) -> type[BaseModel] | None:
    """The model of the settings at a place; None where there is a plain value."""
    here: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int):
            continue  # a table of a list: the model is the list's
        if here is None or part not in here.model_fields:
            return None
        here = _model_in(here.model_fields[part].annotation)
    return here


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [m for argument in typing.get_args(annotation) if (m := _model_in(argument))]
    return found[0] if found else None


def _tables_at(model: type[BaseModel], loc: Place) -> bool:
    return _model_at(model, loc) is not None

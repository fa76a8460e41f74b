"""The commented ``config/dicomnode.toml`` and ``docs/settings.md``, written from the registry of settings.

What they call a default is what a setting has where it is left out; of a table that may be written several times
(``[[dicom.peers]]``) the values are those of the example, which is in force where there is no such table. Reads no
settings of the machine it runs on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dicomnode.config import ENV_PREFIX, Settings


def _sections() -> list[tuple[str, type[BaseModel]]]:
    return [(name, f.annotation) for name, f in Settings.model_fields.items()]  # type: ignore[misc]


def _toml_value(value: Any) -> str:
    if isinstance(value, BaseModel):
        inner = ", ".join(f"{k} = {_toml_value(v)}" for k, v in value)
        return "{" + inner + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(value)


def _example(default: Any) -> BaseModel | None:
    """The entry that is in force where a table that may be written several times is not written at all."""
    return default[0] if isinstance(default, tuple) and default and isinstance(default[0], BaseModel) else None


def _default(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True)


def _table(name: str, about: str, example: BaseModel) -> list[str]:
    """The lines of ``[[name]]``: the example's values; what is required, and where a default is another value."""
    out = ["", f"# {about}", "# An example, in force where no such table is written:", f"# [[{name}]]"]
    for key, value in example:
        info = type(example).model_fields[key]
        told = info.description or ""
        if info.is_required():
            told = f"Required. {told}"
        elif _default(info) != value:
            told += f" Default: {_toml_value(_default(info))}."
        out.append(f"# {key} = {_toml_value(value)}  # {told}")
    return out


def as_toml() -> str:
    """The commented settings file, every setting at its default."""
    out = [
        "# Settings of dicomnode. Every line is optional and shows the default; remove the '#' to change it.",
        "# Tables in [[two brackets]] are examples: what is required, and which defaults are others, stands beside it.",
        "",
    ]
    for name, model in _sections():
        out.append(f"# {(model.__doc__ or '').strip()}")
        out.append(f"[{name}]")
        tables: list[str] = []
        for key, info in model.model_fields.items():
            default = _default(info)
            if (example := _example(default)) is not None:
                tables += _table(f"{name}.{key}", info.description or "", example)
                continue
            out += [f"# {info.description}", f"# {key} = {_toml_value(default)}"]
        out += [*tables, ""]
    return "\n".join(out).rstrip() + "\n"


def as_markdown() -> str:
    """The page docs/settings.md."""
    out = [
        "# Settings",
        "",
        "Read from `--config F`, else `$DICOMNODE_CONFIG`, else `config/dicomnode.toml`, else the defaults.",
        f"Any setting can be given as `{ENV_PREFIX}SECTION__KEY`; lists and tables as JSON.",
        "`dicomnode config check` tells what is wrong, `dicomnode config show` what is in force.",
        "This page is written by `make docs` from `dicomnode/config/`.",
    ]
    for name, model in _sections():
        out += ["", f"## [{name}]", "", (model.__doc__ or "").strip(), ""]
        out += ["| setting | default | meaning |", "|---|---|---|"]
        examples: list[str] = []
        for key, info in model.model_fields.items():
            if (example := _example(_default(info))) is None:
                out.append(f"| `{key}` | `{_toml_value(_default(info))}` | {info.description or ''} |")
                continue
            for inner, field in type(example).model_fields.items():
                default = "required" if field.is_required() else f"`{_toml_value(_default(field))}`"
                out.append(f"| `[[{key}]] {inner}` | {default} | {field.description or ''} |")
            given = ", ".join(f"{k} = {_toml_value(v)}" for k, v in example.model_dump(exclude_defaults=True).items())
            examples.append(f"Where no `[[{name}.{key}]]` is written, one is in force: `{given}`.")
        if examples:
            out += ["", *examples]
    return "\n".join(out) + "\n"

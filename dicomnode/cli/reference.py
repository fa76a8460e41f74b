"""Writes docs/commands.md from the commands themselves: ``python -m dicomnode.cli.reference > docs/commands.md``.

Purpose, arguments, options and examples come from the Typer application, so the page cannot drift from it (a test
compares them); what the files given to commands look like is written here by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from enum import Enum
from typing import Any

import typer

from dicomnode.cli.app import app

_EXAMPLE = re.compile(r"^Example: (.+)$", re.MULTILINE)
_SYSTEM_NAMES = {"SCT": "SNOMED CT", "I10": "ICD-10", "I10C": "ICD-10-CM", "I9C": "ICD-9-CM"}
_EVERYWHERE = ("config", "help")  # options of every command, told once

_HEAD = """# Commands

This page is written by `make docs` from `dicomnode/cli/`. `dicomnode COMMAND --help` shows the same.

Commands work beside a running node on the same `data_dir`: they write rows and files, the node picks them up.

## Of every command

| | |
|---|---|
| `--config FILE` | [settings](settings.md); else `$DICOMNODE_CONFIG`, else `config/dicomnode.toml`, else defaults |
| `--help`, `-h` | what the command does, with an example |
| `--json` | where a command reports: one JSON object on standard output, nothing else there |
| exit 0 | done |
| exit 1 | failed, or something was quarantined; of `index add`: nothing to add, or a row of a table left out |
| exit 2 | wrong usage: an unknown option or setting, an input that is not there, contradictory values |
| exit 130 | stopped by Ctrl-C; of `deid` by SIGTERM too |

An error is one line on standard error, `error: PLACE: what happened (what to do)`. Progress bars and notes go to
standard error too.
"""

_FILES = """## Files that commands read

### LABELS.csv

`index add LABELS.csv` adds labelled images as cases. A CSV file in UTF-8 with a line of column names:

| column | needed | meaning |
|---|---|---|
| `path` | yes | the image: DICOM, PNG, JPEG or WebP; absolute, or relative to the folder of the file |
| `label` | yes | what it shows, in a word or two; kept as a finding of the system `99LABEL` |
| `patient` | no | whose it is: rows of one patient become one case, a row without becomes a case of its own |

Columns that other commands read (`split`, `source_format`, `source_mode`, `width`, `height`) may be there; any other is
named and not used. Refused, with the row and before anything is added: a column that is missing or there twice, a row
with more cells than columns, a row without a path, an image with two labels or patients. An image that is there twice
with the same is added once. What a label states:

| label | status of the case |
|---|---|
| {negative} | *none*: there is no finding |
| empty, {unknown} | *unknown*: nothing is stated; never counted as negative |
| anything else | *present*: the label is the finding |

Only the pixels and the label are kept: no file name, no EXIF, no patient. Images that cannot be read are left out, and
so are images that show no CT or MR slice ([query.md](query.md#what-is-refused)): the command names each with its row,
adds the others and ends with 1. Add the file again once they are mended. DICOM images pass the same gate as received
ones.

A second run adds nothing, however the path of the file is written. A patient is known by the file's folder and the word
in `patient`, an image without one by the file's folder and its own place: move neither. Cases that an earlier version
added without a patient are known again where the file was then named as it is now, by its full path, or from its folder
or one above; else the images are added once more, and `index remove --study UID` takes the old ones out.

    path,label,patient
    images/0001.png,Pneumonia,p17
    images/0002.png,Pneumonia,p17
    images/0003.png,normal,

### Findings

`index add FOLDER --findings F.csv` states the findings of the studies it adds, and of those that are there already:

| column | meaning |
|---|---|
| `study` | Study Instance UID as received, or a path: the study's folder or one of its files |
| `system` | {systems} (PS3.16 section 8), or a private scheme that begins with `99` |
| `code` | the code in that system |
| `display` | its meaning, as reports show it |

A path is absolute, or relative to the findings file or to the working folder. All rows of a study together replace
what was stated before. A study without a row has no stated finding: its status is *unknown*. A row whose study is not
here, or whose folder holds several studies, is named by its line and left out, and the command ends with 1.

    study,system,code,display
    1.2.840.99999.1,SCT,233604007,Pneumonia
    incoming/study-7,I10C,R91.1,Solitary pulmonary nodule
"""


def commands() -> Iterator[tuple[str, Any]]:
    """(words, command) of every command, in the order of ``dicomnode --help``."""
    yield from _below(typer.main.get_command(app), "dicomnode")


def _below(group: Any, words: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _below(command, f"{words} {name}")
        else:
            yield f"{words} {name}", command


def _metavar(parameter: Any) -> str:
    return str(getattr(parameter, "metavar", None) or parameter.name.upper())


def _usage(words: str, command: Any) -> str:
    parts = [words]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = _metavar(parameter) + ("..." if parameter.nargs == -1 else "")
            parts.append(name if parameter.required or name.startswith("[") else f"[{name}]")
        elif parameter.required:
            parts.append(f"{parameter.opts[0]} {_metavar(parameter)}")
    return " ".join([*parts, "[OPTIONS]"])


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool) or value == "" or callable(value):
        return ""
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = _metavar(parameter).strip("[]")
    else:
        name = ", ".join(parameter.opts)
        if not isinstance(parameter.default, bool):
            name += f" {_metavar(parameter)}"
    needed = "needed" if parameter.required else _default(parameter.default)
    return f"| `{name}` | {needed} | {_plain(parameter.help or '')} |"


def _plain(text: str) -> str:
    """A help without what keeps its brackets from being taken for colours."""
    return text.replace("\\[", "[")


def _section(words: str, command: Any) -> str:
    purpose = _EXAMPLE.split(_plain(command.help))[0].strip()
    lines = [f"## {words}", "", " ".join(purpose.split()), "", f"    {_usage(words, command)}", ""]
    parameters = [p for p in command.params if p.name not in _EVERYWHERE]
    if parameters:
        lines += ["| | default | meaning |", "|---|---|---|", *map(_row, parameters), ""]
    lines += [f"    {example}" for example in _EXAMPLE.findall(command.help)]
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """The page docs/commands.md."""
    from dicomnode.workflow.ingest import SYSTEMS
    from dicomnode.workflow.labels import NEGATIVE_LABELS, UNKNOWN_LABELS

    files = _FILES.format(
        negative=", ".join(f"`{word}`" for word in sorted(NEGATIVE_LABELS)),
        unknown=", ".join(f"`{word}`" for word in sorted(UNKNOWN_LABELS - {""})),
        systems=", ".join(f"`{system}` ({_SYSTEM_NAMES[system]})" for system in sorted(SYSTEMS)),
    )
    return "\n".join([_HEAD, *(_section(words, command) for words, command in commands()), files])


if __name__ == "__main__":
    sys.stdout.write(as_markdown())

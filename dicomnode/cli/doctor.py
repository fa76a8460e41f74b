"""``dicomnode doctor``: what is wrong with this node, and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli.options import Config, Json, open_node, out, print_json
from dicomnode.errors import EXIT_FAILED, UsageError


def doctor_command(
    action: Annotated[str, typer.Argument(help="'route' tells what would happen to FILE.", metavar="[route]")] = "",
    file: Annotated[Path | None, typer.Argument(help="A DICOM file, for 'route'.", metavar="[FILE]")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Check settings, peers, decoders, model, index, disk, clock, permissions, vault and ports; tell if a node runs.

    Example: dicomnode doctor
    Example: dicomnode doctor route image.dcm
    """
    from dicomnode.doctor import State, examine, route

    if action not in ("", "route"):
        raise UsageError(f"unknown action {action!r}", place="doctor", advice="dicomnode doctor [route FILE]")
    if action == "route" and (file is None or not file.is_file()):
        raise UsageError("a file is needed", place="doctor route", advice="dicomnode doctor route FILE")
    node = open_node(config)
    found = list(route(node, file) if file is not None else examine(node))
    if json:
        print_json({"ok": all(d.state is not State.FAIL for d in found), "checks": [d.as_json() for d in found]})
    else:
        for d in found:
            out.print(f"{d.state.value:4} {d.check}: {d.line}", markup=False, highlight=False)
            if d.advice and d.state is not State.OK:
                out.print(f"     -> {d.advice}", markup=False, highlight=False)
    if any(d.state is State.FAIL for d in found):
        raise typer.Exit(EXIT_FAILED)

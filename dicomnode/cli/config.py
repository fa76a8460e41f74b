"""``dicomnode config``: what the settings are and whether they are right."""

from __future__ import annotations

import typer

from dicomnode.cli.options import Config, Json, out, print_json, print_table
from dicomnode.config import load_settings, settings_file
from dicomnode.node import Node

app = typer.Typer(help="Check and show the settings.", no_args_is_help=True)


@app.command()
def check(config: Config = None, json: Json = False) -> None:
    """Read the settings and say whether the node can start with them.

    Example: dicomnode config check --config /etc/dicomnode.toml
    """
    Node(load_settings(config)).check()
    file = settings_file(config)
    if json:
        print_json({"ok": True, "file": None if file is None else str(file)})
    else:
        out.print(f"ok: {file if file else 'no settings file, the defaults are in force'}")


@app.command()
def show(config: Config = None, json: Json = False) -> None:
    """Print the settings in force; secrets are masked.

    Example: dicomnode config show --json
    """
    data = load_settings(config).masked()
    if json:
        print_json(data)
        return
    rows = [[f"[{section}]", key, _text(value)] for section, values in data.items() for key, value in values.items()]
    print_table("settings in force", ["section", "setting", "value"], rows)


def _text(value: object) -> str:
    import json as _json

    return _json.dumps(value, ensure_ascii=False)

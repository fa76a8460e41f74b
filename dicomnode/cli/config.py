"""``dicomnode config``: what the settings are and whether they are right."""

from __future__ import annotations

import typer

from dicomnode.cli.options import Config, Json, out, print_json, print_table
from dicomnode.config import load_settings, settings_file
from dicomnode.node import Node

app = typer.Typer(help="Check and show the settings.", no_args_is_help=True)


@app.command()
def check(config: Config = None, json: Json = False) -> None:
    """Read the settings and say whether the node can start with them; warn of what will hardly do what was meant.

    Example: dicomnode config check --config /etc/dicomnode.toml
    """
    from dicomnode.doctor import results_warnings, settings_warnings

    settings = load_settings(config)
    node = Node(settings)
    node.check()
    file = settings_file(config)
    warnings = [*settings_warnings(settings), *results_warnings(settings)]
    exceptions = list(node.recipe.exceptions)
    if json:
        data = {"ok": True, "file": None if file is None else str(file), "data_dir": node.data_dir}
        print_json({**data, "deid_exceptions": exceptions, "warnings": [w.as_json() for w in warnings]})
        return
    out.print(f"ok: {file if file else 'no settings file, the defaults are in force'}")
    out.print(f"data_dir: {node.data_dir}")
    for exception in exceptions:
        out.print(f"lets through more than the de-identification profile: {exception}")
    for warning in warnings:
        out.print(f"warn {warning.line}")
        out.print(f"     -> {warning.advice}")


@app.command()
def show(config: Config = None, json: Json = False) -> None:
    """Print the settings in force; secrets are masked.

    Example: dicomnode config show --json
    """
    settings = load_settings(config)
    data = settings.masked()
    if json:
        print_json(data)
        return
    if not settings.node.data_dir.is_absolute():
        data["node"]["data_dir"] += f" (here: {settings.node.data_dir.absolute()})"
    rows = [[f"[{section}]", key, _text(value)] for section, values in data.items() for key, value in values.items()]
    print_table("settings in force", ["section", "setting", "value"], rows)


def _text(value: object) -> str:
    import json as _json

    return _json.dumps(value, ensure_ascii=False)

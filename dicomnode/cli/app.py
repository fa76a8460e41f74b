"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from dicomnode import __version__
from dicomnode.cli import (
    config,
    deid,
    doctor,
    evaluate,
    index,
    models,
    quarantine,
    query,
    results,
    serve,
    train,
    user,
    vault,
)

app = typer.Typer(
    name="dicomnode",
    help="Have we seen this before? Similar cases from your own de-identified repository, as a DICOM report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("serve")(serve.serve_command)
app.command("query")(query.query_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("deid")(deid.deid_command)
app.command("reidentify")(vault.reidentify_command)
app.command("doctor")(doctor.doctor_command)
app.add_typer(index.app, name="index")
app.add_typer(train.app, name="train")
app.add_typer(models.app, name="models")
app.add_typer(results.app, name="results")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(vault.app, name="vault")
app.add_typer(user.app, name="user")
app.add_typer(config.app, name="config")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dicomnode {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print version.")
    ] = False,
) -> None:
    """Have we seen this before? Similar cases from your own de-identified repository, as a DICOM report."""

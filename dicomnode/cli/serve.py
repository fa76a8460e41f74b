"""``dicomnode serve``: run the node."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from dicomnode.cli.options import Config, err, file_in_force
from dicomnode.config import load_settings
from dicomnode.telemetry.logging import configure_logging


class ServeRole(StrEnum):
    """What of the node runs here."""

    ALL = "all"
    RECEIVER = "receiver"
    WORKER = "worker"
    WEB = "web"


def serve_command(
    role: Annotated[ServeRole, typer.Option(help="Run the whole node or one part of it.")] = ServeRole.ALL,
    config: Config = None,
) -> None:
    """Run the node until Ctrl-C or SIGTERM.

    Example: dicomnode serve --config /etc/dicomnode.toml
    """
    from dicomnode.serving import serve

    settings = load_settings(config)
    configure_logging(settings.node.log_level)

    def announce(ports: dict[str, int]) -> None:
        if "dicom" in ports:
            titles = ", ".join(a.title for a in settings.dicom.ae_titles)
            err.print(f"DICOM: {titles} on {settings.dicom.host}:{ports['dicom']}")
        if "web" in ports:
            err.print(f"web: http://{settings.web.host}:{ports['web']} (ready when /readyz says so)")
        err.print(f"data: {settings.node.data_dir.resolve()}")

    serve(settings, file_in_force(config), role.value, announce=announce)

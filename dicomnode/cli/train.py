"""``dicomnode train``: networks and packs from labelled images; resumable, seeded, with curves."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from dicomnode.cli.options import Config, Json, out, print_json
from dicomnode.config import load_settings
from dicomnode.telemetry.logging import configure_logging

app = typer.Typer(help="Train the networks and write model packs.", no_args_is_help=True)


class Encoder(StrEnum):
    """What CE-Net starts from."""

    LITE0 = "lite0"
    RESNET34 = "resnet34"


Data = Annotated[Path, typer.Option(help="Folder that holds the data sets (docs/training.md).")]
Out = Annotated[Path, typer.Option(help="Folder of the run: checkpoint and curves. An interrupted run goes on.")]
Seed = Annotated[int, typer.Option(help="Draws everything random: the same seed gives the same run.")]


def _logs(config: Path | None) -> None:
    """Progress of a training goes to stderr as the node's log."""
    configure_logging(load_settings(config).node.log_level)


def _report(figures: dict[str, object], json: bool) -> None:
    if json:
        print_json(figures)
        return
    for key, value in figures.items():
        out.print(f"{key}: {value}", markup=False, highlight=False)


@app.command()
def cenet(
    data: Data,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the run. An interrupted run goes on.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 12,
    seed: Seed = 0,
    encoder: Annotated[Encoder, typer.Option(help="lite0 (ImageNet start) or resnet34.")] = Encoder.LITE0,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train CE-Net to outline lungs and infection on ct-lung-seg, split by volume.

    Example: dicomnode train cenet --data data --out runs/cenet
    """
    from dicomnode.models.training.cenet import CenetOptions, train_cenet

    _logs(config)
    chosen: Literal["resnet34", "lite0"] = "resnet34" if encoder is Encoder.RESNET34 else "lite0"
    options = CenetOptions(data=data, out=out_dir, encoder=chosen, imagenet=chosen == "lite0", epochs=epochs, seed=seed)
    _report(train_cenet(options), json)


@app.command()
def xception(
    data: Data,
    cenet_run: Annotated[Path, typer.Option("--cenet", help="Folder (or checkpoint) of 'train cenet'.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the run. An interrupted run goes on.")],
    pack: Annotated[Path | None, typer.Option(help="Write a model pack into this folder at the end.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 30,
    seed: Seed = 0,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train Xception and CE-Net together on segmentation and diagnosis; optionally write a pack.

    Example: dicomnode train xception --data data --cenet runs/cenet --out runs/xception --pack packs/mine
    """
    from dicomnode.models.training.run import CHECKPOINT
    from dicomnode.models.training.xception import XceptionOptions, train_xception

    _logs(config)
    checkpoint = cenet_run / CHECKPOINT if cenet_run.is_dir() else cenet_run
    options = XceptionOptions(data=data, out=out_dir, cenet=checkpoint, epochs=epochs, seed=seed)
    figures = train_xception(options)
    if pack is not None:
        from dicomnode.models.training.build import BuildOptions, build_pack

        command = (
            f"dicomnode train xception --data DATA --cenet RUN --out RUN --pack PACK --epochs {epochs} --seed {seed}"
        )
        built = BuildOptions(data=data, out=pack, checkpoint=figures["checkpoint"], name=pack.name, commands=(command,))
        figures = {**figures, "model_id": build_pack(built).manifest.model_id}
    _report(figures, json)

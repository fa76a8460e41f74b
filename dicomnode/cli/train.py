"""``dicomnode train``: networks and packs from labelled images; resumable, seeded, with curves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli.options import Config, Json, Taught, err, out, print_json, shows_of
from dicomnode.config import load_settings
from dicomnode.errors import UsageError
from dicomnode.telemetry.logging import configure_logging

app = typer.Typer(help="Train the networks and write model packs.", no_args_is_help=True)


class Encoder(StrEnum):
    """What CE-Net starts from."""

    LITE0 = "lite0"
    EFFICIENTNET_LITE0 = "efficientnet-lite0"
    EFFICIENTNET_LITE2 = "efficientnet-lite2"
    RESNET34 = "resnet34"


class Form(StrEnum):
    """How the Xception takes the encoding."""

    NATIVE = "native"
    LITERAL = "literal"


class Widths(StrEnum):
    """How wide the Xception is."""

    NARROW = "narrow"
    PUBLISHED = "published"


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Data = Annotated[Path, typer.Option(help="Folder of the data sets, or a table of your own (docs/training.md).")]
Out = Annotated[
    Path, typer.Option("--out", help="Folder of the run: checkpoint and curves. An interrupted run goes on.")
]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Draws everything random: the same seed gives the same run.")
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training images.")]
Validate = Annotated[
    float | None,
    typer.Option(
        help="Share of the training patients (or volumes) kept apart to stop early; 0: none, train to the end."
        " Default: 0 for the folder of data sets, 0.2 for a table."
    ),
]
Patience = Annotated[int, typer.Option(min=1, help="Epochs without a lower validation loss after which to stop.")]
OnDevice = Annotated[Device, typer.Option(help="auto takes CUDA where there is one, in half precision.")]
Masks = Annotated[
    Path | None, typer.Option(help="Outlined slices, folder or table, where --data is a table of labels.")
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of an epoch at most, to try a command out. Default: all.")
]


def _logs(config: Path | None) -> None:
    """Progress of a training goes to stderr as the node's log."""
    configure_logging(load_settings(config).node.log_level, libraries=False)


@contextmanager
def _problems_told() -> Iterator[None]:
    """Every line that is wrong with a table, before the one with which the command ends."""
    from dicomnode.csvrows import DataProblems
    from dicomnode.models.training.tables import SHOWN

    try:
        yield
    except DataProblems as exc:
        if len(exc.problems) > 1:
            for line in exc.problems[:SHOWN]:
                err.print(line)
            if len(exc.problems) > SHOWN:
                err.print(f"and {len(exc.problems) - SHOWN} more")
        raise


def _report(figures: dict[str, object], json: bool) -> None:
    if json:
        print_json(figures)
        return
    for key, value in figures.items():
        out.print(f"{key}: {value}", markup=False, highlight=False)


@app.command()
def cenet(
    data: Data,
    out_dir: Out,
    epochs: Epochs = 12,
    seed: Seed = 0,
    encoder: Annotated[
        Encoder,
        typer.Option(
            help="efficientnet-lite0 (or lite0) and efficientnet-lite2 start from ImageNet, resnet34 from nothing."
        ),
    ] = Encoder.LITE0,
    encoder_weights: Annotated[
        Path | None, typer.Option(help="Start the encoder from this file (safetensors or .pth) instead.")
    ] = None,
    width: Annotated[float, typer.Option(min=0.25, max=2, help="Of resnet34; 1 is the published width.")] = 1.0,
    validate: Validate = None,
    patience: Patience = 5,
    device: OnDevice = Device.AUTO,
    max_steps: Steps = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train CE-Net to outline lungs and infection, split by volume.

    Example: dicomnode train cenet --data data --out runs/cenet
    """
    from dicomnode.models.networks import ENCODERS
    from dicomnode.models.training.cenet import CenetOptions, train_cenet
    from dicomnode.models.training.sources import validation_share

    _logs(config)
    chosen = ENCODERS[encoder.value]
    if chosen != "resnet34" and width != 1:
        raise UsageError(f"{encoder.value} has one width", place="--width", advice="it is for resnet34")
    options = CenetOptions(
        data=data,
        out=out_dir,
        encoder=chosen,
        width=width,
        imagenet=chosen != "resnet34" and encoder_weights is None,
        epochs=epochs,
        seed=seed,
        encoder_weights=encoder_weights,
        validate=validation_share(data, validate),
        patience=patience,
        device=device.value,
        max_steps=max_steps,
    )
    with _problems_told():
        _report(train_cenet(options), json)


def as_typed(ctx: typer.Context) -> str:
    """The command for a model card: what decides the training is told, where it was done is not."""
    words = ["dicomnode", "train", str(ctx.info_name)]
    for parameter in ctx.command.params:
        name, value = str(parameter.name), ctx.params[str(parameter.name)]
        if name in ("config", "json") or (value == parameter.default and name not in ("epochs", "seed")):
            continue
        if value is True:
            words.append(parameter.opts[0])
            continue
        for one in value if isinstance(value, list | tuple) else [value]:  # an option that may be given again
            told = name.removesuffix("_run").removesuffix("_dir").upper() if isinstance(one, Path) else str(one)
            words += [parameter.opts[0], told]
    return " ".join(words)


@app.command()
def xception(
    ctx: typer.Context,
    cenet_run: Annotated[Path, typer.Option("--cenet", help="Folder (or checkpoint) of 'train cenet'.")],
    out_dir: Out,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets, or a LABELS.csv (docs/training.md).")
    ] = None,
    scans: Annotated[
        Path | None,
        typer.Option(help="Instead of --data: table of whole scans, of which the most infected slices are taken."),
    ] = None,
    per_scan: Annotated[int, typer.Option(min=1, help="Slices taken of each scan.")] = 4,
    masks: Masks = None,
    pack: Annotated[Path | None, typer.Option(help="Write a model pack into this folder at the end.")] = None,
    taught: Taught = None,
    epochs: Epochs = 30,
    seed: Seed = 0,
    form: Annotated[Form, typer.Option(help="literal: the encoding as one plane, as published.")] = Form.NATIVE,
    widths: Annotated[Widths, typer.Option(help="Of the Xception.")] = Widths.NARROW,
    freeze: Annotated[
        bool,
        typer.Option("--freeze", help="Leave the CE-Net as it is, as published; else it goes on learning."),
    ] = False,
    validate: Validate = None,
    patience: Patience = 5,
    device: OnDevice = Device.AUTO,
    max_steps: Steps = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train Xception and CE-Net together on segmentation and diagnosis; optionally write a pack.

    Example: dicomnode train xception --data data --cenet runs/cenet --out runs/xception --pack packs/mine
    """
    from dicomnode.models.training.run import checkpoint_in
    from dicomnode.models.training.sources import is_table, validation_share
    from dicomnode.models.training.xception import XceptionOptions, train_xception

    _logs(config)
    source = data or scans
    if source is None or (data and scans):
        raise UsageError("give one of the two", place="--data, --scans")
    if taught and (pack is None or not is_table(source)):
        raise UsageError("it is for a pack of a table of your own", place="--taught", advice="give --pack, or leave it")
    shown = tuple(shows_of(one) for one in taught or ())
    if pack is not None:
        from dicomnode.models.training.build import check_pack_target

        check_pack_target(pack, out_dir)
    options = XceptionOptions(
        data=source,
        out=out_dir,
        cenet=checkpoint_in(cenet_run),
        epochs=epochs,
        seed=seed,
        form=form.value,
        widths=widths.value,
        freeze=freeze,
        masks=masks,
        scans=scans,
        per_scan=per_scan,
        validate=validation_share(source, validate),
        patience=patience,
        device=device.value,
        max_steps=max_steps,
    )
    with _problems_told():
        figures = train_xception(options)
    if pack is not None:
        from dicomnode.models.accelerate import accelerate, missing_parts
        from dicomnode.models.training.build import BuildOptions, build_pack
        from dicomnode.models.training.own import OwnPackOptions, build_own_pack

        checkpoint, commands = figures["checkpoint"], (as_typed(ctx),)
        made = (
            build_own_pack(OwnPackOptions(options, pack, checkpoint, pack.name, shown, commands=commands))
            if is_table(source)
            else build_pack(BuildOptions(source, pack, checkpoint, pack.name, commands=commands))
        )
        figures = {**figures, "model_id": made.manifest.model_id}
        if not missing_parts():
            accelerate(pack)
    _report(figures, json)


Base = Annotated[int, typer.Option(min=8, help="Channels of the first level; published: 64.")]
StageEpochs = Annotated[int, typer.Option(min=1, help="Passes of each of the two stages.")]


@app.command("unet-me")
def unet_me(
    data: Data,
    out_dir: Out,
    epochs: StageEpochs = 5,
    seed: Seed = 0,
    base: Base = 16,
    validate: Validate = None,
    patience: Patience = 5,
    device: OnDevice = Device.AUTO,
    max_steps: Steps = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train a U-Net on segmentation, then with a manifold-embedding loss; slices without a mask take part.

    Example: dicomnode train unet-me --data data --out runs/unet-me
    """
    from dicomnode.models.training.sources import validation_share
    from dicomnode.models.training.unet import UnetOptions, train_unet

    _logs(config)
    options = UnetOptions(
        data=data,
        out=out_dir,
        method="unet-me",
        base=base,
        epochs=epochs,
        seed=seed,
        validate=validation_share(data, validate),
        patience=patience,
        device=device.value,
        max_steps=max_steps,
    )
    with _problems_told():
        _report(train_unet(options), json)


@app.command("unet-ml")
def unet_ml(
    data: Data,
    out_dir: Out,
    masks: Masks = None,
    epochs: StageEpochs = 5,
    seed: Seed = 0,
    base: Base = 16,
    validate: Validate = None,
    patience: Patience = 5,
    device: OnDevice = Device.AUTO,
    max_steps: Steps = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train a U-Net on segmentation, then its bottleneck on the diagnosis.

    Example: dicomnode train unet-ml --data LABELS.csv --masks slices.csv --out runs/unet-ml
    """
    from dicomnode.models.training.sources import validation_share
    from dicomnode.models.training.unet import UnetOptions, train_unet

    _logs(config)
    options = UnetOptions(
        data=data,
        out=out_dir,
        method="unet-ml",
        masks=masks,
        base=base,
        epochs=epochs,
        seed=seed,
        validate=validation_share(data, validate),
        patience=patience,
        device=device.value,
        max_steps=max_steps,
    )
    with _problems_told():
        _report(train_unet(options), json)


@app.command()
def head(
    data: Data,
    out_dir: Out,
    pack: Annotated[str, typer.Option(help="Name or folder of the pack whose vectors are refined.")] = "cenet-xception",
    views: Annotated[int, typer.Option(min=0, help="Augmented views of each training image beside itself.")] = 4,
    epochs: Epochs = 20,
    seed: Seed = 0,
    validate: Validate = None,
    patience: Patience = 5,
    device: OnDevice = Device.AUTO,
    max_steps: Steps = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train a small metric head on the vectors of a pack, for labels of your own.

    Example: dicomnode train head --data LABELS.csv --pack cenet-xception --out runs/head
    """
    from dicomnode.models.training.head import HeadOptions, train_head
    from dicomnode.models.training.sources import validation_share

    _logs(config)
    options = HeadOptions(
        data=data,
        out=out_dir,
        pack=pack,
        views=views,
        epochs=epochs,
        seed=seed,
        validate=validation_share(data, validate),
        patience=patience,
        device=device.value,
        max_steps=max_steps,
    )
    with _problems_told():
        _report(train_head(options), json)

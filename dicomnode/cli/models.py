"""``dicomnode models``: the model packs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli.options import (
    Config,
    Json,
    Taught,
    err,
    open_node,
    out,
    print_json,
    print_table,
    progress_bar,
    shows_of,
)
from dicomnode.errors import EXIT_FAILED, NotFound, UsageError
from dicomnode.telemetry.audit import AuditEvent

if TYPE_CHECKING:
    from dicomnode.node import Node
    from dicomnode.workflow.models import Model

app = typer.Typer(help="Make, list, verify, compare and activate model packs.", no_args_is_help=True)
Pack = Annotated[str, typer.Argument(help="Name of a pack, or its folder.")]
LOCK = "models"  # one command at a time changes which model is in force
NICER = 10  # a node's answers go first


def _states(node: Node) -> dict[str, dict[str, Any]]:
    """What the index holds of each model: model id -> studies, vectors, lacking, state."""
    from dicomnode.domain import ModelId
    from dicomnode.index import takeover
    from dicomnode.index.vectors import VectorStore

    active = node.models.active()
    engine = node.catalogue.engine
    states: dict[str, dict[str, Any]] = {}
    counted = takeover.held(engine)
    for model_id in {active.model_id, *counted}:
        held = counted.get(model_id, takeover.Held(0, 0))
        store = VectorStore(node.data_dir / "index", engine, ModelId(model_id), 0)
        lacking = len(takeover.lacking(store))
        state = "active" if model_id == active.model_id else "complete" if not lacking else "incomplete"
        states[model_id] = {"studies": held.studies, "vectors": held.vectors, "lacking": lacking, "state": state}
    return states


NOTHING = {"studies": 0, "vectors": 0, "lacking": None, "state": "none"}


@app.command("list")
def list_(config: Config = None, json: Json = False) -> None:
    """List the packs that are there, which is active, and which have vectors of this repository.

    One that cannot be read is named after the others, and the command ends with 1.

    Example: dicomnode models list
    """
    from dicomnode.models.manifest import list_packs, read_manifest

    node = open_node(config)
    active = node.pack_dir.resolve()
    listed, unreadable = list_packs(node.pack_folders)
    packs = {folder.resolve(): manifest for folder, manifest in listed}
    packs.setdefault(active, read_manifest(active))
    states = _states(node)
    rows = [
        {
            "name": manifest.name,
            "kind": manifest.kind,
            "model_id": manifest.model_id,
            "dim": manifest.dim,
            "status": manifest.status,
            "active": folder == active,
            **states.get(manifest.model_id, NOTHING),
            "path": str(folder),
        }
        for folder, manifest in packs.items()
    ]
    if json:
        print_json({"packs": rows, "unreadable": [str(exc) for exc in unreadable]})
    else:
        columns = ["name", "kind", "active", "state", "studies", "dim", "status", "model_id", "path"]
        print_table("packs", columns, [[str(r[c]) for c in columns] for r in rows])
    for exc in unreadable:
        err.print(f"error: {exc}")
    if unreadable:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def status(config: Config = None, json: Json = False) -> None:
    """Print which model is in force, whether another one is taking over, and how far that is.

    "complete": has vectors of every study, so "models activate" puts it in force at once. "lacking": studies it has
    still to embed.

    Example: dicomnode models status --json
    """
    from dicomnode.domain import ModelId

    node = open_node(config)
    active = node.models.active()
    rows = []
    for model_id, state in sorted(_states(node).items(), key=lambda item: item[1]["state"] != "active"):
        folder = node.pack_of(ModelId(model_id))
        rows.append({"model_id": model_id, "name": folder.name if folder else "(its pack is gone)", **state})
    data = {"active": active.model_id, "taking_over": node.is_locked(LOCK), "models": rows}
    if json:
        print_json(data)
        return
    if data["taking_over"]:
        out.print("a model is taking over; the active one answers until it has all studies")
    columns = ["name", "state", "studies", "lacking", "vectors", "model_id"]
    print_table("models", columns, [[str(r[c]) for c in columns] for r in rows])


@app.command()
def verify(pack: Pack = "", config: Config = None, json: Json = False) -> None:
    """Check a pack's files and that it reproduces its golden vectors.

    Example: dicomnode models verify cenet-xception
    """
    from dicomnode.models.manifest import find_pack
    from dicomnode.models.pack import Pack as ModelPack

    node = open_node(config)
    folder = find_pack(pack, node.pack_folders) if pack else node.pack_dir
    loaded = ModelPack.load(folder)
    if json:
        print_json({"ok": True, "name": loaded.manifest.name, "model_id": loaded.manifest.model_id})
    else:
        out.print(f"ok: {loaded.manifest.name} {loaded.manifest.model_id}")


@app.command()
def accelerate(pack: Pack, config: Config = None, json: Json = False) -> None:
    """Let ONNX Runtime compute a pack's vectors: the same ones, in about half the time (needs dicomnode\\[train]).

    Writes fast.onnx into the pack's folder and names it in the manifest; the model id stays. For packs of
    "train xception"; a node uses it from its next start.

    Example: dicomnode models accelerate /data/packs/mine
    """
    from dicomnode.models.accelerate import accelerate as write_graph
    from dicomnode.models.manifest import find_pack, read_manifest

    node = open_node(config)
    folder = find_pack(pack, node.pack_folders)
    worst = write_graph(folder)
    manifest = read_manifest(folder)
    if json:
        said = {"name": manifest.name, "model_id": manifest.model_id, "path": str(folder), "least_cosine": worst}
        print_json(said)
    else:
        out.print(f"{manifest.name}: {folder} computes its vectors by ONNX Runtime (cosine to torch {worst:.7f})")


@app.command()
def pack(
    file: Annotated[Path, typer.Argument(help="A .pt2 (torch.export.save) or .onnx file of an origin you trust.")],
    name: Annotated[str, typer.Option(help="What the pack is called: lower case letters, digits, . _ -")],
    dim: Annotated[int, typer.Option(help="Dimension of the vectors.")],
    card: Annotated[Path, typer.Option(help="Model card: ## Data, ## Terms, ## Intended use, ## Limits.")],
    status_: Annotated[str, typer.Option("--status", help="A word on its standing.")] = "research",
    taught: Taught = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder to write; else below data_dir/packs.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make a pack of any network that takes slices \\[n, 224, 224] in 0..1 and gives vectors \\[n, dim].

    With --taught, an answer to a study that shows something else says so. Regions: HEAD NECK CHEST ABDOMEN SPINE BREAST
    LIMB, none after a modality for all.

    Example: dicomnode models pack resnet.onnx --name resnet --dim 512 --card resnet.md --taught CT:CHEST --taught MR
    """
    from dicomnode.models.packing import PackOptions, pack_file

    target = out_dir if out_dir is not None else open_node(config).data_dir / "packs" / name
    try:
        text = card.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError("the model card cannot be read", place=str(card)) from None
    about = {"taught": [shows_of(one).as_json() for one in taught]} if taught else {}
    made = pack_file(file, target, PackOptions(name=name, dim=dim, card=text, status=status_, about=about))
    _told(made.manifest.name, made.manifest.model_id, target, json)


@app.command()
def imagenet(
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder to write; else below data_dir/packs.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make the reference pack: EfficientNet-Lite0 with ImageNet weights, no medical image (needs dicomnode\\[train]).

    Example: dicomnode models imagenet
    """
    from dicomnode.models.training.imagenet import NAME, build_imagenet_pack

    target = out_dir if out_dir is not None else open_node(config).data_dir / "packs" / NAME
    made = build_imagenet_pack(target)
    _told(made.manifest.name, made.manifest.model_id, target, json)


def _told(name: str, model_id: str, folder: Path, json: bool) -> None:
    if json:
        print_json({"name": name, "model_id": model_id, "path": str(folder)})
    else:
        out.print(f"{name} {model_id} in {folder}")


@app.command()
def activate(
    pack: Pack,
    leave_out: Annotated[bool, typer.Option(help="Go on without studies that cannot be embedded.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Embed the repository with another pack, then put it in force; a running node goes on answering meanwhile.

    Each answer is of the old model or of the new one. Interrupted, the same command goes on where it was. The old
    vectors stay until "models discard", so activating the old pack goes back at once.

    Example: dicomnode models activate packs/mine
    """
    from dicomnode.models.manifest import find_pack
    from dicomnode.models.packing import keep_pack
    from dicomnode.node import ACTIVE_PACK
    from dicomnode.workflow.takeover import take_over

    node = open_node(config)
    found = find_pack(pack, node.pack_folders)
    with node.lock(LOCK), progress_bar("studies", quiet=json) as update:
        os.nice(NICER)
        kept = node.data_dir / "packs"  # also of a shipped pack: an upgrade may replace that one
        folder = found
        if found.resolve().parent != kept.resolve():
            node.load_pack(found)  # of a damaged one nothing is kept
            folder = keep_pack(found, kept)
        model = node.models.open(folder.resolve())
        model.embedder()  # damaged, it must not be put in force
        node.record(AuditEvent.MODEL_ACTIVATED)

        def commit() -> None:
            node.catalogue.put(ACTIVE_PACK, str(model.folder))

        done = take_over(model.context, model.index, commit, leave_out=leave_out, progress=update)
    if json:
        print_json({"active": model.model_id, "embedded": done.embedded, "left_out": len(done.failed)})
        return
    left = f", {len(done.failed)} left out" if done.failed else ""
    out.print(f"{done.embedded} studies embedded{left}; {model.manifest.name} is active")


@app.command()
def discard(
    model: Annotated[str, typer.Argument(help="A pack's name or folder, or a model id; else all but the active.")] = "",
    config: Config = None,
    json: Json = False,
) -> None:
    """Delete the vectors of models that are not in force; their packs stay.

    Example: dicomnode models discard
    """
    node = open_node(config)
    with node.lock(LOCK):
        active = node.models.active()
        only = _named(node, active, model) if model else None
        node.record(AuditEvent.MODEL_DISCARDED)
        removed = active.index.discard_other_models(only)
    if json:
        print_json({"active": active.model_id, "discarded": removed})
    else:
        out.print(f"{removed} vectors discarded; {active.manifest.name} is active")


def _named(node: Node, active: Model, name: str) -> Any:
    from dicomnode.domain import ModelId
    from dicomnode.models.manifest import find_pack, read_manifest

    kept = active.index.store.other_models()
    wanted = name if name in kept or name == active.model_id else None
    if wanted is None:
        wanted = read_manifest(find_pack(name, node.pack_folders)).model_id
    if wanted == active.model_id:
        raise UsageError("this model is in force", place=name, advice="activate another one first")
    if wanted not in kept:
        raise NotFound("this model has no vectors here", place=name, advice="dicomnode models status")
    return ModelId(wanted)


@app.command()
def compare(
    one: Annotated[str, typer.Argument(help="A pack's name or folder.")],
    other: Annotated[str, typer.Argument(help="Another pack's name or folder.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """How far two packs agree on this repository, and which finds more cases with the same finding.

    Overlap of the ten nearest studies of other patients; precision at 10 by findings, where at least 20 patients are
    labelled. Unknown is never negative. Nothing is changed.

    Example: dicomnode models compare cenet-xception packs/mine
    """
    from dicomnode.models.manifest import find_pack
    from dicomnode.workflow.comparing import compare as compare_models

    node = open_node(config)
    models = [node.models.open(find_pack(p, node.pack_folders)) for p in (one, other)]
    with progress_bar("studies", quiet=json) as update:
        found = compare_models(models[0].context, models[1].context, update)
    data = found.as_json([m.model_id for m in models])
    if json:
        print_json(data)
        return
    overlap = "unknown (fewer than 3 studies)" if found.overlap is None else f"{found.overlap:.3f}"
    out.print(f"overlap@10: {overlap} over {found.studies} studies")
    for name, p in zip((one, other), found.precision, strict=True):
        if p is None:
            out.print(f"P@10 by findings of {name}: needs {data['needed_labelled_patients']} labelled patients")
        else:
            out.print(
                f"P@10 by findings of {name}: {p.mean:.3f} [{p.low:.3f}, {p.high:.3f}], {p.patients} labelled patients"
            )

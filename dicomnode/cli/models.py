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
from dicomnode.errors import EXIT_FAILED, NotFound, PackError, UsageError
from dicomnode.telemetry.audit import AuditEvent

if TYPE_CHECKING:
    from dicomnode.domain import ModelId
    from dicomnode.models.manifest import Manifest
    from dicomnode.node import Node
    from dicomnode.workflow.comparing import Comparison
    from dicomnode.workflow.models import Model

app = typer.Typer(help="Make, list, verify, compare and activate model packs.", no_args_is_help=True)
Pack = Annotated[str, typer.Argument(help="Name of a pack, or its folder.")]
LOCK = "models"  # one command at a time changes which model is in force
NICER = 10  # a node's answers go first


def _in_force(node: Node) -> tuple[Path, Manifest] | PackError:
    """Folder and manifest of the pack in force; where it cannot be read, the error that says so and what to do."""
    from dicomnode.models.manifest import list_packs, read_manifest
    from dicomnode.node import ACTIVE_PACK

    named = node.catalogue.get(ACTIVE_PACK)
    fault = PackError("its folder is gone", place=named or "")
    if not named or Path(named).is_dir():
        try:
            folder = (Path(named) if named else node.pack_dir).resolve()
            return folder, read_manifest(folder)
        except PackError as exc:
            fault = exc
    known = ", ".join(folder.name for folder, _ in list_packs(node.pack_folders)[0])
    advice = "restore its folder" if named else "set [models] pack"
    if known:
        advice += f", or put another in force by dicomnode models activate NAME: {known}"
    return PackError(f"{fault.line}; the pack in force cannot be read", place=fault.place, advice=advice)


def _states(node: Node, active: ModelId | None) -> dict[str, dict[str, Any]]:
    """What the index holds of each model: model id -> studies, vectors, lacking, state."""
    from dicomnode.domain import ModelId
    from dicomnode.index import takeover
    from dicomnode.index.vectors import VectorStore

    engine = node.catalogue.engine
    states: dict[str, dict[str, Any]] = {}
    counted = takeover.held(engine)
    for model_id in {*counted, *([] if active is None else [active])}:
        held = counted.get(model_id, takeover.Held(0, 0))
        store = VectorStore(node.data_dir / "index", engine, ModelId(model_id), 0)
        lacking = len(takeover.lacking(store))
        state = "active" if model_id == active else "complete" if not lacking else "incomplete"
        states[model_id] = {"studies": held.studies, "vectors": held.vectors, "lacking": lacking, "state": state}
    return states


NOTHING = {"studies": 0, "vectors": 0, "lacking": None, "state": "none"}


@app.command("list")
def list_(config: Config = None, json: Json = False) -> None:
    """List the packs that are there, which is active, and which have vectors of this repository.

    One that cannot be read is named after the others, the active one too, and the command ends with 1.

    Example: dicomnode models list
    """
    from dicomnode.models.manifest import list_packs

    node = open_node(config)
    in_force = _in_force(node)
    listed, unreadable = list_packs(node.pack_folders)
    packs = {folder.resolve(): manifest for folder, manifest in listed}
    if isinstance(in_force, PackError):
        active, model_id = None, None
        place = Path(in_force.place).resolve()
        unreadable = [*(exc for exc in unreadable if Path(exc.place).resolve() != place), in_force]
    else:
        active, model_id = in_force[0], in_force[1].model_id
        packs.setdefault(*in_force)
    states = _states(node, model_id)
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
    _tell(unreadable)


def _tell(unreadable: list[PackError]) -> None:
    """Packs that cannot be read, after those that can; with any, the command ends with 1."""
    for exc in unreadable:
        err.print(f"error: {exc}")
    if unreadable:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def status(config: Config = None, json: Json = False) -> None:
    """Print which model is in force, whether another one is taking over, and how far that is.

    "complete": has vectors of every study, so "models activate" puts it in force at once. "lacking": studies it has
    still to embed. Where the pack in force cannot be read, that is said, and the command ends with 1.

    Example: dicomnode models status --json
    """
    from dicomnode.domain import ModelId
    from dicomnode.models.manifest import find_by_model

    node = open_node(config)
    in_force = _in_force(node)
    unreadable = in_force if isinstance(in_force, PackError) else None
    folders, active = ([], None) if isinstance(in_force, PackError) else ([in_force[0]], in_force[1].model_id)
    rows = []
    for model_id, state in sorted(_states(node, active).items(), key=lambda item: item[1]["state"] != "active"):
        folder = find_by_model(ModelId(model_id), [*folders, Path(node.settings.models.pack)], node.pack_folders)
        rows.append({"model_id": model_id, "name": folder.name if folder else "(no readable pack)", **state})
    data = {"active": active, "taking_over": node.is_locked(LOCK), "models": rows}
    if json:
        print_json({**data, "unreadable": None if unreadable is None else str(unreadable)})
    else:
        if data["taking_over"]:
            out.print("a model is taking over; the active one answers until it has all studies")
        columns = ["name", "state", "studies", "lacking", "vectors", "model_id"]
        print_table("models", columns, [[str(r[c]) for c in columns] for r in rows])
    _tell([] if unreadable is None else [unreadable])


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
    labelled, beside what a random order is expected to reach. Unknown is never negative. Nothing is changed. A damaged
    pack is refused.

    Example: dicomnode models compare cenet-xception packs/mine
    """
    from dicomnode.models.manifest import find_pack, read_manifest, verify_files
    from dicomnode.workflow.comparing import Side
    from dicomnode.workflow.comparing import compare as compare_models

    node = open_node(config)
    folders = [find_pack(p, node.pack_folders) for p in (one, other)]
    for folder in folders:  # its networks may not be needed: kept vectors would hide the damage
        verify_files(folder, read_manifest(folder))
    if _is_empty(node):
        raise NotFound("holds no studies to compare packs with", place="repository", advice="dicomnode index add PATH")
    models = [node.models.open(folder) for folder in folders]
    sides = [Side.of(node.catalogue, node.objects, model) for model in models]
    with progress_bar("studies", quiet=json) as update:
        found = compare_models(sides[0], sides[1], update)
    if json:
        print_json(found.as_json([m.model_id for m in models]))
    else:
        _print_comparison(found, (one, other))


def _is_empty(node: Node) -> bool:
    """Whether there are no studies; a catalogue that is not there is not made to ask it."""
    from dicomnode.doctor import is_fresh

    return is_fresh(node) or not node.catalogue.study_sources()


def _print_comparison(found: Comparison, names: tuple[str, str]) -> None:
    from dicomnode.evaluation.findings import MIN_PATIENTS

    for note in found.notes:
        err.print(note)
    overlap = "unknown (fewer than 3 studies)" if found.overlap is None else f"{found.overlap:.3f}"
    out.print(f"overlap@10: {overlap} over {found.studies} studies")
    for name, p in zip(names, found.precision, strict=True):
        if p is None:
            out.print(f"P@10 by findings of {name}: needs {MIN_PATIENTS} labelled patients")
        else:
            out.print(
                f"P@10 by findings of {name}: {p.mean:.3f} [{p.low:.3f}, {p.high:.3f}], {p.patients} labelled patients"
            )
    if found.random_order is not None:
        out.print(f"P@10 by findings of a random order (expected): {found.random_order:.3f}")

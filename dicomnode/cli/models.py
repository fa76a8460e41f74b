"""``dicomnode models``: the model packs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli.options import Config, Json, open_node, out, print_json, print_table, progress_bar
from dicomnode.telemetry.audit import AuditEvent

app = typer.Typer(help="List, verify and activate model packs.", no_args_is_help=True)
Pack = Annotated[str, typer.Argument(help="Name of a shipped pack, or a folder.")]


@app.command("list")
def list_(config: Config = None, json: Json = False) -> None:
    """List the packs that are there and which is active.

    Example: dicomnode models list
    """
    from dicomnode.models.manifest import list_packs
    from dicomnode.node import packs_folder

    node = open_node(config)
    active = node.pack_dir.resolve()
    rows = [
        {
            "name": manifest.name,
            "model_id": manifest.model_id,
            "dim": manifest.dim,
            "status": manifest.status,
            "active": folder.resolve() == active,
            "path": str(folder),
        }
        for folder, manifest in list_packs((packs_folder(), node.data_dir / "packs"))
    ]
    if json:
        print_json({"packs": rows})
        return
    columns = ["name", "active", "dim", "status", "model_id", "path"]
    print_table("packs", columns, [[str(r[c]) for c in columns] for r in rows])


@app.command()
def verify(pack: Pack = "", config: Config = None, json: Json = False) -> None:
    """Check a pack's files and that it reproduces its golden vectors.

    Example: dicomnode models verify cenet-xception
    """
    from dicomnode.models.manifest import find_pack
    from dicomnode.models.pack import Pack as ModelPack
    from dicomnode.node import packs_folder

    node = open_node(config)
    folder = find_pack(pack, (packs_folder(), node.data_dir / "packs")) if pack else node.pack_dir
    loaded = ModelPack.load(folder)
    if json:
        print_json({"ok": True, "name": loaded.manifest.name, "model_id": loaded.manifest.model_id})
    else:
        out.print(f"ok: {loaded.manifest.name} {loaded.manifest.model_id}")


@app.command()
def activate(pack: Pack, config: Config = None) -> None:
    """Embed the whole repository with another pack and put it to work. The node must be stopped meanwhile.

    Example: dicomnode models activate packs/mine
    """
    from dicomnode.models.embedder import Embedder
    from dicomnode.models.manifest import find_pack
    from dicomnode.node import packs_folder
    from dicomnode.workflow.reindex import reindex

    node = open_node(config)
    folder = find_pack(pack, (packs_folder(), node.data_dir / "packs"))
    embedder = Embedder.load(folder, node.settings.models.device)
    with node.lock("worker"), progress_bar("studies") as update:  # no answer may mix two models
        node.record(AuditEvent.MODEL_ACTIVATED)
        index = node.index_of(embedder)
        index.admit()
        embedded = reindex(node.context_of(embedder, index), update)
        node.catalogue.put("active_pack", str(folder.resolve()))
        index.discard_other_models()
    out.print(f"{embedded} studies embedded; {folder.name} is active")


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(help="A pack's folder.")],
    other: Annotated[Path, typer.Argument(help="Another pack's folder.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """How far two packs agree on this repository: overlap of the ten nearest slices of other patients.

    Example: dicomnode models compare config/packs/cenet-xception packs/mine
    """
    from dicomnode.models.embedder import Embedder
    from dicomnode.workflow.reindex import overlap_at_ten

    node = open_node(config)
    packs = [Embedder.load(p, node.settings.models.device) for p in (one, other)]
    value, n = overlap_at_ten(node.catalogue, node.objects, packs[0], packs[1])
    if json:
        print_json({"overlap_at_10": value, "studies": n})
    else:
        out.print(f"overlap@10: {value:.3f} over {n} studies")

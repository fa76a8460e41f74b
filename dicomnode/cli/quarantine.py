"""``dicomnode quarantine``: what was held, and what to do with it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from dicomnode.archive.quarantine import HELD, Item
from dicomnode.cli.options import Config, Json, iso, open_node, out, print_json, print_table
from dicomnode.errors import UsageError
from dicomnode.node import Node
from dicomnode.telemetry.audit import AuditEvent

app = typer.Typer(help="List, release and discard what was held.", no_args_is_help=True)
Id = Annotated[int, typer.Argument(metavar="ID", help="Row of 'quarantine list'.")]


def _rows(node: Node, items: Sequence[Item]) -> list[dict[str, Any]]:
    """The items; of those that were received and are held also who sent them and how many objects they are."""
    from dicomnode.scp.schema import JobState

    received = any(i.job_id is not None and i.state == HELD for i in items)
    jobs = {j.id: j for j in node.spool.jobs(JobState.QUARANTINED)} if received else {}
    names: dict[str, list[str]] = {}
    for peer in node.settings.dicom.peers:
        names.setdefault(peer.ae_title, []).append(peer.name)
    rows = []
    for item in items:
        row: dict[str, Any] = {**item.as_json(), "created": iso(item.created), "sender": None, "instances": None}
        if (job := jobs.get(item.job_id or 0)) is not None:
            row["sender"] = ", ".join(names.get(job.calling, [job.calling]))
            row["instances"] = len(job.instances)
        rows.append(row)
    return rows


@app.command("list")
def list_(config: Config = None, json: Json = False) -> None:
    """List what is held.

    Example: dicomnode quarantine list --json
    """
    node = open_node(config)
    items = _rows(node, node.quarantine.items())
    if json:
        print_json({"items": items})
        return
    columns = ["id", "state", "reason", "sender", "instances", "place", "line", "advice"]
    print_table("quarantine", columns, [[str(i[c] or "") for c in columns] for i in items])


@app.command()
def show(id_: Id, config: Config = None, json: Json = False) -> None:
    """Show one item: why it is held, and the command that solves it.

    Example: dicomnode quarantine show 2
    """
    node = open_node(config)
    (item,) = _rows(node, [node.quarantine.item(id_)])
    if json:
        print_json(item)
        return
    for key, value in item.items():
        out.print(f"{key}: {value if value is not None else ''}")


@app.command()
def release(id_: Id, config: Config = None) -> None:
    """Process an item's objects again, after its cause was removed.

    Example: dicomnode quarantine release 2
    """
    node = open_node(config)
    job = _held_job(node, id_)
    node.record(AuditEvent.QUARANTINE_RELEASED, row=id_)
    node.spool.requeue(job, released=True)
    node.quarantine.set_state(id_, "released")
    out.print("released; a running node processes it now")


@app.command()
def discard(id_: Id, config: Config = None) -> None:
    """Delete an item's objects for good.

    Example: dicomnode quarantine discard 2
    """
    from dicomnode.scp.schema import JobState

    node = open_node(config)
    item = node.quarantine.item(id_)
    if item.state != "held":
        raise UsageError(f"the item is {item.state} already", place=f"quarantine {id_}")
    node.record(AuditEvent.QUARANTINE_DISCARDED, row=id_)
    if item.job_id is not None:
        node.spool.remove_job_files(item.job_id)
        node.spool.set_job_state(item.job_id, JobState.DISCARDED)
        shutil.rmtree(node.folders.job(item.job_id), ignore_errors=True)
    node.quarantine.set_state(id_, "discarded")
    out.print("discarded")


def _held_job(node: Node, id_: int) -> int:
    item = node.quarantine.item(id_)
    if item.state != "held":
        raise UsageError(f"the item is {item.state} already", place=f"quarantine {id_}")
    if item.job_id is None:
        raise UsageError(
            "the files were left where they are: mend them and run 'dicomnode index add' again",
            place=f"quarantine {id_}",
        )
    return item.job_id

"""``dicomnode quarantine``: what was held, and what to do with it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dicomnode.archive.quarantine import HELD, Item
from dicomnode.cli.options import Config, Json, err, iso, open_node, out, print_json, print_table
from dicomnode.errors import UsageError
from dicomnode.node import Node
from dicomnode.telemetry.audit import AuditEvent

NOT_STATED = "not stated"
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
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Also what was released or discarded.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """List what is held; with --json everything, each with its state.

    Example: dicomnode quarantine list --json
    """
    node = open_node(config)
    items = _rows(node, node.quarantine.items(state=None if all_ or json else HELD))
    if json:
        print_json({"items": items})
        return
    columns = ["id", "state", "reason", "sender", "instances", "place", "line", "advice"]
    print_table("quarantine", columns, [[str(i[c] or "") for c in columns] for i in items])


@app.command()
def show(
    id_: Id,
    picture: Annotated[
        Path | None, typer.Option(help="Write a PNG of its image to this new file. It shows patient data; audited.")
    ] = None,
    instance: Annotated[int, typer.Option(min=1, help="Which of its objects the picture is of.")] = 1,
    frame: Annotated[int, typer.Option(min=1, help="Which frame the picture is of.")] = 1,
    identify: Annotated[
        bool, typer.Option("--identify", help="Print the original UIDs, to find the study in the PACS; audited.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why, for the audit trail; needed with --identify.")] = "",
    config: Config = None,
    json: Json = False,
) -> None:
    """Show one item: why it is held, at which place, and the commands that solve it.

    Example: dicomnode quarantine show 2
    Example: dicomnode quarantine show 2 --picture look.png
    Example: dicomnode quarantine show 2 --identify --reason "asked the CT to send it again"
    """
    node = open_node(config)
    held = node.quarantine.item(id_)
    (row,) = _rows(node, [held])
    row["commands"] = _commands(held)
    if row["advice"]:
        row["advice"] = row["advice"].replace(" ID", f" {id_}")
    if identify:
        row["originals"] = _identify(node, id_, reason)
    if picture is not None:
        row["picture"] = str(_write_picture(node, id_, picture, instance - 1, frame - 1, reason))
    if json:
        print_json(row)
        return
    for key, value in row.items():
        if not isinstance(value, list):
            out.print(f"{key}: {value if value is not None else ''}")
    for original in row.get("originals", []):
        out.print(*(f"{key}: {value}" for key, value in original.items()), sep="\n  ")
    for command in row["commands"]:
        out.print(f"-> {command}")


def _commands(item: Item) -> list[str]:
    from dicomnode.workflow.holding import commands_for

    return commands_for(item.reason, item.id, received=item.job_id is not None) if item.state == HELD else []


def _identify(node: Node, id_: int, reason: str) -> list[dict[str, Any]]:
    """Original UIDs, after the audit trail has it."""
    from dicomnode.workflow.holding import originals

    job = node.spool.job(_held_job(node, id_))
    if not reason.strip():
        raise UsageError("--reason is needed with --identify", place=f"quarantine {id_}")
    node.record(AuditEvent.QUARANTINE_IDENTIFIED, row=id_, reason=reason)
    return [original.as_json() for original in originals(job.study_uid, job.instances)]


def _write_picture(node: Node, id_: int, target: Path, number: int, frame: int, reason: str) -> Path:
    """A PNG for its owner alone, after the audit trail has it."""
    from dicomnode.workflow.holding import check_target, picture_of, write_private

    job = node.spool.job(_held_job(node, id_))
    check_target(target)
    if number >= len(job.instances):
        raise UsageError(f"it holds {len(job.instances)} objects", place=f"quarantine {id_} --instance")
    pixels = picture_of(job.instances[number], frame)
    node.record(AuditEvent.QUARANTINE_PICTURED, row=id_, reason=reason)
    write_private(target, pixels)
    err.print(f"{target}: shows patient data: keep it to yourself, and delete it when you have seen it")
    return target


@app.command()
def release(
    id_: Id,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[FRAME:]LEFT,TOP,WIDTH,HEIGHT",
            help="Blank this rectangle of its image first, in pixels counted from 0; of every frame, or of FRAME "
            "(from 1). May be repeated; adds to the masks of earlier releases.",
        ),
    ] = None,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Say that you looked and that nothing is left that identifies: text that was found is anatomy or a "
            "scale; of recognizable-face: there is no face. Masks of earlier releases stay.",
        ),
    ] = False,
    instance: Annotated[
        str, typer.Option(metavar="N", help="Which of its objects, like 1,3-5; the others stay held.")
    ] = "",
    reason: Annotated[
        str, typer.Option(help="Why, for the audit trail; needed with --mask and --clean. No name of a patient.")
    ] = "",
    config: Config = None,
) -> None:
    """Process an item's objects again: after its cause was removed, or with what you decided about its pixels.

    Masks and statements go into the audit trail with your name. The result is audited as always, and held again where
    text can still be read.

    Example: dicomnode quarantine release 2
    Example: dicomnode quarantine release 2 --mask 10,10,200,40 --mask 3:0,400,512,30 --reason "name in the corner"
    Example: dicomnode quarantine release 2 --clean --reason "what was found is the scale"
    """
    from dicomnode.workflow.releasing import is_finished

    node = open_node(config)
    job_id = _held_job(node, id_)
    if is_finished(node.quarantine.item(id_), node.spool.job(job_id)):
        node.quarantine.set_state(id_, "released")
        out.print("its objects were released already by a command that was interrupted; the item is closed now")
        return
    if mask or clean or instance:
        _release_by_hand(node, id_, job_id, mask or [], clean, instance, reason)
        return
    node.record(AuditEvent.QUARANTINE_RELEASED, row=id_, reason=reason)
    node.spool.requeue(job_id, released=True)
    node.quarantine.set_state(id_, "released")
    out.print("released; a running node processes it now")


def _release_by_hand(node: Node, id_: int, job_id: int, masks: list[str], clean: bool, which: str, reason: str) -> None:
    """The chosen objects go on with what was decided, after the audit trail has it; the others stay held."""
    from dicomnode.workflow.releasing import prepare

    job = node.spool.job(job_id)
    made = prepare(node.quarantine.item(id_), job, masks, clean=clean, which=which, reason=reason)
    node.record(AuditEvent.QUARANTINE_RELEASED, row=id_, reason=reason, detail=made.detail)
    _, closed = node.spool.release(job_id, made.decisions)
    if closed:
        node.quarantine.set_state(id_, "released")
    left = "" if closed else f"; {len(job.instances) - len(made.decisions)} objects stay held"
    out.print(f"released: {made.detail}{left}; a running node processes it now")


@app.command()
def discard(
    id_: Id,
    reason: Annotated[str, typer.Option(help="Why, for the audit trail; asked for where it is not given.")] = "",
    config: Config = None,
) -> None:
    """Delete an item's objects for good.

    Example: dicomnode quarantine discard 2 --reason "the sender has corrected it and sent it again"
    """
    from dicomnode.scp.schema import JobState

    node = open_node(config)
    item = node.quarantine.item(id_)
    if item.state != HELD:
        raise UsageError(f"the item is {item.state} already", place=f"quarantine {id_}")
    node.record(AuditEvent.QUARANTINE_DISCARDED, row=id_, reason=reason.strip() or _asked())
    if item.job_id is not None:
        node.spool.remove_job_files(item.job_id)
        node.spool.set_job_state(item.job_id, JobState.DISCARDED)
        shutil.rmtree(node.folders.job(item.job_id), ignore_errors=True)
    node.quarantine.set_state(id_, "discarded")
    out.print("discarded")


def _asked() -> str:
    """The reason from who sits at the terminal; a script that gives none is told apart in the audit trail."""
    reason = str(typer.prompt("Why is it deleted for good", err=True)) if sys.stdin.isatty() else ""
    return reason.strip() or NOT_STATED


def _held_job(node: Node, id_: int) -> int:
    item = node.quarantine.item(id_)
    if item.state != HELD:
        raise UsageError(f"the item is {item.state} already", place=f"quarantine {id_}")
    if item.job_id is None:
        raise UsageError(
            "the files were left where they are: mend them and run 'dicomnode index add' again",
            place=f"quarantine {id_}",
        )
    return item.job_id

"""``dicomnode results``: what was answered and whether it arrived."""

from __future__ import annotations

from typing import Annotated

import typer

from dicomnode.cli.options import NO_FINDINGS, Config, Json, iso, open_node, out, print_json, print_table, told_once
from dicomnode.cli.query import verdict_lines
from dicomnode.domain import OriginalUid
from dicomnode.errors import NotFound, UsageError
from dicomnode.node import Node
from dicomnode.telemetry.audit import AuditEvent

app = typer.Typer(help="List, show and send results again.", no_args_is_help=True)
Id = Annotated[int, typer.Argument(metavar="ID", help="Row of 'results list'.")]


def _row(r: object) -> dict[str, object]:
    from dicomnode.archive.answers import Result

    assert isinstance(r, Result)
    return {
        "id": r.id,
        "study_uid": r.study_uid,
        "state": r.state,
        "destination": r.destination,
        "created": iso(r.created),
        "kind": r.kind,
        "attempts": r.attempts,
        "error": r.error,
        "delivered": None if r.delivered is None else iso(r.delivered),
    }


def _print(rows: list[dict[str, object]], json: bool, none: str = "nothing found") -> None:
    if json:
        print_json({"results": rows})
        return
    if not rows:
        out.print(none)
        return
    columns = ["id", "created", "state", "destination", "kind", "attempts", "study_uid", "error"]
    print_table("results", columns, [[str(r[c] if r[c] is not None else "") for c in columns] for r in rows])


@app.command("list")
def list_(config: Config = None, json: Json = False) -> None:
    """List all results.

    Example: dicomnode results list --json
    """
    _print([_row(r) for r in open_node(config).answers.results()], json, "no results yet")


@app.command()
def show(id_: Id, config: Config = None, json: Json = False) -> None:
    """Show one result with its answer.

    Example: dicomnode results show 3
    """
    node = open_node(config)
    result = node.answers.result(id_)
    answer = node.answers.by_id(result.answer_id)
    if json:
        print_json({**_row(result), "link": f"{node.link_base}/v/r/{answer.token}", "answer": answer.answer.as_json()})
        return
    _print([_row(result)], json=False)
    out.print(f"link: {node.link_base}/v/r/{answer.token}")
    for line in verdict_lines(answer.answer):
        out.print(line)
    for case in answer.answer.cases:
        findings = "; ".join(told_once(case.findings)) or NO_FINDINGS[case.status]
        out.print(f"{case.rank}. {case.similarity:.3f} {case.subject} {findings}")


@app.command()
def resend(id_: Id, config: Config = None) -> None:
    """Send a result again: the same object, the same UID.

    Example: dicomnode results resend 3
    """
    node = open_node(config)
    result = node.answers.result(id_)
    if not node.folders.sent(result.id).exists():
        raise NotFound("the sent object is no longer kept", place=f"result {id_}", advice="send the study again")
    node.record(AuditEvent.RESULT_RESENT, row=result.id)
    node.answers.mark_resend(result.id)
    out.print("queued; a running node sends it now")


@app.command()
def find(
    accession: Annotated[str | None, typer.Option(help="Accession Number of the study, as it was received.")] = None,
    study: Annotated[str | None, typer.Option(help="Study Instance UID, original or pseudonymous.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Find the results of a study.

    --accession finds a study from when it was answered, and for good: the node keeps a keyed hash of the number with
    the answer, never the number. It finds nothing where the images carried none.

    Example: dicomnode results find --study 1.2.840.1
    Example: dicomnode results find --accession A1234
    """
    if bool(accession) == bool(study):
        raise UsageError("give --accession or --study", place="results find")
    node = open_node(config)
    _print([_row(r) for r in _found(node, accession, study)], json)


def _found(node: Node, accession: str | None, study: str | None) -> list[object]:
    from dicomnode.domain import PseudoUid

    if study:
        both = (PseudoUid(study), node.vault.uid(OriginalUid(study)))
        return [r for r in node.answers.results() if r.study_uid in both]
    keyed = node.vault.keyed_hash("accession", accession or "")
    return list(node.answers.results(accession=keyed))

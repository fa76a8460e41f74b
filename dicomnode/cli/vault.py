"""``dicomnode vault`` and ``dicomnode reidentify``: the pseudonyms, their key, and the way back to a patient."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli.options import Config, Json, err, open_node, out, print_json, print_table
from dicomnode.cli.patients import ROLES, Issuer, Reason, checked_reason, kept_away, patient_key, patients_to_change
from dicomnode.errors import EXIT_FAILED, UsageError, VaultError
from dicomnode.node import Node
from dicomnode.telemetry.audit import AuditEvent

app = typer.Typer(help="Look at the pseudonym vault, renew its key, join two ids of a patient.", no_args_is_help=True)


@app.command()
def status(config: Config = None, json: Json = False) -> None:
    """Print how many patients the vault holds, its epoch, and which kind of source its key comes from.

    Example: dicomnode vault status --json
    """
    node = open_node(config)
    _must_be_there(node)
    data = asdict(node.vault.status())
    if json:
        print_json(data)
    else:
        print_table("vault", ["what", "value"], [[k, str(v)] for k, v in data.items()])


def _must_be_there(node: Node) -> None:
    path, _ = node.vault_place
    if not path.exists():
        raise VaultError("there is no vault yet", place=str(path), advice="the first start of the node makes it")


@app.command()
def rotate(
    new_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the new key (32 bytes as hex or base64), mode 0600; else a random one is made."),
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Bring the vault under a new key; known patients keep pseudonym, UIDs and dates. The node must be stopped.

    A key file is replaced. Where the key comes from a variable or a command, give the new one with --new-key-file and
    put it there afterwards. Keep a copy of the new key elsewhere; the old one opens older copies of the vault only.

    Example: dicomnode vault rotate
    """
    from dicomnode.deid.rotation import rotate as rotated
    from dicomnode.deid.vault_key import read_key

    node = open_node(config)
    _must_be_there(node)
    path, key = node.vault_place
    given = None if new_key_file is None else read_key(new_key_file)
    with kept_away(node, ROLES, "its processes hold the key"), patients_to_change(node):
        node.record(AuditEvent.VAULT_ROTATED)
        done = rotated(path, key, given)
    if json:
        print_json(asdict(done))
        return
    if done.already:
        out.print(f"the vault is under this key already: epoch {done.epoch}")
    else:
        out.print(f"the vault is under its new key: epoch {done.epoch}")
        err.print("keep a copy of the new key elsewhere, a lost one cannot be made again")
    if not done.swept:
        err.print("the vault's file still holds bytes under the old key: free some space; the next start tries again")
    if key.path is None:
        err.print(f"[vault] key_{key.name} must give the new key from now on")


@app.command()
def merge(
    patient_id: Annotated[str, typer.Option(help="The Patient ID that stays; - reads a line of standard input.")],
    other_id: Annotated[
        str, typer.Option(help="The Patient ID that becomes another name of it; - reads a line of standard input.")
    ],
    issuer: Issuer = None,
    other_issuer: Annotated[str | None, typer.Option(help="Issuer of the other one, where it is another.")] = None,
    reason: Reason = "",
    config: Config = None,
    json: Json = False,
) -> None:
    """Join two Patient IDs of one person: one pseudonym, one date line, never a case of each other. No way back.

    Studies of the other one are taken to the pseudonym that stays, and their dates moved onto its line. The worker
    must be stopped. Killed or failed, it is finished by the same command again.

    Example: dicomnode vault merge --patient-id - --other-id - --issuer HOSPITAL
    """
    from dicomnode.workflow.merging import take_together

    why = checked_reason(reason)
    node = open_node(config)
    in_hand = "what its worker has in hand would keep the old pseudonym"
    with kept_away(node, ["worker"], in_hand), patients_to_change(node):
        kept = patient_key(node, patient_id, issuer)
        other = patient_key(node, other_id, issuer if other_issuer is None else other_issuer, "--other-id")
        known = node.vault.pseudonym_for(kept.issuer, kept.patient_id, create=False)
        node.record(AuditEvent.PATIENTS_MERGED, pseudonym=known or "", reason=why)
        merged = node.vault.merge(kept, other)
        moved = take_together(node.context, merged)
    data = {"pseudonym": merged.pseudonym, "replaced": [m.former for m in merged.moves], **asdict(moved)}
    if json:
        print_json(data)
    else:
        replaced = ", ".join(data["replaced"])
        out.print(f"{merged.pseudonym} stands for {replaced} too")
        out.print(
            f"{moved.studies} studies and {moved.objects} objects were taken to it, {moved.answers} answers changed"
        )
    if moved.damaged:
        err.print(f"{moved.damaged} objects are damaged and were left as they are: dicomnode index verify")
        raise typer.Exit(EXIT_FAILED)


def reidentify_command(
    pseudonym: Annotated[str, typer.Argument(metavar="PSEUDONYM", help="Of a patient, as DN-ABCDEFGHIJ.")],
    reason: Annotated[str, typer.Option(help="Why; it is written to the audit trail, so name no patient in it.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """Tell whose pseudonym it is: issuer and Patient ID. Who asked, when and why is recorded, found or not.

    Printed to standard output only, one line an id: issuer, tab, Patient ID; ids that were merged follow the first.

    Example: dicomnode reidentify DN-ABCDEFGHIJ --reason "incidental finding, ethics vote 12"
    """
    from dicomnode.deid.vault import PSEUDONYM

    node = open_node(config)
    if not PSEUDONYM.fullmatch(pseudonym):  # not repeated: it may be what must not be in a log
        raise UsageError("not a pseudonym of the vault", place="PSEUDONYM", advice="as DN-ABCDEFGHIJ")
    reason = checked_reason(reason, needed=True)
    node.record(AuditEvent.REIDENTIFIED, pseudonym=pseudonym, reason=reason)
    keys = node.vault.reidentify(pseudonym, reason, getpass.getuser())
    if json:
        ids = [{"issuer": key.issuer, "patient_id": key.patient_id} for key in keys]
        print_json({"pseudonym": pseudonym, **ids[0], "merged": ids[1:]})
        return
    for key in keys:
        print(f"{key.issuer}\t{key.patient_id}")

"""How commands are told of a patient by the hospital's own id, and how they keep the node's processes away meanwhile.

An id given as an option stays in the shell's history and in the list of processes; ``-`` reads it from standard input.
It is never printed, logged or part of an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Annotated

import typer

from dicomnode.deid.vault_key import PatientKey
from dicomnode.errors import Busy, UsageError
from dicomnode.node import Node
from dicomnode.telemetry.audit import MAX_REASON

ROLES = ("receiver", "worker", "web")
PATIENTS = "patients"  # name of a lock: shared by what adds under pseudonyms, alone for what changes them

PatientId = Annotated[
    str | None, typer.Option(help="The hospital's Patient ID; - reads it from standard input, which no history keeps.")
]
Issuer = Annotated[
    str | None, typer.Option(help="Issuer of Patient ID, as in the images; else \\[node] default_issuer, as for them.")
]


Reason = Annotated[str, typer.Option(help="Why, for the audit trail: name no patient in it.")]


def checked_reason(reason: str, *, needed: bool = False) -> str:
    """The reason that was typed, without blanks around it.

    Raises
    ------
    UsageError
        It is too long, or empty where it is ``needed``.
    """
    text = reason.strip()
    if len(text) > MAX_REASON or (needed and not text):
        needs = "is needed" if needed else "is what the audit trail takes"
        raise UsageError(f"a reason of at most {MAX_REASON} characters {needs}", place="--reason")
    return text


def patient_key(node: Node, patient_id: str, issuer: str | None, option: str = "--patient-id") -> PatientKey:
    """The patient that options name; ``-`` reads one line of standard input.

    Raises
    ------
    UsageError
        The id is empty.
    """
    if patient_id == "-":
        if sys.stdin.isatty():
            sys.stderr.write(f"{option}: ")
            sys.stderr.flush()
        patient_id = sys.stdin.readline()
    if not patient_id.strip():
        raise UsageError("no Patient ID was given", place=option)
    return PatientKey(node.settings.node.default_issuer if issuer is None else issuer, patient_id.strip())


def patients_in_use(node: Node) -> IO[str]:
    """No patient is merged or removed, nor the key renewed, while ``index add`` works with pseudonyms of the vault.

    Held until it is closed, so for a ``with``; ``patients_to_change`` too.

    Raises
    ------
    Busy
        One of those commands runs.
    """
    line = "'dicomnode vault merge', 'vault rotate' or 'index remove' runs"
    return _patients_locked(node, line, "wait until it has ended", shared=True)


def patients_to_change(node: Node) -> IO[str]:
    """No ``index add`` runs, nor starts in the meantime: it would go on under a pseudonym that is no longer in force.

    Raises
    ------
    Busy
        One runs, or another command that changes patients.
    """
    line = "'dicomnode index add', or another command that changes patients, runs"
    return _patients_locked(node, line, "wait until it has ended, or stop it")


def _patients_locked(node: Node, line: str, advice: str, *, shared: bool = False) -> IO[str]:
    try:
        return node.lock(PATIENTS, shared=shared)
    except Busy:
        raise Busy(line, place=str(node.data_dir), advice=advice) from None


@contextmanager
def worker_kept_away(node: Node) -> Iterator[bool]:
    """Whether no worker runs, nor starts in the meantime."""
    with ExitStack() as stack:
        try:
            stack.enter_context(node.lock("worker"))
        except Busy:
            yield False
        else:
            yield True


@contextmanager
def kept_away(node: Node, roles: Sequence[str], why: str) -> Iterator[None]:
    """No process of these roles runs, nor starts in the meantime.

    Raises
    ------
    Busy
        One runs.
    """
    with ExitStack() as stack:
        try:
            for role in roles:
                stack.enter_context(node.lock(role))
        except Busy:
            raise Busy(f"the node runs; {why}", place=str(node.data_dir), advice="stop it first") from None
        yield

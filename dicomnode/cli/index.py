"""``dicomnode index``: the repository."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli.options import Config, Json, err, open_node, out, print_json, print_table, progress_bar
from dicomnode.cli.patients import (
    Issuer,
    PatientId,
    Reason,
    checked_reason,
    patient_key,
    patients_in_use,
    patients_to_change,
    worker_kept_away,
)
from dicomnode.domain import OriginalUid, Pseudonym, PseudoUid
from dicomnode.errors import EXIT_FAILED, InputError, NotFound, UsageError
from dicomnode.telemetry.audit import AuditEvent

if TYPE_CHECKING:
    from dicomnode.deid.vault_key import PatientKey
    from dicomnode.node import Node
    from dicomnode.workflow.ingest import Added

SHOWN = 50  # lines about rows that were left out

app = typer.Typer(help="Fill, look at and mend the repository.", no_args_is_help=True)


@app.command()
def add(
    paths: Annotated[list[Path], typer.Argument(help="Folders or files of DICOM, or one LABELS.csv.")],
    findings: Annotated[Path | None, typer.Option(help="CSV: study, system, code, display.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """De-identify and add studies to the repository; a second run adds nothing.

    Example: dicomnode index add /archive/2024 --findings diagnoses.csv
    Example: dicomnode index add teaching/LABELS.csv
    """
    from dicomnode.workflow.ingest import Added, add_paths, read_findings
    from dicomnode.workflow.labels import add_labels, is_labels_file, read_labels

    labels = [p for p in paths if is_labels_file(p)]
    folders = [p for p in paths if not is_labels_file(p)]
    if labels and findings:
        raise UsageError("--findings belongs to DICOM folders, a LABELS.csv has its own labels", place="--findings")
    for path in folders:
        if not path.exists():
            raise UsageError("no such file or folder", place=str(path))
    for path in labels:  # a table that cannot be used makes no vault
        read_labels(path)
    if findings is not None:
        read_findings(findings)
    node = open_node(config)
    done: list[Added] = []
    with patients_in_use(node), progress_bar("studies", quiet=json) as update:
        done += [add_labels(node.context, p, update) for p in labels]
        if folders:
            done.append(add_paths(node.context, folders, findings, update))
    total = Added()
    for added in done:
        total += added
    _print_added(total, json)
    if not (total.studies or total.already or total.quarantined):
        places = ", ".join(map(str, paths))
        advice = "give a folder of DICOM images or a LABELS.csv"
        if labels and total.left_out:
            raise InputError("none of its images could be added", place=places)
        raise InputError("nothing was found to add", place=places, advice=advice)
    if total.quarantined or total.left_out:
        raise typer.Exit(EXIT_FAILED)


def _print_added(total: Added, json: bool) -> None:
    from dicomnode.models.series import KEY_SLICES, MAX_SERIES

    if json:
        print_json(asdict(total))
        return
    for reason, n in total.skipped.items():
        err.print(f"skipped: {n} files: {reason}")
    for note in [*total.notes, *total.left_out[:SHOWN]]:
        err.print(note)
    if len(total.left_out) > SHOWN:
        err.print(f"... and {len(total.left_out) - SHOWN} more rows; --json names all")
    if not (total.studies or total.already):
        return  # the one line that says so comes last
    again = f"; {total.duplicates} files are copies of others" if total.duplicates else ""
    held = f"; {total.quarantined} files are in quarantine" if total.quarantined else ""
    out.print(
        f"added {total.studies} studies, {total.instances} instances, {total.vectors} vectors, "
        f"{total.findings} findings; {total.already} studies were there already{again}{held}"
    )
    if total.vectors < total.instances:
        out.print(
            f"{total.vectors} key slices of {total.instances} images are embedded: at most {KEY_SLICES} a series, "
            f"of at most {MAX_SERIES} series a study, and only images that can be searched with"
        )
    if total.labels:
        told = (f"{label or '(empty)'}: {status} {n}" for label, by in total.labels.items() for status, n in by.items())
        out.print(f"labels of the added cases: {'; '.join(told)}")


@app.command()
def status(config: Config = None, json: Json = False) -> None:
    """Print what the repository holds.

    Example: dicomnode index status --json
    """
    node = open_node(config)
    data = node.index.status()
    if json:
        print_json(data)
        return
    print_table("repository", ["what", "value"], [[k, str(v)] for k, v in data.items()])


@app.command()
def rebuild(config: Config = None, json: Json = False) -> None:
    """Embed anew what has no vectors of the active model, and build the search snapshot.

    Example: dicomnode index rebuild
    """
    from dicomnode.workflow.reindex import reindex

    node = open_node(config)
    lost = node.index.repair()
    with progress_bar("studies", quiet=json) as update:
        embedded = reindex(node.context, update)
    built = node.index.rebuild()
    data = {"lost": len(lost), "embedded": embedded, "line": built.line, **node.index.status()}
    if json:
        print_json(data)
    else:
        out.print(
            f"{len(lost)} studies had damaged vectors; {embedded} studies were embedded; {data['vectors']} vectors"
        )
        out.print(built.line)


@app.command()
def verify(config: Config = None, json: Json = False) -> None:
    """Check every vector segment, snapshot and archived object against its checksum.

    Example: dicomnode index verify
    """
    from dicomnode.workflow.reindex import verify_archive

    node = open_node(config)
    with progress_bar("objects", quiet=json) as update:
        problems = [*node.index.verify(), *verify_archive(node.context, update)]
    if json:
        print_json({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            err.print(problem)
        out.print("ok" if not problems else f"{len(problems)} problems")
    if problems:
        raise typer.Exit(EXIT_FAILED)


def _study(node: Node, uid: str) -> PseudoUid:
    """A study as the repository knows it: its pseudonymous UID, or the original one."""
    if node.catalogue.patient_of(PseudoUid(uid)) is not None:
        return PseudoUid(uid)
    return node.vault.uid(OriginalUid(uid))


PatientOption = Annotated[str | None, typer.Option(help="Pseudonym of a patient.")]


def _names(node: Node, patient: str | None, key: PatientKey | None) -> list[Pseudonym]:
    """All pseudonyms of a patient, that in force first; empty: an id that the vault does not know."""
    known = Pseudonym(patient or "")
    if key is not None:
        found = node.vault.pseudonym_for(key.issuer, key.patient_id, create=False)
        if found is None:
            return []
        known = found
    return node.vault.pseudonyms_of(known) or [known]


@app.command()
def remove(
    study: Annotated[str | None, typer.Option(help="Study Instance UID, pseudonymous or original.")] = None,
    patient: PatientOption = None,
    patient_id: PatientId = None,
    issuer: Issuer = None,
    reason: Reason = "",
    config: Config = None,
    json: Json = False,
) -> None:
    """Take a study, or all that there is of a patient, out of the node for good.

    Objects, vectors, thumbnails, originals in the spool, the answers about them, and their place in answers to others.
    A patient's entry in the vault goes too: sent again, the images are those of somebody new. Reports that a PACS has
    stay there.

    Example: dicomnode index remove --study 2.25.1234
    Example: dicomnode index remove --patient-id - --issuer HOSPITAL
    """
    from dicomnode.workflow.withdrawal import remove_patient, remove_studies

    if sum(map(bool, (study, patient, patient_id))) != 1:
        raise UsageError("give --study or --patient or --patient-id", place="index remove")
    why = checked_reason(reason)
    node = open_node(config)
    with nullcontext() if study else patients_to_change(node), worker_kept_away(node) as away:
        if study:
            uid = _study(node, study)
            node.record(AuditEvent.CASE_REMOVED, pseudonym=uid, reason=why)
            removed = remove_studies(node.context, [uid], worker_runs=not away)
        else:
            key = patient_key(node, patient_id, issuer) if patient_id else None
            names = _names(node, patient, key)
            node.record(AuditEvent.CASE_REMOVED, pseudonym=names[0] if names else "", reason=why)
            keys = [*([key] if key else []), *(node.vault.keys_of(names[0]) if names else [])]
            removed = remove_patient(node.context, names, keys, worker_runs=not away)
    if not removed.anything:
        given = "with the --issuer given" if issuer else "without issuer; --issuer as in the images' (0010,0021)?"
        advice = f"looked for {given}" if patient_id else "dicomnode index status"
        raise NotFound("no such study or patient in the repository", advice=advice)
    if json:
        print_json(asdict(removed))
    else:
        out.print(
            f"removed {removed.studies} studies, {removed.answers} answers about them and {removed.originals} "
            f"originals; {removed.changed_answers} answers to others changed"
        )
    if not removed.scrubbed:
        err.print(
            "the databases were in use: bytes of deleted rows stay in their files until the same command runs again"
        )


@app.command()
def exclude(
    patient: PatientOption = None,
    patient_id: PatientId = None,
    issuer: Issuer = None,
    reason: Reason = "",
    config: Config = None,
) -> None:
    """Keep a patient's studies out of every search from now on; "index include" takes it back.

    Example: dicomnode index exclude --patient DN-ABCDEFGHIJ
    Example: dicomnode index exclude --patient-id - --issuer HOSPITAL
    """
    _set_excluded(True, patient, patient_id, issuer, reason, config)
    out.print("excluded")


@app.command()
def include(
    patient: PatientOption = None,
    patient_id: PatientId = None,
    issuer: Issuer = None,
    reason: Reason = "",
    config: Config = None,
) -> None:
    """Let an excluded patient's studies be found again.

    Example: dicomnode index include --patient DN-ABCDEFGHIJ --reason "consent was given"
    """
    _set_excluded(False, patient, patient_id, issuer, reason, config)
    out.print("included")


def _set_excluded(
    excluded: bool, patient: str | None, patient_id: str | None, issuer: str | None, reason: str, config: Path | None
) -> None:
    node = open_node(config)
    if bool(patient) == bool(patient_id):
        raise UsageError("give --patient or --patient-id", place=f"index {'exclude' if excluded else 'include'}")
    why = checked_reason(reason)
    names = _names(node, patient, patient_key(node, patient_id, issuer) if patient_id else None)
    if not names:
        raise NotFound("no such patient in the repository")
    event = AuditEvent.CASE_EXCLUDED if excluded else AuditEvent.CASE_INCLUDED
    node.record(event, pseudonym=names[0], reason=why)
    node.catalogue.exclude_patient(names[0], excluded)
    if excluded:
        for study in node.catalogue.studies_of(names[0]):
            node.thumbnails.remove_study(study)

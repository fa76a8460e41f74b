"""``dicomnode index``: the repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli.options import Config, Json, err, open_node, out, print_json, print_table, progress_bar
from dicomnode.domain import OriginalUid, Pseudonym, PseudoUid
from dicomnode.errors import EXIT_FAILED, InputError, NotFound, UsageError
from dicomnode.telemetry.audit import AuditEvent

if TYPE_CHECKING:
    from dicomnode.workflow.ingest import Added

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
    from dicomnode.workflow.ingest import Added, add_paths
    from dicomnode.workflow.labels import add_labels, is_labels_file

    labels = [p for p in paths if is_labels_file(p)]
    folders = [p for p in paths if not is_labels_file(p)]
    if labels and findings:
        raise UsageError("--findings belongs to DICOM folders, a LABELS.csv has its own labels", place="--findings")
    for path in folders:
        if not path.exists():
            raise UsageError("no such file or folder", place=str(path))
    node = open_node(config)
    done: list[Added] = []
    with progress_bar("studies", quiet=json) as update:
        done += [add_labels(node.context, p, update) for p in labels]
        if folders:
            done.append(add_paths(node.context, folders, findings, update))
    node.close()
    total = Added()
    for added in done:
        total += added
    _print_added(total, json)
    if not (total.studies or total.already or total.quarantined):
        places = ", ".join(map(str, paths))
        raise InputError(
            "nothing was found to add", place=places, advice="give a folder of DICOM images or a LABELS.csv"
        )
    if total.quarantined:
        raise typer.Exit(EXIT_FAILED)


def _print_added(total: Added, json: bool) -> None:
    from dataclasses import asdict

    from dicomnode.models.series import KEY_SLICES, MAX_SERIES

    if json:
        print_json(asdict(total))
        return
    for reason, n in total.skipped.items():
        err.print(f"skipped: {n} files: {reason}")
    for note in total.notes:
        err.print(note)
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
    node.close()
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


def _study(node: object, uid: str) -> PseudoUid:
    """A study as the repository knows it: its pseudonymous UID, or the original one."""
    from dicomnode.node import Node

    assert isinstance(node, Node)
    if node.catalogue.patient_of(PseudoUid(uid)) is not None:
        return PseudoUid(uid)
    return node.vault.uid(OriginalUid(uid))


@app.command()
def remove(
    study: Annotated[str | None, typer.Option(help="Study Instance UID, pseudonymous or original.")] = None,
    patient: Annotated[str | None, typer.Option(help="Pseudonym of a patient.")] = None,
    config: Config = None,
) -> None:
    """Take a study, or all studies of a patient, out of the repository for good.

    Example: dicomnode index remove --study 2.25.1234
    """
    from dicomnode.workflow.ingest import remove_study

    if bool(study) == bool(patient):
        raise UsageError("give --study or --patient", place="index remove")
    node = open_node(config)
    studies = [_study(node, study)] if study else node.catalogue.studies_of(Pseudonym(patient or ""))
    for uid in studies:
        node.record(AuditEvent.CASE_REMOVED, pseudonym=uid)
    removed = [remove_study(node.context, s) for s in studies]
    if not any(removed):
        raise NotFound("no such study or patient in the repository", advice="dicomnode index status")
    out.print(f"removed {sum(removed)} studies")


@app.command()
def exclude(
    patient: Annotated[str, typer.Option(help="Pseudonym of a patient.")],
    config: Config = None,
) -> None:
    """Keep a patient's studies out of every search from now on.

    Example: dicomnode index exclude --patient DN-ABCDEF
    """
    node = open_node(config)
    node.record(AuditEvent.CASE_EXCLUDED, pseudonym=patient)
    node.catalogue.exclude_patient(Pseudonym(patient))
    for study in node.catalogue.studies_of(Pseudonym(patient)):
        node.thumbnails.remove_study(study)
    out.print("excluded")

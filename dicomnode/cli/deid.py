"""``dicomnode deid``: de-identify files into a folder, with the node's own recipe, vault and auditor."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli.options import Config, Json, err, open_node, out, print_json, progress_bar
from dicomnode.errors import EXIT_FAILED, NotFound, UsageError
from dicomnode.workflow.batch.choices import INPUT_PREFIX, Layout, ReportPaths, paths_in

if TYPE_CHECKING:
    from dicomnode.node import Node
    from dicomnode.workflow.batch.report import Report

SHOWN = 50  # lines about files that did not pass, when the report lists them all


def deid_command(
    paths: Annotated[list[Path] | None, typer.Argument(help="DICOM files, folders or zip archives.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for the de-identified files.")] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write a report here: JSON, or CSV or HTML by its extension; repeatable. An earlier report of that "
            "name is replaced, nothing else.",
        ),
    ] = None,
    report_paths: Annotated[
        ReportPaths | None,
        typer.Option(
            help="How reports name inputs: by paths, which may hold names of patients (JSON, where nothing is said), "
            "or by keyed hashes (CSV and HTML)."
        ),
    ] = None,
    layout: Annotated[
        Layout,
        typer.Option(help="Folders by patient, study and series, or those of the input under mapped names."),
    ] = Layout.DICOM,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Processes; else \\[deid] workers.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Do everything but keep no file.")] = False,
    explain: Annotated[
        Path | None, typer.Option(help="Print what happens to each attribute of one file, and which rule says so.")
    ] = None,
    locate: Annotated[
        str | None, typer.Option(metavar="INPUT", help="Print the path of an input that a report names by its hash.")
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """De-identify and audit files; what cannot pass is named and not written. No image is overwritten.

    Stopped at any moment, the same command goes on where it was. Of two objects with one SOP Instance UID the first
    is written; the other is a duplicate, or quarantined as version-conflict where its content differs.

    Example: dicomnode deid /incoming --out /clean --report report.html --report report.json
    Example: dicomnode deid /incoming --dry-run --report report.csv
    Example: dicomnode deid --explain image.dcm
    """
    if explain is None and locate is None and out_dir is None and not dry_run:
        raise UsageError("--out is needed (or --dry-run, or --explain FILE)", place="dicomnode deid")
    if explain is None and not paths:
        raise UsageError("a file or folder is needed", place="dicomnode deid")
    folder, reports = None if dry_run else out_dir, report or []
    _check_places([*(paths or []), *([explain] if explain else [])], folder, reports)
    node = open_node(config)
    if workers is not None:
        section = node.settings.deid.model_copy(update={"workers": workers})
        node.settings = node.settings.model_copy(update={"deid": section})
    if explain is not None:
        _explain(node, explain, json)
    elif locate is not None:
        from dicomnode.workflow.deidentify import locate as find

        _check_vault(node)
        out.print(find(node.deid_context, paths or [], locate.removeprefix(INPUT_PREFIX)))
    else:
        with _passing_vault(node) if dry_run else contextlib.nullcontext():
            passed = _run(node, paths or [], folder, layout, reports, report_paths, json)
        if not passed:
            raise typer.Exit(EXIT_FAILED)


def _check_places(inputs: list[Path], folder: Path | None, reports: list[Path]) -> None:
    """Refuse, before anything is read, inputs that are not there and places where nothing can be written."""
    for path in inputs:
        if not path.exists():
            raise UsageError("no such file or folder", place=str(path))
    from dicomnode.workflow.batch.report import is_report

    for path in reports:
        if not path.parent.is_dir():
            raise UsageError("its folder does not exist", place=f"--report {path}", advice="make it first")
        if path.exists() and not (path.is_file() and is_report(path)):
            wrong = "something else than a report of 'dicomnode deid' is there; it is not overwritten"
            raise UsageError(wrong, place=f"--report {path}", advice="name another file")
    if folder is not None:
        _check_folder(folder)


def _check_vault(node: Node) -> None:
    """A look-up makes no vault: the hashes of a report are found with the key under which it was made."""
    path, _ = node.vault_place
    if not path.exists():
        wrong = "there is no vault: a report's inputs are found with the one that it was made with"
        raise NotFound(wrong, place=str(path), advice="--config, or [node] data_dir; of a first dry run none is kept")


@contextlib.contextmanager
def _passing_vault(node: Node) -> Iterator[None]:
    """A dry run makes no vault: where none is, one in a folder of the identified zone that goes with the run."""
    from dicomnode.config import Vault as Section
    from dicomnode.deid.vault import Vault

    path, key = node.vault_place
    if path.exists() or (key.path is not None and key.path.exists()):
        yield
        return
    zone = node.settings.identified_dir
    made = [folder for folder in (zone, zone.parent) if not folder.exists()]
    zone.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=zone, prefix="dry-") as folder:
        there = node.settings.node.model_copy(update={"data_dir": Path(folder)})
        node.settings = node.settings.model_copy(update={"node": there, "vault": Section()})
        Vault.open(*node.vault_place)
        try:
            yield
        finally:
            node.close()
    for left in made:
        with contextlib.suppress(OSError):  # something else is there
            left.rmdir()


def _check_folder(folder: Path) -> None:
    """Make ``--out`` before anything is read, or say why it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError("it is a file", place=f"--out {folder}") from None
    except OSError as exc:
        raise UsageError(f"the folder cannot be made ({exc.strerror})", place=f"--out {folder}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError("nothing can be written there", place=f"--out {folder}")


def _explain(node: Node, path: Path, json: bool) -> None:
    from dicomnode.deid.pixel_policy import PixelPolicy
    from dicomnode.workflow.batch.explain import explain_file, explain_pixels

    rows = list(explain_file(node.recipe, path))
    pixels = explain_pixels(path, PixelPolicy.of(node.settings.deid))
    if json:
        elements = [r.as_json() for r in rows]
        print_json({"file": path, "attributes": [r.line for r in rows], "elements": elements, "pixels": pixels})
        return
    for line in [*(row.line for row in rows), *([pixels] if pixels else [])]:
        print(line)


def _run(
    node: Node,
    paths: list[Path],
    folder: Path | None,
    layout: Layout,
    reports: list[Path],
    report_paths: ReportPaths | None,
    json: bool,
) -> bool:
    """Whether everything passed."""
    from dicomnode.workflow.batch.report import Report, write_json, write_report
    from dicomnode.workflow.deidentify import Request, deidentified

    reached = [0, 0]
    with progress_bar("files", quiet=json) as update:

        def tell(done: int, total: int) -> None:
            reached[:] = done, total
            update(done, total)

        try:
            with deidentified(node.deid_context, Request(paths, folder, layout), tell) as run:
                report = Report(run, paths_in("", report_paths))
                for path in reports:
                    write_report(Report(run, paths_in(path.suffix, report_paths)), path)
                if json:
                    write_json(report, sys.stdout)
                else:
                    _print(report, bool(reports))
                return report.complete
        except KeyboardInterrupt:
            kept = "nothing was kept" if folder is None else "the same command goes on"
            err.print(f"interrupted: {reached[0]} of {reached[1]} files are done; no report was written; {kept}")
            raise


def _print(report: Report, reported: bool) -> None:
    counts = report.counts
    again = f", {counts['duplicates']} duplicates not written again" if counts["duplicates"] else ""
    passed = f", {counts['skipped']} DICOMDIR skipped" if counts["skipped"] else ""
    for exception in report.summary["site_exceptions"]:
        out.print(exception, markup=False, highlight=False)
    out.print(f"{counts['ok']} ok, {counts['quarantined']} quarantined, {counts['failed']} failed{again}{passed}")
    faces = report.summary["faces"]
    if any(faces.values()):
        out.print(f"a face may be recognised in {faces['likely']} files, and is not ruled out in {faces['possible']}")
    shown = 0
    for row in report.rows():
        if row["reason"]:
            if reported and shown == SHOWN:
                err.print("... the report lists them all")
                break
            shown += 1
            err.print(f"{row['input']}: {row['status']}: {row['reason']}", markup=False, highlight=False)

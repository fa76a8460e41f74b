"""``dicomnode deid``: de-identify files into a folder, with the node's own recipe, vault and auditor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli.options import Config, Json, err, open_node, out, print_json, progress_bar
from dicomnode.errors import EXIT_FAILED, UsageError


def deid_command(
    paths: Annotated[list[Path] | None, typer.Argument(help="DICOM files or folders.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for the de-identified files.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a JSON report here.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Do everything but keep no file.")] = False,
    explain: Annotated[Path | None, typer.Option(help="Print what happens to each attribute of one file.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """De-identify and audit files; what cannot pass is named and not written. Nothing is overwritten.

    Of two objects with one SOP Instance UID the first is written; the other is a duplicate, or quarantined as
    version-conflict where its content differs.

    Example: dicomnode deid /incoming --out /clean --report report.json
    """
    from dicomnode.workflow.deidentify import deidentify_files, explain_file

    if explain is None and out_dir is None and not dry_run:
        raise UsageError("--out is needed (or --dry-run, or --explain FILE)", place="dicomnode deid")
    if explain is None and not paths:
        raise UsageError("a file or folder is needed", place="dicomnode deid")
    for path in [*(paths or []), *([explain] if explain else [])]:
        if not path.exists():
            raise UsageError("no such file or folder", place=str(path))
    node = open_node(config)
    if explain is not None:
        lines = list(explain_file(node.recipe, explain))
        if json:
            print_json({"file": explain, "attributes": lines})
        else:
            print("\n".join(lines))
        return
    with progress_bar("files", quiet=json) as update:
        done = deidentify_files(node.deid_context, paths or [], None if dry_run else out_dir, update)
    node.close()
    data = done.as_json(node.settings.deid.profile)
    if report is not None:
        import json as _json

        report.write_text(_json.dumps(data, ensure_ascii=False, indent=1) + "\n", "utf-8")
    if json:
        print_json(data)
    else:
        counts = data["counts"]
        again = f", {counts['duplicates']} duplicates not written again" if counts["duplicates"] else ""
        out.print(f"{counts['ok']} ok, {counts['quarantined']} quarantined, {counts['failed']} failed{again}")
        for row in data["files"]:
            if row["reason"]:
                err.print(f"{row['input']}: {row['status']}: {row['reason']}", markup=False, highlight=False)
    if data["counts"]["quarantined"] or data["counts"]["failed"]:
        raise typer.Exit(EXIT_FAILED)

"""``dicomnode query``: similar cases of a file or folder, without a PACS. Nothing of the query is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli.options import Config, Json, open_node, out, print_json, print_table, told_once
from dicomnode.domain import Answer, Finding, VerdictKind, cases_searched
from dicomnode.errors import UsageError


def query_command(
    path: Annotated[Path, typer.Argument(help="A DICOM file or folder, PNG, JPEG or WebP.")],
    k: Annotated[int, typer.Option("-k", min=1, max=200, help="Number of cases.")] = 10,
    text: Annotated[str, typer.Option(help="Only cases with a finding that holds these words or codes.")] = "",
    config: Config = None,
    json: Json = False,
) -> None:
    """Print the most similar cases of the repository. The files are de-identified first; nothing of them is kept.

    Example: dicomnode query /tmp/study -k 5
    Example: dicomnode query slice.png --text pneumonia --json
    """
    from dicomnode.workflow.asking import ask

    if not path.exists():
        raise UsageError("no such file or folder", place=str(path))
    if path.is_dir() and not any(p.is_file() for p in path.rglob("*")):
        raise UsageError("there is no file in this folder", place=str(path), advice="give a folder of DICOM images")
    node = open_node(config)
    answer = ask(node.context, path, k, text)
    node.metrics.query("command")
    if json:
        print_json(answer.as_json())
        return
    if text and not answer.searched and answer.verdict.kind is not VerdictKind.NOT_SEARCHABLE:
        out.print(f'No case in this repository has "{text}" among its findings.')
        return
    for line in verdict_lines(answer):
        out.print(line)
    if answer.verdict.kind is VerdictKind.NOT_SEARCHABLE:
        return
    rows = [
        [
            str(c.rank),
            f"{c.similarity:.3f}",
            c.subject,
            c.modality,
            c.status.value,
            "; ".join(f"{said} ({_codes(found)})" for said, found in told_once(c.findings).items()),
        ]
        for c in answer.cases
    ]
    print_table("similar cases of other patients", ["rank", "score", "subject", "mod.", "status", "findings"], rows)


def verdict_lines(answer: Answer) -> list[str]:
    """What is printed above the cases: verdict, cases searched, and the cautions that the answer calls for."""
    verdict = answer.verdict
    told = verdict.kind.value + (f" (p = {verdict.p:.3f})" if verdict.p is not None else "")
    lines = [f"{told}{': ' + verdict.reason if verdict.reason else ''}; {cases_searched(answer.searched)}"]
    if answer.filtered_by and answer.cases:
        about = "The verdict is" if verdict.p is None else "The verdict and its p are"
        lines.append(
            f'Only cases with "{answer.filtered_by}" among their findings are listed. {about} about the whole'
            " repository, not about these cases."
        )
    if answer.other_modality:
        lines.append(f"Caution: this study is {answer.other_modality}, and none of the cases listed is.")
    if answer.untaught is not None:
        said = answer.untaught.words()
        lines.append(f"Caution: the model learnt from {said['taught']} and was not taught {said['shows']}.")
    return lines


def _codes(findings: list[Finding]) -> str:
    return ", ".join(dict.fromkeys(f"{f.system} {f.code}" for f in findings))

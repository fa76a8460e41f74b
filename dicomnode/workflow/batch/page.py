"""The report as a page for the data-protection officer: self-contained, without script, to be read and printed.

It shows counts and names of attributes, never a value. All text is escaped by the template.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jinja2

from dicomnode.deid.changes import WORDS
from dicomnode.deid.options import OPTION_CODES, Option

if TYPE_CHECKING:
    from dicomnode.workflow.batch.report import Report

ROWS_SHOWN = 500  # files that did not pass; the other forms list all
RECIPE_SHOWN = 12  # digits of the recipe's hash, as each object carries it in (0012,0063)

# For readers of the page; docs/quarantine.md has the whole list with what to do.
MEANINGS = {
    "archive-bomb": "an archive that unpacks to far more than it is large",
    "audit": "the independent audit found something that should not be there",
    "burned-in": "the pixels may show text",
    "damaged-archive": "an archive that is damaged",
    "deid-failed": "a value could not be understood",
    "encrypted": "an archive that needs a password",
    "link": "a symbolic link out of the folder, or to nowhere",
    "missing-uid": "a UID that names the object, series or study is missing",
    "no-pixel-data": "an image without pixels",
    "not-dicom": "no DICOM file",
    "not-image": "no image (report, plan, presentation state ...)",
    "recognizable-face": "a face may be recognised in images of the head",
    "truncated": "the file ends too early",
    "unsupported": "a kind or encoding that is not known",
    "version-conflict": "the same SOP Instance UID as another file, with other content",
}
ACTION_MEANINGS = {
    "removed": "the attribute is gone",
    "emptied": "the attribute is there without a value",
    "replaced": "a pseudonym, a keyed UID or a fixed dummy stands in its place",
    "shifted": "the date was moved by the patient's secret number of days",
    "cleaned": "only words of the vocabulary are left of the text",
    "kept": "an attribute that the Standard lists as identifying stayed, as an option allows",
    "added": "statements of the node about the de-identification",
}


def render(report: Report) -> Iterator[str]:
    """The page in pieces."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("dicomnode.workflow.batch"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    told = report.summary
    counts = told["counts"]
    actions = told["actions"]
    held = (row for row in report.rows() if row["status"] != "ok")
    shown = list(itertools.islice(held, ROWS_SHOWN))
    most = max([*actions.values(), 1])
    yield from templates.get_template("deid_report.html").stream(
        told=told,
        counts=counts,
        total=sum(counts.values()),
        headline=_headline(counts, told["dry_run"]),
        complete=report.complete,
        recipe_short=told["recipe"][:RECIPE_SHOWN],
        options=[_option(name) for name in told["options"]],
        actions=[(word, actions[word], ACTION_MEANINGS[word], round(100 * actions[word] / most)) for word in WORDS],
        words=WORDS,
        reasons=[(reason, n, MEANINGS.get(reason, "")) for reason, n in told["quarantine"].items()],
        rows=shown,
        more=counts["quarantined"] + counts["failed"] - len(shown),
        any_changes=any(actions.values()),
        exceptions=_occurring(told),
        created=told["created"].replace("T", " ").replace("+00:00", " UTC"),
    )


def _headline(counts: dict[str, int], dry_run: bool) -> str:
    total = sum(counts.values()) - counts["skipped"]
    out = total - counts["ok"] - counts["duplicates"]
    would = "would pass" if dry_run else "passed"
    if not total:
        return "There was nothing to de-identify."
    if not out:
        return f"All {total:,} files {would} de-identification and audit."
    held = "would be held" if dry_run else "was held" if out == 1 else "were held"
    return f"{total - out:,} of {total:,} files {would} de-identification and audit; {out:,} {held} back."


def _occurring(told: dict[str, Any]) -> list[tuple[str, list[str], int]]:
    """The exceptions with those of their attributes that occur in the written files, and the number of all."""
    stayed = {keyword for keyword, words in told["changes"].items() if words.keys() - {"removed", "emptied", "added"}}
    return [(why, [k for k in all_ if k in stayed], len(all_)) for why, all_ in told["exceptions"].items()]


def _option(name: str) -> tuple[str, str]:
    """An option with its code and name of CID 7050."""
    code, meaning = OPTION_CODES[Option(name)]
    return name, f"{meaning} (DCM {code})"

"""How long the contact sheet and the PDF of an answer take: python benchmarks/sheet.py

Ten cases and three query slices of 512 x 512: drawn from pictures at hand, and end to end from the stored DICOM files
of a node, header and encoding included. Generated phantoms; prints a markdown table.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray
from pydicom.uid import CTImageStorage

from dicomnode.archive.answers import StoredAnswer
from dicomnode.domain import (
    Answer,
    Case,
    Finding,
    FindingStatus,
    Match,
    ModelId,
    OriginalUid,
    Pseudonym,
    PseudoUid,
    Role,
    Verdict,
    VerdictKind,
)
from dicomnode.models.preprocess import prepare_dicom
from dicomnode.report.codes import Language
from dicomnode.report.document import draw_document
from dicomnode.report.sheet_image import draw_sheet
from dicomnode.report.tiles import QueryTile, Tiles
from dicomnode.report.uids import subject_uid
from dicomnode.testing import sample_study, write_study
from dicomnode.workflow.context import QueryImageRef
from dicomnode.workflow.reporting import CONTACT_SHEET, PDF, Reporter, read_header

ROUNDS, CASES, SLICES, SIDE = 9, 10, 3, 512
TARGET_MS = 300


def answer() -> Answer:
    """Ten cases with two findings each, matched by three slices of the query."""
    findings = (Finding("SCT", "233604007", "Pneumonia"), Finding("SCT", "60046008", "Pleural effusion"))
    cases = tuple(
        Case(
            rank=i + 1,
            similarity=0.95 - i / 100,
            subject=Pseudonym(f"DN-{i}"),
            study_uid=PseudoUid(subject_uid(f"study {i}")),
            series_uid=PseudoUid(subject_uid(f"series {i}")),
            modality="CT",
            status=FindingStatus.PRESENT,
            findings=findings,
            matches=(Match(PseudoUid(f"query-{i % SLICES}"), PseudoUid(f"case-{i}"), 0.9),),
        )
        for i in range(CASES)
    )
    return Answer({"modality": "CT"}, ModelId("ab" * 32), Verdict(VerdictKind.SIMILAR), cases, searched=1000)


def milliseconds(call: Callable[[], object]) -> str:
    """The first time, and the median of the following ones."""
    taken = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    return f"{taken[0]:.0f} | **{statistics.median(taken[1:]):.0f}**"


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (SIDE, SIDE), np.uint8) for _ in range(CASES + SLICES)]
    tiles = Tiles(
        answer(), tuple(QueryTile(p) for p in pictures[CASES:]), {i + 1: p for i, p in enumerate(pictures[:CASES])}
    )
    created = datetime(2026, 1, 1, tzinfo=UTC)
    print(f"{CASES} cases, {SLICES} query slices of {SIDE} x {SIDE}; target of the contact sheet: {TARGET_MS} ms.\n")
    print("| ms | first | then, median |")
    print("|---|---|---|")
    print(f"| contact sheet, pictures at hand | {milliseconds(lambda: draw_sheet(tiles, Language.EN, '0'))} |")
    paper = milliseconds(lambda: draw_document(tiles, Language.EN, "0", "https://node.example/v", created=created))
    print(f"| PDF, pictures at hand | {paper} |")
    with tempfile.TemporaryDirectory(prefix="sheet-") as folder:
        stored_files(Path(folder), created)


def stored_files(base: Path, created: datetime) -> None:
    """The rows that start from stored DICOM files."""
    files = write_study(sample_study(CASES + SLICES, patient_id="BENCH", matrix=SIDE), base / "study")
    by_uid = {PseudoUid(f"case-{i}"): path for i, path in enumerate(files[:CASES])}
    asked = {PseudoUid(f"query-{i}"): path for i, path in enumerate(files[CASES:])}

    def picture(uid: PseudoUid, frame: int) -> NDArray[np.uint8]:
        return (prepare_dicom({**by_uid, **asked}[uid], frame).pixels * 255).round().astype("uint8")

    reporter = Reporter(
        namespace="bench",
        language=Language.EN,
        link_base="https://node.example",
        organisation="",
        version="0",
        serial="1",
        query_picture=picture,
        case_picture=picture,
    )
    images = [
        QueryImageRef(uid, OriginalUid(f"1.2.{n}"), CTImageStorage, OriginalUid("1.2"), path)
        for n, (uid, path) in enumerate(asked.items())
    ]
    stored = StoredAnswer(
        id=1,
        token="bench",
        study_uid=PseudoUid("1.2"),
        instances=(),
        model_id=ModelId("ab" * 32),
        role=Role.QUERY,
        instance_number=1,
        predecessor_id=None,
        answer=answer(),
        created=created.timestamp(),
    )
    for kind, name in ((CONTACT_SHEET, "contact sheet"), (PDF, "PDF")):

        def build(kind: str = kind) -> bytes:
            header = read_header(files[-1])
            return reporter.build(kind, header, stored, images, None, stored.created)

        print(f"| {name}, from stored files to the encoded DICOM object | {milliseconds(build)} |")


if __name__ == "__main__":
    main()

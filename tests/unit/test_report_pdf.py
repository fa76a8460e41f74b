"""The Encapsulated PDF: A4 pages of real text whose links lead to the answer and to each case."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from dicomnode.domain import (
    Answer,
    Case,
    Finding,
    FindingStatus,
    ModelId,
    Pseudonym,
    PseudoUid,
    Verdict,
    VerdictKind,
)
from dicomnode.report.codes import Language, texts
from dicomnode.report.document import FOOTER_TOP, MARGIN, PRESENT, draw_document
from dicomnode.report.header import to_bytes
from dicomnode.report.pdf import build_pdf
from dicomnode.report.spec import ObjectSpec
from dicomnode.report.tiles import QueryTile, Tiles
from dicomnode.report.uids import subject_uid

LINK = "https://node.example/v/r/1"
UID = PseudoUid(subject_uid("x"))
CREATED = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
LONG = "Neumonía organizada criptogénica con afectación bilateral y derrame pleural izquierdo asociado"

needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs the Debian package poppler-utils")


@pytest.fixture
def header() -> Dataset:
    return pydicom.dcmread(get_testdata_file("CT_small.dcm"), stop_before_pixels=True)


def spec(link: str = LINK) -> ObjectSpec:
    return ObjectSpec(
        series_instance_uid="2.25.1",
        sop_instance_uid="2.25.2",
        created=CREATED,
        link=link,
        software_version="0.1.0",
    )


def tiles(n: int, *, kind: VerdictKind = VerdictKind.SIMILAR, findings: tuple[Finding, ...] = ()) -> Tiles:
    status = FindingStatus.PRESENT if findings else FindingStatus.UNKNOWN
    cases = tuple(Case(i + 1, 0.9, Pseudonym("DN-1"), UID, UID, "CT", status, findings, ()) for i in range(n))
    answer = Answer({}, ModelId("m"), Verdict(kind), cases, searched=99)
    grey = np.full((9, 9), 90, np.uint8)
    return Tiles(answer, (QueryTile(grey),), {i + 1: grey for i in range(n)})


def document(ds: Dataset) -> bytes:
    return bytes(ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength])


def draw(some: Tiles, language: Language = Language.EN, link: str = LINK) -> bytes:
    return draw_document(some, language, "0.1.0", link, created=CREATED)


def poppler(program: str, pdf: bytes) -> str:
    output = ["-"] if program == "pdftotext" else []
    return subprocess.run([program, "-", *output], input=pdf, capture_output=True, check=True).stdout.decode()


def text_of(pdf: bytes) -> str:
    """The text as a reader selects it, spaces made single."""
    return " ".join(poppler("pdftotext", pdf).split())


def uris(pdf: bytes) -> list[str]:
    return [found.decode() for found in re.findall(rb"/URI \(([^)]*)\)", pdf)]


def test_the_object_is_an_encapsulated_pdf_of_the_query_study(header: Dataset) -> None:
    read = pydicom.dcmread(BytesIO(to_bytes(build_pdf(header, tiles(3), spec()))))
    assert read.SOPClassUID.name == "Encapsulated PDF Storage"
    assert (read.StudyInstanceUID, read.PatientID) == (header.StudyInstanceUID, header.PatientID)
    assert (read.SeriesNumber, read.Modality) == (9912, "DOC")
    assert document(read).startswith(b"%PDF-1.")
    assert document(read).rstrip().endswith(b"%%EOF")


def test_there_is_a_link_to_the_answer_and_to_each_case() -> None:
    assert set(uris(draw(tiles(3)))) == {LINK, *(f"{LINK}#case={rank}" for rank in (1, 2, 3))}
    assert uris(draw(tiles(3), link="")) == []


@needs_poppler
@pytest.mark.parametrize("language", list(Language))
@pytest.mark.parametrize("n", [1, 10, 40])
def test_every_case_of_every_page_says_that_it_is_not_this_patient(language: Language, n: int) -> None:
    t = texts(language)
    pdf = draw(tiles(n), language)
    text = text_of(pdf)
    assert text.count(t.not_this_patient) == n
    assert [f"#{rank} " in text for rank in range(1, n + 1)] == [True] * n
    pages = int(re.search(r"Pages:\s+(\d+)", poppler("pdfinfo", pdf))[1])  # type: ignore[index]
    assert pages == {1: 1, 10: 2, 40: pages}[n]
    for number in range(1, pages + 1):
        assert t.page.format(n=number, total=pages) in text


@needs_poppler
def test_the_legend_has_its_colours_on_every_page(tmp_path: Path) -> None:
    pdf = draw(tiles(10))  # the last colour of a page is then the yellow of "this study"
    command = ["pdftoppm", "-r", "100", "-png", "-", str(tmp_path / "page")]
    subprocess.run(command, input=pdf, check=True)
    pages = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(tmp_path.glob("page*.png"))]
    assert len(pages) == 2
    y, x = (round(mm / 25.4 * 100) for mm in (FOOTER_TOP + 3.4, MARGIN + 1.5))
    assert [tuple(page[y, x]) for page in pages] == [PRESENT, PRESENT]


@needs_poppler
@pytest.mark.parametrize("language", list(Language))
def test_the_document_declares_its_language_title_and_size(language: Language) -> None:
    pdf = draw(tiles(2), language)
    said = poppler("pdfinfo", pdf)
    assert re.search(rf"Title:\s+{re.escape(texts(language).document_title)}\n", said)
    assert "(A4)" in said
    assert f"/Lang ({language.value})".encode() in pdf
    assert b"/DisplayDocTitle true" in pdf


@needs_poppler
def test_the_notice_the_verdict_and_whole_findings_can_be_selected() -> None:
    text = text_of(draw(tiles(2, kind=VerdictKind.NONE, findings=(Finding("99LABEL", "n", LONG),)), Language.ES))
    t = texts(Language.ES)
    assert t.notice in text
    assert t.none.format(searched=99, p="") in text
    assert text.count(t.below_threshold_short) >= 2
    assert text.count("izquierdo") == 2
    assert "0,900" in text
    assert LINK in text


@needs_poppler
def test_hebrew_and_arabic_findings_are_text_and_what_cannot_be_drawn_is_its_code() -> None:
    some = tiles(
        1, findings=(Finding("SCT", "1", "דלקת ריאות"), Finding("SCT", "2", "التهاب"), Finding("I10", "J18", "肺炎"))
    )
    text = text_of(draw(some))
    assert "דלקת ריאות" in text
    assert "التهاب" in text
    assert "I10 J18" in text


@needs_poppler
def test_a_case_with_very_many_findings_says_how_many_are_left_out() -> None:
    some = tiles(1, findings=tuple(Finding("SCT", str(i), f"finding {i}") for i in range(40)))
    assert texts(Language.EN).more_findings.format(n=29) in text_of(draw(some))


@needs_poppler
def test_an_answer_without_cases_or_pictures_is_a_page_too() -> None:
    empty = replace(tiles(0, kind=VerdictKind.NOT_SEARCHABLE), query=())
    assert texts(Language.EN).no_case_listed in text_of(draw(empty))
    without = replace(tiles(2), query=(), cases={})
    assert text_of(draw(without)).count(texts(Language.EN).no_image) == 3


@needs_poppler
def test_the_pages_show_the_pictures(tmp_path: Path) -> None:
    some = tiles(1)
    pdf = draw(replace(some, cases={1: np.full((300, 300), 200, np.uint8)}))
    (tmp_path / "a.pdf").write_bytes(pdf)
    subprocess.run(["pdftoppm", "-r", "50", "-gray", tmp_path / "a.pdf", tmp_path / "a"], check=True)
    (page,) = tmp_path.glob("a*.pgm")
    shown = np.abs(np.asarray(Image.open(page)).astype(int) - 200) <= 2
    assert 80 * 80 <= shown.sum() <= 100 * 100  # a square of 46 mm at 50 dots per inch


def test_the_same_answer_gives_the_same_file_in_any_process(header: Dataset) -> None:
    assert to_bytes(build_pdf(header, tiles(2), spec())) == to_bytes(build_pdf(header, tiles(2), spec()))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import hashlib; from test_report_pdf import draw, tiles; "
        "print(hashlib.sha256(draw(tiles(5))).hexdigest())"
    )
    other = [
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env={"PYTHONHASHSEED": seed, "TZ": zone, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    ]
    assert other[0] == other[1]


def test_no_identity_is_in_the_document(header: Dataset) -> None:
    before = document(build_pdf(header, tiles(2), spec()))
    header.PatientName, header.PatientID, header.StudyInstanceUID = "Other^Person", "42", "1.2.3.4"
    assert document(build_pdf(header, tiles(2), spec())) == before

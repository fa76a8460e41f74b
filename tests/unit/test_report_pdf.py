"""The Encapsulated PDF: one page whose links lead to the answer and to each case."""

import re
import zlib
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from dicomnode.domain import (
    Answer,
    Case,
    FindingStatus,
    ModelId,
    Pseudonym,
    PseudoUid,
    Verdict,
    VerdictKind,
)
from dicomnode.report.header import to_bytes
from dicomnode.report.pdf import build_pdf, page_of
from dicomnode.report.sheet_image import Area, Box, Tiles
from dicomnode.report.spec import ObjectSpec
from dicomnode.report.uids import subject_uid

LINK = "https://node.example/v/r/1"
UID = PseudoUid(subject_uid("x"))


@pytest.fixture
def header() -> Dataset:
    return pydicom.dcmread(get_testdata_file("CT_small.dcm"), stop_before_pixels=True)


def spec(link: str = LINK) -> ObjectSpec:
    return ObjectSpec(
        series_instance_uid="2.25.1",
        sop_instance_uid="2.25.2",
        created=datetime(2026, 3, 4, tzinfo=UTC),
        link=link,
        software_version="0.1.0",
    )


def tiles(n: int) -> Tiles:
    cases = tuple(Case(i + 1, 0.9, Pseudonym("DN-1"), UID, UID, "CT", FindingStatus.UNKNOWN, (), ()) for i in range(n))
    answer = Answer({}, ModelId("m"), Verdict(VerdictKind.SIMILAR), cases, searched=99)
    return Tiles(answer, (), {i + 1: np.full((9, 9), 90, np.uint8) for i in range(n)})


def document(ds: Dataset) -> bytes:
    return bytes(ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength])


def test_the_object_is_an_encapsulated_pdf_of_the_query_study(header: Dataset) -> None:
    read = pydicom.dcmread(BytesIO(to_bytes(build_pdf(header, tiles(3), spec()))))
    assert read.SOPClassUID.name == "Encapsulated PDF Storage"
    assert (read.StudyInstanceUID, read.PatientID) == (header.StudyInstanceUID, header.PatientID)
    assert (read.SeriesNumber, read.Modality) == (9912, "DOC")
    assert document(read).startswith(b"%PDF-1.4")
    assert document(read).endswith(b"%%EOF\n")


def test_there_is_a_link_to_the_answer_and_to_each_case(header: Dataset) -> None:
    found = re.findall(rb"/URI \(([^)]*)\)", document(build_pdf(header, tiles(3), spec())))
    assert found == [LINK.encode(), *(f"{LINK}#case={rank}".encode() for rank in (1, 2, 3))]
    assert b"/URI" not in document(build_pdf(header, tiles(3), spec(link="")))


def test_every_object_lies_where_the_cross_reference_table_says(header: Dataset) -> None:
    pdf = document(build_pdf(header, tiles(12), spec()))
    start = int(re.search(rb"startxref\n(\d+)\n", pdf)[1])  # type: ignore[index]
    assert pdf[start:].startswith(b"xref\n0 20\n")
    offsets = [int(o) for o in re.findall(rb"(\d{10}) 00000 n ", pdf[start:])]
    assert len(offsets) == 19
    for number, offset in enumerate(offsets, start=1):
        assert pdf[offset:].startswith(f"{number} 0 obj\n".encode())


def test_the_page_shows_the_picture_upright_with_links_from_the_bottom_left() -> None:
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    pdf = page_of(picture, [Area(Box(0, 0, 2, 1), "https://x/ñ(1)")], "Título")
    assert b"/MediaBox [0 0 842 421.00]" in pdf
    assert b"/Rect [0.00 210.50 421.00 421.00]" in pdf
    assert rb"/URI (https://x/%C3%B1\(1\))" in pdf
    assert f"<FEFF{'Título'.encode('utf-16-be').hex().upper()}>".encode() in pdf
    stream = re.search(rb"/FlateDecode /Length (\d+) >>\nstream\n", pdf)
    assert stream is not None
    assert zlib.decompress(pdf[stream.end() : stream.end() + int(stream[1])]) == picture.tobytes()


def test_the_same_tiles_give_the_same_file(header: Dataset) -> None:
    assert to_bytes(build_pdf(header, tiles(2), spec())) == to_bytes(build_pdf(header, tiles(2), spec()))


def test_no_identity_is_in_the_document(header: Dataset) -> None:
    before = document(build_pdf(header, tiles(2), spec()))
    header.PatientName, header.PatientID, header.StudyInstanceUID = "Other^Person", "42", "1.2.3.4"
    assert document(build_pdf(header, tiles(2), spec())) == before

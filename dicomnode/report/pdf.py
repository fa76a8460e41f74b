"""The contact sheet as an Encapsulated PDF: the one object whose links can be clicked on a workstation.

One landscape page: the sheet as an image, with a link over the button and over each case. Readers show the URLs
of an SR as plain text. The file has no date, id or random part: the same tiles give the same bytes (ISO 32000-1).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from PIL import Image
from pydicom.dataset import Dataset

from dicomnode.report.codes import ENCAPSULATED_PDF, Concept, texts
from dicomnode.report.header import new_object
from dicomnode.report.sheet_image import Area, Tiles, draw_linked_sheet
from dicomnode.report.spec import ObjectSpec
from dicomnode.report.uids import Kind

PAGE_WIDTH = 842  # points, A4 landscape; the height follows the picture
_ESCAPED = str.maketrans({"\\": r"\\", "(": r"\(", ")": r"\)"})


def _object(dictionary: str, stream: bytes | None = None) -> bytes:
    if stream is None:
        return f"<< {dictionary} >>".encode("ascii")
    head = f"<< {dictionary} /Length {len(stream)} >>\nstream\n".encode("ascii")
    return head + stream + b"\nendstream"


def _text_string(text: str) -> str:
    """A text string as UTF-16 with byte order mark, in hexadecimal (ISO 32000-1 7.9.2.2)."""
    return f"<FEFF{text.encode('utf-16-be').hex().upper()}>"


def _uri(url: str) -> str:
    """A URI action is 7-bit ASCII (ISO 32000-1 12.6.4.7)."""
    return "".join(c if "!" <= c <= "~" else "".join(f"%{b:02X}" for b in c.encode()) for c in url).translate(_ESCAPED)


def page_of(image: Image.Image, areas: Sequence[Area], title: str) -> bytes:
    """A PDF of one page that shows ``image`` (RGB) with a link over each area."""
    scale = PAGE_WIDTH / image.width
    height = image.height * scale
    content = f"q {PAGE_WIDTH} 0 0 {height:.2f} 0 0 cm /Sheet Do Q".encode("ascii")
    first_link = 7
    links = " ".join(f"{first_link + i} 0 R" for i in range(len(areas)))
    objects = [
        _object("/Type /Catalog /Pages 2 0 R /ViewerPreferences << /DisplayDocTitle true >>"),
        _object("/Type /Pages /Kids [3 0 R] /Count 1"),
        _object(
            f"/Type /Page /Parent 2 0 R /MediaBox [0 0 {PAGE_WIDTH} {height:.2f}] /Contents 4 0 R "
            f"/Resources << /XObject << /Sheet 5 0 R >> >> /Annots [{links}]"
        ),
        _object("", content),
        _object(
            f"/Type /XObject /Subtype /Image /Width {image.width} /Height {image.height} /ColorSpace /DeviceRGB "
            "/BitsPerComponent 8 /Filter /FlateDecode",
            zlib.compress(image.tobytes(), 9),
        ),
        _object(f"/Title {_text_string(title)}"),
    ]
    for area in areas:
        x0, x1 = area.box.x0 * scale, area.box.x1 * scale
        y0, y1 = height - area.box.y1 * scale, height - area.box.y0 * scale
        objects.append(
            _object(
                f"/Type /Annot /Subtype /Link /Rect [{x0:.2f} {y0:.2f} {x1:.2f} {y1:.2f}] /Border [0 0 0] "
                f"/A << /S /URI /URI ({_uri(area.url)}) >>"
            )
        )
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n".encode("ascii") + body + b"\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode("ascii")
    out += "".join(f"{offset:010d} 00000 n \n" for offset in offsets).encode("ascii")
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info 6 0 R >>\nstartxref\n{start}\n%%EOF\n".encode(
        "ascii"
    )
    return bytes(out)


def build_pdf(header: Dataset, tiles: Tiles, spec: ObjectSpec) -> Dataset:
    """The contact sheet of an answer as Encapsulated PDF in the query's study (PS3.3 A.45.1).

    Parameters
    ----------
    header : Dataset
        An original instance of the query study (identified); pixel data is not needed.
    tiles : Tiles
        Answer, query slices and case slices, uint8 [rows, columns].
    spec : ObjectSpec
        UIDs, moment, language, link; with an empty link the page has no links.

    Raises
    ------
    InputError
        When the query has no valid Study Instance UID.
    """
    t = texts(spec.language)
    image, areas = draw_linked_sheet(tiles, spec.language, spec.software_version, spec.link)
    document = page_of(image, areas, t.document_title)
    ds = new_object(header, spec, kind=Kind.PDF, sop_class_uid=ENCAPSULATED_PDF, modality="DOC")
    ds.SeriesDescription = t.sheet_description
    ds.ConversionType = "SYN"  # synthetic, PS3.3 C.8.6.1
    ds.BurnedInAnnotation = "NO"
    ds.AcquisitionDateTime = ""
    ds.DocumentTitle = t.document_title
    ds.ConceptNameCodeSequence = [Concept.REPORT.coded(spec.language)]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocumentLength = len(document)
    ds.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    return ds

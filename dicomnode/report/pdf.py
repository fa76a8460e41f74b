"""The answer's PDF as DICOM: an Encapsulated PDF in the query's study (PS3.3 A.45.1).

The header is the query's, the document holds nothing of the patient (see ``document``). Deterministic: built again it
is the same object, byte for byte.
"""

from __future__ import annotations

from pydicom.dataset import Dataset

from dicomnode.report.codes import ENCAPSULATED_PDF, Concept, texts
from dicomnode.report.document import draw_document
from dicomnode.report.header import new_object
from dicomnode.report.spec import ObjectSpec
from dicomnode.report.tiles import Tiles
from dicomnode.report.uids import Kind


def build_pdf(header: Dataset, tiles: Tiles, spec: ObjectSpec) -> Dataset:
    """The answer as Encapsulated PDF in the query's study.

    Parameters
    ----------
    header : Dataset
        An original instance of the query study (identified); pixel data is not needed.
    tiles : Tiles
        Answer, query slices and case slices, uint8 [rows, columns].
    spec : ObjectSpec
        UIDs, moment, language, link; with an empty link nothing can be clicked.

    Raises
    ------
    InputError
        When the query has no valid Study Instance UID.
    """
    t = texts(spec.language)
    document = draw_document(tiles, spec.language, spec.software_version, spec.link, created=spec.created)
    ds = new_object(header, spec, kind=Kind.PDF, sop_class_uid=ENCAPSULATED_PDF, modality="DOC")
    ds.SeriesDescription = t.document_description
    ds.ConversionType = "SYN"  # synthetic, PS3.3 C.8.6.1
    ds.BurnedInAnnotation = "NO"
    ds.AcquisitionDateTime = ""
    ds.DocumentTitle = t.document_title
    ds.ConceptNameCodeSequence = [Concept.REPORT.coded(spec.language)]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocumentLength = len(document)
    ds.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    return ds

"""The contact sheet as DICOM: one Secondary Capture image that every workstation shows, in the query's study.

Single-frame RGB, DERIVED, in a series of its own. Each case says in its pixels that it is not this patient; what is
drawn and why it identifies nobody: ``tiles``, ``sheet_image``. Modules: PS3.3 A.8.1.
"""

from __future__ import annotations

from PIL import Image
from pydicom.dataset import Dataset

from dicomnode.report.codes import SECONDARY_CAPTURE, texts
from dicomnode.report.header import new_object, value_of
from dicomnode.report.sheet_image import draw_sheet
from dicomnode.report.spec import ObjectSpec
from dicomnode.report.tiles import QueryTile, Tiles
from dicomnode.report.uids import Kind

__all__ = ["QueryTile", "Tiles", "build_contact_sheet"]


def build_contact_sheet(header: Dataset, tiles: Tiles, spec: ObjectSpec) -> tuple[Dataset, Image.Image]:
    """The contact sheet of an answer, as DICOM and as the picture itself.

    Parameters
    ----------
    header : Dataset
        An original instance of the query study (identified); pixel data is not needed.
    tiles : Tiles
        Answer, query slices and case slices, uint8 [rows, columns].
    spec : ObjectSpec
        UIDs, moment, language.

    Returns
    -------
    Dataset, Image
        Secondary Capture Image (RGB, 1600 by 1200) with file meta, and the same pixels without any identity.

    Raises
    ------
    InputError
        When the query has no valid Study Instance UID.
    """
    image = draw_sheet(tiles, spec.language, spec.software_version)
    t = texts(spec.language)
    ds = new_object(header, spec, kind=Kind.CONTACT_SHEET, sop_class_uid=SECONDARY_CAPTURE, modality="OT")
    del ds.CodingSchemeIdentificationSequence  # no coded content here
    ds.SeriesDescription = t.sheet_description
    # Laterality is type 2C, for a paired body part: known parts keep what the query says, an unknown part has it empty.
    body_part, laterality = value_of(header, "BodyPartExamined"), value_of(header, "Laterality")
    if body_part:
        ds.BodyPartExamined = body_part
    if laterality or not body_part:
        ds.Laterality = laterality

    ds.ConversionType = "SYN"  # synthetic image, PS3.3 C.8.6.1
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.DerivationDescription = t.sheet_notice
    ds.PatientOrientation = ""
    ds.BurnedInAnnotation = "NO"
    ds.DateOfSecondaryCapture, ds.TimeOfSecondaryCapture = ds.ContentDate, ds.ContentTime

    ds.SamplesPerPixel = 3
    ds.PhotometricInterpretation = "RGB"
    ds.PlanarConfiguration = 0
    ds.Columns, ds.Rows = image.size
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    ds.PixelData = image.tobytes()
    ds["PixelData"].VR = "OB"
    return ds, image

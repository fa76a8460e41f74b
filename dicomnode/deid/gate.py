"""The gate before de-identification: what may go on by itself and what a person has to look at first.

It refuses rather than guesses. Text burned into pixels is judged by modality and SOP Class, as no filter known to
us finds all of it (docs/deid.md). Sources: PS3.3 C.7.6.1.1.3 (Image Type) and C.8.1.1 (modality), PS3.15 E.3.1.
"""

from __future__ import annotations

from pydicom.dataset import Dataset

from dicomnode.deid import iod
from dicomnode.deid.source import Source
from dicomnode.errors import QuarantineError

# Acquired slices and voxel grids: the scanner writes no text into them. RTDOSE and SEG hold numbers, not pictures.
PASS_MODALITIES = frozenset({"CT", "MR", "PT", "NM", "RTDOSE", "SEG"})
# Projection X-ray: pass only where the object itself says that nothing is burned in.
DECLARED_MODALITIES = frozenset({"CR", "DX", "MG", "IO", "PX", "RF", "RTIMAGE"})
# Secondary capture and its multi-frame forms (PS3.4 B.5): screenshots, whatever the modality says.
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ULTRASOUND = ("1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.6")
_ANGIOGRAPHY = ("1.2.840.10008.5.1.4.1.1.12.1",)
_VISIBLE_LIGHT = ("1.2.840.10008.5.1.4.1.1.77.1",)
_SCREENS = (_SECONDARY_CAPTURE, *_ULTRASOUND, *_ANGIOGRAPHY, *_VISIBLE_LIGHT)
_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_NOT_IMAGE_ADVICE = "only images are kept in the repository"
_BURNED_IN_ADVICE = (
    "check the pixels, then 'dicomnode quarantine discard'; send a copy without text, marked (0028,0301) NO"
)


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip()


def check(source: Source) -> None:
    """Let the object pass, or say why not.

    Raises
    ------
    QuarantineError
        ``truncated``, ``not-image``, ``missing-uid``, ``unsupported``, ``no-pixel-data`` or ``burned-in``.
    """
    ds = source.ds
    if source.cut_short:
        raise QuarantineError("truncated", "the file ends inside the header", advice="send it again")
    sop_class = _text(ds, "SOPClassUID")
    for keyword in _UIDS:
        if not _text(ds, keyword):
            raise QuarantineError("missing-uid", f"{keyword} is missing or empty", advice="correct it at the sender")
    if source.pixels is None and (not iod.is_image(sop_class) or "Rows" not in ds):
        raise QuarantineError("not-image", "the object is not an image", advice=_NOT_IMAGE_ADVICE)
    if not iod.is_image(sop_class):
        raise QuarantineError("unsupported", "the SOP Class is not a known image storage class", place="(0008,0016)")
    if source.pixels is None:
        raise QuarantineError("no-pixel-data", "the image has no pixel data", advice="send it again")
    _check_burned_in(ds, sop_class)
    _check_length(source)


def _check_burned_in(ds: Dataset, sop_class: str) -> None:
    modality = _text(ds, "Modality")
    declared = _text(ds, "BurnedInAnnotation").upper()
    if declared == "YES":
        raise QuarantineError("burned-in", "marked as having text in its pixels", advice=_BURNED_IN_ADVICE)
    if any(sop_class == root or sop_class.startswith(f"{root}.") for root in _SCREENS):
        raise QuarantineError("burned-in", "images of this SOP Class may show text", advice=_BURNED_IN_ADVICE)
    if modality in PASS_MODALITIES or (modality in DECLARED_MODALITIES and declared == "NO"):
        return
    raise QuarantineError("burned-in", "images of this modality may show text", advice=_BURNED_IN_ADVICE)


def _check_length(source: Source) -> None:
    span = source.pixels
    assert span is not None
    short = span.end > source.size
    if source.transfer_syntax.is_encapsulated is not (span.fragments is not None):
        raise QuarantineError("unsupported", "the pixel data are not encoded as the transfer syntax says")
    if span.fragments is not None:
        short = short or span.fragments < source.frames()
    else:
        try:
            short = short or span.end - span.value < source.native_length()
        except (AttributeError, TypeError, ValueError):
            line = "rows, columns, samples or bits allocated are missing or not numbers"
            raise QuarantineError("unsupported", line) from None
    if short:
        raise QuarantineError("truncated", "the pixel data are shorter than the header says", advice="send it again")


def pixels_known_clean(ds: Dataset) -> bool:
    """Whether the Clean Pixel Data Option may be claimed: declared free of text, or acquired slices as acquired.

    A derived CT or MR passes the gate too, but nothing proves that its pixels were looked at, so no claim is made.
    """
    if _text(ds, "BurnedInAnnotation").upper() == "NO":
        return True
    image_type = ds.get("ImageType")
    first = str(image_type[0]).upper() if image_type else ""
    return first == "ORIGINAL" and _text(ds, "Modality") in PASS_MODALITIES

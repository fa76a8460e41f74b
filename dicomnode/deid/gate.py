"""The gate before de-identification: what may go on by itself and what a person has to look at first.

It refuses rather than guesses, and reads headers only: text burned into pixels is the matter of pixel_policy.py and
pixel_mask.py. Sources: PS3.4 B.5 (storage classes), PS3.5 8.1.1 and A.4 (length of pixel data).
"""

from __future__ import annotations

from dicomnode.deid import iod
from dicomnode.deid.pixel_policy import text_of
from dicomnode.deid.source import Source
from dicomnode.errors import QuarantineError

_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_NOT_IMAGE_ADVICE = "only images are kept in the repository"


def check(source: Source) -> None:
    """Let the object pass, or say why not.

    Raises
    ------
    QuarantineError
        ``truncated``, ``not-image``, ``missing-uid``, ``unsupported`` or ``no-pixel-data``.
    """
    ds = source.ds
    if source.cut_short:
        raise QuarantineError("truncated", "the file ends inside the header", advice="send it again")
    sop_class = text_of(ds, "SOPClassUID")
    for keyword in _UIDS:
        if not text_of(ds, keyword):
            raise QuarantineError("missing-uid", f"{keyword} is missing or empty", advice="correct it at the sender")
    if source.pixels is None and (not iod.is_image(sop_class) or "Rows" not in ds):
        raise QuarantineError("not-image", "the object is not an image", advice=_NOT_IMAGE_ADVICE)
    if not iod.is_image(sop_class):
        raise QuarantineError("unsupported", "the SOP Class is not a known image storage class", place="(0008,0016)")
    if source.pixels is None:
        raise QuarantineError("no-pixel-data", "the image has no pixel data", advice="send it again")
    _check_length(source)


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

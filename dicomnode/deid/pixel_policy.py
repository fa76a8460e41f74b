"""Which images have their pixels examined for text, which pass as acquired, and which never pass.

Judged by modality, SOP Class, Image Type and BurnedInAnnotation. It decodes nothing and trusts no header that says
that an image is clean, except that a scanner writes no text into the slices that it acquires. Sources: PS3.3
C.7.6.1.1.2 (Image Type), C.7.6.1 (Burned In Annotation), PS3.4 B.5 (storage classes), PS3.15 E.3.1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from pydicom.dataset import Dataset

from dicomnode.config import Deid
from dicomnode.errors import QuarantineError

# Voxel grids of numbers, not pictures.
NUMBER_MODALITIES = frozenset({"RTDOSE", "SEG"})
# Acquired slices: the scanner writes no text into them.
SLICE_MODALITIES = frozenset({"CT", "MR", "PT", "NM"})
PASS_MODALITIES = SLICE_MODALITIES | NUMBER_MODALITIES
# Projection X-ray: under "quarantine" these pass only where the object itself says that nothing is burned in.
DECLARED_MODALITIES = frozenset({"CR", "DX", "MG", "IO", "PX", "RF", "RTIMAGE"})
# Secondary capture and its multi-frame forms (PS3.4 B.5): screenshots, whatever the modality says.
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ULTRASOUND = ("1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.6")
_ANGIOGRAPHY = ("1.2.840.10008.5.1.4.1.1.12.1",)
_VISIBLE_LIGHT = ("1.2.840.10008.5.1.4.1.1.77.1",)
_SCREENS = (_SECONDARY_CAPTURE, *_ULTRASOUND, *_ANGIOGRAPHY, *_VISIBLE_LIGHT)
BURNED_IN_ADVICE = "look at the pixels; 'dicomnode quarantine release' masks what a node holds, else use a clean copy"
_MASK_ADVICE = '[deid] pixels = "mask" looks for text and masks it; of a node\'s items "quarantine release" does'
_DECLARE_ADVICE = f"look at it, then mark it (0028,0301) NO; or {_MASK_ADVICE}"


@dataclass(frozen=True, slots=True)
class PixelPolicy:
    """``[deid] pixels``, ``[deid] ocr_sample`` and ``[deid] faces``.

    ``mode`` "mask" examines and masks, "quarantine" refuses whatever may show text. ``sample`` is the share (0 to 1)
    of the images that pass as acquired whose pixels are examined all the same. ``faces``: what becomes of images from
    which a face may be recognised.
    """

    mode: Literal["mask", "quarantine"] = "mask"
    sample: float = 0.0
    faces: Literal["flag", "quarantine"] = "flag"

    @classmethod
    def of(cls, settings: Deid) -> PixelPolicy:
        """The policy that these settings ask for."""
        return cls(settings.pixels, settings.ocr_sample, settings.faces)


def text_of(ds: Dataset, keyword: str) -> str:
    """The value as text without surrounding spaces; empty where the attribute is absent."""
    return str(ds.get(keyword) or "").strip()


def _image_type(ds: Dataset) -> list[str]:
    value = ds.get("ImageType") or []
    return [str(one).strip().upper() for one in ([value] if isinstance(value, str) else value)]


def is_screen(ds: Dataset) -> bool:
    """Whether the SOP Class is one of screenshots, ultrasound, angiography or visible light."""
    sop_class = text_of(ds, "SOPClassUID")
    return any(sop_class == root or sop_class.startswith(f"{root}.") for root in _SCREENS)


def declared(ds: Dataset) -> str:
    """(0028,0301) Burned In Annotation in capitals; empty where absent."""
    return text_of(ds, "BurnedInAnnotation").upper()


def is_acquired(ds: Dataset) -> bool:
    """Slices as a scanner acquired them (or grids of numbers): passed without a look at their pixels."""
    modality = text_of(ds, "Modality")
    if is_screen(ds) or declared(ds) == "YES":
        return False
    if modality in NUMBER_MODALITIES:
        return True
    kind = _image_type(ds)
    return modality in SLICE_MODALITIES and kind[:1] == ["ORIGINAL"] and "SECONDARY" not in kind[1:2]


def in_sample(ds: Dataset, share: float) -> bool:
    """Whether the object is one of the sample; the same object is always judged alike, so a step may run again."""
    digest = hashlib.sha256(text_of(ds, "SOPInstanceUID").encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def must_look(ds: Dataset, policy: PixelPolicy, *, seen: bool = False) -> bool:
    """Whether the pixels must be examined before the image may pass; ``seen``: a person decided about their text.

    Raises
    ------
    QuarantineError
        ``burned-in``: the policy is "quarantine" and the image may show text, or an overlay hides in its pixels.
    """
    refuse_hidden_overlays(ds)
    if seen:
        return True
    if policy.mode == "quarantine":
        _refuse_what_may_show_text(ds)
    acquired = is_acquired(ds)
    if not acquired and policy.mode == "mask":
        return True
    return text_of(ds, "Modality") not in NUMBER_MODALITIES and in_sample(ds, policy.sample)


def refuse_hidden_overlays(ds: Dataset) -> None:
    """Retired overlays lie in pixel bits that hold no grey levels (PS3.5-2004 8.1.2) and would be copied with them.

    Raises
    ------
    QuarantineError
        ``burned-in``: there is one.
    """
    for group in range(0x6000, 0x6020, 2):
        bit = ds.get((group, 0x0102))
        if bit is not None and str(bit.value or 0).strip() != "0" and (group, 0x3000) not in ds:
            line = "an overlay lies in unused bits of the pixels"
            raise QuarantineError("burned-in", line, place=f"({group:04X},0102)", advice=BURNED_IN_ADVICE)


def _refuse_what_may_show_text(ds: Dataset) -> None:
    modality = text_of(ds, "Modality")
    if declared(ds) == "YES":
        raise QuarantineError("burned-in", "marked as having text in its pixels", advice=_MASK_ADVICE)
    if is_screen(ds):
        raise QuarantineError("burned-in", "images of this SOP Class may show text", advice=_MASK_ADVICE)
    if modality in PASS_MODALITIES or (modality in DECLARED_MODALITIES and declared(ds) == "NO"):
        return
    advice = _DECLARE_ADVICE if modality in DECLARED_MODALITIES else _MASK_ADVICE
    raise QuarantineError("burned-in", "images of this modality may show text", advice=advice)


def known_clean(ds: Dataset) -> bool:
    """Whether the Clean Pixel Data Option may be claimed for an image that nobody looked at."""
    return declared(ds) == "NO" or is_acquired(ds)

"""Frames of an image as arrays, as pictures to look at, and back as the bytes of a pixel element.

Decodes with pydicom without conversion of colours, so that what is written again is what was read. Native pixel data
keep their byte order, plane order and bits; lossless compressions that can be written are kept, everything else
becomes native Explicit VR Little Endian. Nothing here looks for text. Sources: PS3.3 C.7.6.3 (image pixel module),
PS3.5 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.encoders.base import get_encoder
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicomnode.deid.source import Source
from dicomnode.errors import DeidError, QuarantineError

_REWRITABLE = frozenset({RLELossless, JPEGLSLossless, JPEG2000Lossless})
_LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"  # PS3.5 A.4
_CLIPPED = (0.5, 99.5)  # percentiles between which a picture has its contrast
_ENOUGH_CONTRAST = 128  # grey levels; pictures of 8 bits with less are stretched
_SAMPLED = 1 << 18  # pixels from which percentiles are taken
_UNDECODED = "the pixels cannot be decoded, so nobody can say whether they show text"


@dataclass(slots=True)
class Frames:
    """The decoded frames of a received object.

    ``layout`` holds the attributes of the image pixel module as the decoded frames have them; they differ from the
    object's own where a decoder changes colour space or sampling.
    """

    source: Source
    layout: Dataset = field(default_factory=Dataset)

    @classmethod
    def of(cls, source: Source) -> Frames:
        """Check that the pixels can be decoded at all.

        Raises
        ------
        QuarantineError
            ``burned-in``: a video, a compression without decoder, or values that are no grey levels or colours.
        """
        syntax = source.transfer_syntax
        if syntax.name.startswith(("MPEG", "HEVC", "SMPTE")):
            raise QuarantineError("burned-in", "videos may show text and are not examined", place="(0002,0010)")
        if source.pixels is None or source.pixels.tag != _PIXEL_DATA:
            raise QuarantineError("burned-in", "floating point pixels are not examined for text", place="(7FE0,0008)")
        try:
            usable = not syntax.is_encapsulated or get_decoder(syntax).is_available
        except NotImplementedError:
            usable = False
        if not usable:
            raise QuarantineError("burned-in", _UNDECODED, place="(0002,0010)")
        return cls(source)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Each frame as stored, (rows, columns) or (rows, columns, samples).

        Raises
        ------
        QuarantineError
            ``burned-in``: a frame cannot be decoded.
        """
        count = 0
        frames = self._decoded()
        while True:
            try:
                frame = next(frames)
            except StopIteration:
                break
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 (decoders raise what they like; its text may quote values)
                raise QuarantineError("burned-in", f"{_UNDECODED} (frame {count + 1})") from None
            count += 1
            yield frame
        if count < self.source.frames():
            raise QuarantineError("burned-in", f"{_UNDECODED} (frame {count + 1})")

    def _decoded(self) -> Iterator[NDArray[Any]]:
        self.source.stream.seek(0)
        return iter_pixels(self.source.stream, ds_out=self.layout, raw=True)

    @property
    def photometric(self) -> str:
        """Photometric interpretation of the decoded frames; known once the first one was decoded.

        Decoded chroma is there for each pixel, whatever sampling it was stored with.
        """
        said = str(self.layout.PhotometricInterpretation)
        return "YBR_FULL" if said.startswith("YBR_FULL") else said

    def view(self, frame: NDArray[Any]) -> NDArray[np.uint8]:
        """A frame as a picture: uint8, (rows, columns, 3), blue first as OpenCV has it."""
        if self.photometric == "PALETTE COLOR":
            coloured = apply_color_lut(frame, self.source.ds)[..., :3]
            return _blue_first(coloured, 16 if coloured.dtype.itemsize > 1 else 8)
        if frame.ndim == 3:
            rgb = frame
            if self.photometric == "YBR_FULL" and frame.dtype == np.uint8:
                rgb = convert_color_space(frame, "YBR_FULL", "RGB")
            return _blue_first(rgb, int(self.layout.BitsStored))
        return np.ascontiguousarray(np.repeat(_grey(frame)[..., None], 3, axis=2))

    def faint_view(self, frame: NDArray[Any]) -> NDArray[np.uint8] | None:
        """A grey frame of more than 8 bits with every grey level as frequent as any other; None for other frames.

        Strokes a few levels above black differ by nothing in a picture of 8 bits, and a viewer can show them.
        """
        if frame.ndim == 3 or self.photometric == "PALETTE COLOR" or int(self.layout.BitsStored) <= 8:
            return None
        levels = np.quantile(_sampled(frame), np.linspace(0, 1, 256))
        equal = np.searchsorted(levels, frame, side="left").clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.repeat(equal[..., None], 3, axis=2))

    def background(self, lowest: int, highest: int) -> tuple[int, ...]:
        """The value of each sample of what is masked: black. ``lowest`` and ``highest`` occur in the frames.

        Signed grey levels have no black of their own: the padding value, else the lowest value that occurs.
        """
        ds, photometric = self.source.ds, self.photometric
        if photometric == "PALETTE COLOR":
            table = apply_color_lut(np.arange(lowest, highest + 1, dtype=np.uint16).reshape(1, -1), ds)
            return (lowest + int(table[0, :, :3].astype(np.int64).sum(axis=1).argmin()),)
        if int(self.layout.SamplesPerPixel) == 3:
            middle = 1 << (int(self.layout.BitsStored) - 1)
            return (0, middle, middle) if photometric == "YBR_FULL" else (0, 0, 0)
        dark = photometric != "MONOCHROME1"
        if int(self.layout.PixelRepresentation) == 1:
            return (lowest if dark else highest,)
        return (0 if dark else (1 << int(self.layout.BitsStored)) - 1,)


def _blue_first(rgb: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    eight = rgb if bits <= 8 else np.right_shift(rgb.astype(np.uint32), bits - 8)
    return np.ascontiguousarray(eight[..., ::-1].astype(np.uint8))


def _sampled(frame: NDArray[Any]) -> NDArray[Any]:
    step = max(1, frame.size // _SAMPLED)
    return frame.reshape(-1)[::step]


def _grey(frame: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = (float(value) for value in np.percentile(_sampled(frame), _CLIPPED))
    if frame.dtype == np.uint8 and (high - low >= _ENOUGH_CONTRAST or high <= low):
        return cast("NDArray[np.uint8]", frame)
    if high <= low:  # nearly everything has one value: what differs is between the extremes
        low, high = float(frame.min()), max(float(frame.max()), float(frame.min()) + 1)
    scaled = (frame.astype(np.float32) - low) * (255.0 / (high - low))
    return cast("NDArray[np.uint8]", np.clip(scaled, 0, 255).astype(np.uint8))


class PixelWriter:
    """Takes frames one by one and writes the pixel element that holds them.

    Parameters
    ----------
    frames : Frames
        Where they come from; at least one must have been decoded.
    out : file object
        Gets the element with tag, VR, length and value.
    """

    def __init__(self, frames: Frames, out: BinaryIO) -> None:
        source = frames.source
        self._layout, self._out, self._photometric = frames.layout, out, frames.photometric
        if int(self._layout.BitsAllocated) not in (8, 16):
            line = "text was found, and only pixels of 8 or 16 bits can be masked"
            raise QuarantineError("burned-in", line, place="(0028,0100)")
        syntax = source.transfer_syntax
        self._native = not syntax.is_encapsulated
        self.syntax = UID(syntax if self._native or syntax in _REWRITABLE else ExplicitVRLittleEndian)
        self._encapsulated: list[bytes] = []
        self._little, self._implicit = syntax.is_little_endian, syntax.is_implicit_VR
        planes = int(source.ds.get("PlanarConfiguration") or 0) if self._native else 0
        self._planes = planes if int(self._layout.SamplesPerPixel) > 1 else 0
        self._written = 0
        self._was_lossy = syntax in _LOSSY

    def attributes(self) -> dict[str, object]:
        """What the image says about its pixels from now on."""
        samples = int(self._layout.SamplesPerPixel)
        said: dict[str, object] = {
            "PhotometricInterpretation": self._photometric,
            "BitsAllocated": int(self._layout.BitsAllocated),
            "BurnedInAnnotation": "NO",
        }
        if samples > 1:
            said["PlanarConfiguration"] = self._planes
        if self._was_lossy:
            said["LossyImageCompression"] = "01"
        return said

    def begin(self, count: int, sample: NDArray[Any]) -> None:
        """Write the head of the element for ``count`` frames like ``sample``.

        Where the encoder cannot write such frames, they become native.
        """
        if self.syntax in _REWRITABLE and not self._can_encode(sample):
            self.syntax = ExplicitVRLittleEndian
        if self.syntax in _REWRITABLE:
            return
        rows, columns = int(self._layout.Rows), int(self._layout.Columns)
        samples, size = int(self._layout.SamplesPerPixel), int(self._layout.BitsAllocated) // 8
        self._length = rows * columns * samples * size * count
        if self._length + self._length % 2 >= _UNDEFINED:
            raise QuarantineError("unsupported", "the pixel data do not fit into 4 GiB when not compressed")
        order = "little" if self._little else "big"
        tag = b"".join(part.to_bytes(2, "little" if self._little else "big") for part in (0x7FE0, 0x0010))
        vr = b"" if self._implicit else (b"OB\0\0" if size == 1 else b"OW\0\0")
        length = self._length + self._length % 2
        self._out.write(tag + vr + length.to_bytes(4, "little" if order == "little" else "big"))

    def add(self, frame: NDArray[Any]) -> None:
        """Write one frame, as ``Frames`` gave it."""
        if self.syntax in _REWRITABLE:
            self._encapsulated.append(self._encoded(frame))
            return
        stored = frame if self._planes == 0 else frame.transpose(2, 0, 1)
        stored = stored.astype(stored.dtype.newbyteorder("<" if self._little else ">"))
        self._written += self._out.write(np.ascontiguousarray(stored).tobytes())

    def _can_encode(self, frame: NDArray[Any]) -> bool:
        try:
            self._encoded(frame)
        except (RuntimeError, ValueError, NotImplementedError):
            return False
        return True

    def _encoded(self, frame: NDArray[Any]) -> bytes:
        layout = self._layout
        by_pixel: dict[str, Any] = {"planar_configuration": 0} if int(layout.SamplesPerPixel) > 1 else {}
        return get_encoder(self.syntax).encode(
            np.ascontiguousarray(frame),
            rows=int(layout.Rows),
            columns=int(layout.Columns),
            samples_per_pixel=int(layout.SamplesPerPixel),
            number_of_frames=1,
            bits_allocated=int(layout.BitsAllocated),
            bits_stored=int(layout.BitsStored),
            pixel_representation=int(layout.PixelRepresentation),
            photometric_interpretation=self._photometric,
            **by_pixel,
        )

    def end(self) -> None:
        """Finish the element."""
        if self.syntax in _REWRITABLE:
            self._out.write(b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff")
            self._out.write(encapsulate(self._encapsulated, has_bot=True))
            self._out.write(_SEQUENCE_DELIMITER)
        elif self._written != self._length:
            raise DeidError("the masked pixels have another length than the image says")
        elif self._length % 2:
            self._out.write(b"\0")

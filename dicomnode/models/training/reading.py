"""Image files that a table names, opened so that every way to fail is one ``InputError`` without a path.

Whoever reads a row adds its number and name. Nothing is decoded that is larger than the node takes.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dicomnode.errors import InputError
from dicomnode.models.preprocess import MAX_PIXELS, UnusableImage


def present(path: Path) -> None:
    """Refuse a file that is not there, is empty, or cannot be there under such a name.

    Raises
    ------
    InputError
        Says which.
    """
    if "\0" in str(path):
        raise InputError("is no name of a file")
    try:
        if not path.is_file():
            raise InputError("is missing")
        empty = path.stat().st_size == 0
    except OSError as e:
        raise InputError(f"cannot be read ({e.strerror})") from e
    if empty:
        raise InputError("is empty (0 bytes)")


def shown(name: str) -> str:
    """A cell as a line may show it: what does not print is escaped."""
    return name if name.isprintable() else repr(name)[1:-1]


class opened:  # noqa: N801 - used as a word of the language
    """An open picture whose pixels are read within the block; every way to fail is one ``UnusableImage``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Image.Image:
        try:
            self.image = Image.open(self.path)
        except Image.DecompressionBombError as e:
            raise _too_large() from e
        except (OSError, ValueError, SyntaxError) as e:
            raise UnusableImage("undecodable", "is not an image that can be read") from e
        if self.image.width * self.image.height > MAX_PIXELS:
            self.image.close()
            raise _too_large()
        return self.image

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.image.close()
        if isinstance(error, (OSError, ValueError, SyntaxError, EOFError)):
            raise UnusableImage("undecodable", "is not an image that can be read") from error


def _too_large() -> UnusableImage:
    return UnusableImage("too-large", "has more than 100 million pixels")

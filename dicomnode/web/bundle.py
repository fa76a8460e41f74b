"""The built viewer inside the package: ``web/viewer/index.html`` and ``assets/``.

Absent in a checkout that did not build it; the plain page is then served instead.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent / "viewer"
MEDIA_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


class Bundle:
    """Reads the viewer's files.

    Parameters
    ----------
    folder : Path
        Holds ``index.html``; need not exist.
    """

    def __init__(self, folder: Path = HERE) -> None:
        self._folder = folder

    def shell(self) -> bytes | None:
        """The page; None where no viewer was built. Read each time: it is small, and may be built anew."""
        try:
            return (self._folder / "index.html").read_bytes()
        except OSError:
            return None

    def asset(self, name: str) -> tuple[bytes, str] | None:
        """Content and media type of a file in ``assets``; None where there is none of this name."""
        media_type = MEDIA_TYPES.get(Path(name).suffix)
        if media_type is None or not _NAME.fullmatch(name):
            return None
        try:
            return (self._folder / "assets" / name).read_bytes(), media_type
        except OSError:
            return None

"""One base error for the whole node.

Every error that people can meet has a stable code, one line for people (what happened, to which file, tag,
setting or peer, and what to do), an exit code for the command line, an HTTP status (RFC 9457) and a DIMSE status
(PS3.4, PS3.7 annex C). The line never carries what identifies a patient: no names, patient ids, accession numbers
or UIDs of original objects. ``place`` names a tag, setting or row; paths in it are the operator's own.
"""

from __future__ import annotations

from typing import ClassVar

# Exit codes of the command line (docs/commands.md): 0 done, 1 failed or something quarantined, 2 usage.
EXIT_FAILED = 1
EXIT_USAGE = 2


class DicomnodeError(Exception):
    """Base of every error the node raises on purpose.

    Parameters
    ----------
    line : str
        One line for people; no identifying text.
    place : str, optional
        The file, tag, setting, peer or row it is about, when not already in the line.
    advice : str, optional
        What to do about it, as a command where there is one.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = EXIT_FAILED
    http_status: ClassVar[int] = 500
    dimse_status: ClassVar[int] = 0x0110  # processing failure, PS3.7 C.4.4

    def __init__(self, line: str, *, place: str = "", advice: str = "") -> None:
        super().__init__(line)
        self.line = line
        self.place = place
        self.advice = advice

    def __str__(self) -> str:
        parts = [f"{self.place}: {self.line}" if self.place else self.line]
        if self.advice:
            parts.append(f"({self.advice})")
        return " ".join(parts)


class SettingsError(DicomnodeError):
    """A setting is unknown, has a bad value, or contradicts another one."""

    code = "settings"
    exit_code = EXIT_USAGE


class UsageError(DicomnodeError):
    """A command was called with arguments that cannot be used."""

    code = "usage"
    exit_code = EXIT_USAGE
    http_status = 400


class NotFound(DicomnodeError):
    """The thing asked for is not there."""

    code = "not-found"
    http_status = 404
    dimse_status = 0x0000


class Expired(NotFound):
    """The thing asked for was there, and is no longer shown."""

    code = "expired"
    http_status = 410


class QuarantineError(DicomnodeError):
    """The input must not go on by itself: it is kept apart until a person decides.

    ``reason`` is one of the stable words of docs/quarantine.md; ``advice`` names the command that solves it.
    """

    code = "quarantine"
    http_status = 422

    def __init__(self, reason: str, line: str, *, place: str = "", advice: str = "") -> None:
        super().__init__(line, place=place, advice=advice)
        self.args = (reason, line)  # so that it survives pickling, as exceptions between processes do
        self.reason = reason


class DeidError(DicomnodeError):
    """De-identification could not be done or could not be proved; nothing was written."""

    code = "deid"
    http_status = 422


class VaultError(DicomnodeError):
    """The pseudonym vault cannot be opened: its key is missing, wrong, or orphaned."""

    code = "vault"


class InputError(DicomnodeError):
    """A file or object is not what it should be (not DICOM, truncated, no pixels)."""

    code = "input"
    http_status = 422
    dimse_status = 0xC000  # cannot understand, PS3.4 table B.2-1


class UploadRefused(InputError):
    """What was uploaded cannot be a query. ``reason`` is one of the stable words of docs/api.md."""

    code = "upload"

    def __init__(self, reason: str, line: str, *, place: str = "", advice: str = "") -> None:
        super().__init__(line, place=place, advice=advice)
        self.reason = reason


class UploadTooLarge(UploadRefused):
    """An upload is larger, or unpacks to more, than the settings allow."""

    http_status = 413


class UploadWrongKind(UploadRefused):
    """An upload is not of a kind that can be a query."""

    http_status = 415


class TooManyRequests(UploadRefused):
    """More is asked than can be done now; worth another try after ``retry_after_s``."""

    http_status = 429
    retry_after_s = 10


class PackError(DicomnodeError):
    """A model pack is missing, damaged, or does not reproduce its golden vectors."""

    code = "model-pack"
    http_status = 503


class IndexCorrupt(DicomnodeError):
    """A vector segment or snapshot does not match its checksum or manifest."""

    code = "index-corrupt"
    http_status = 503


class ModelMismatch(DicomnodeError):
    """Vectors of one model were offered to an index of another; never mixed."""

    code = "model-mismatch"
    http_status = 409


class StorageFull(DicomnodeError):
    """The disk is full. C-STORE answers A700, out of resources (PS3.4 table B.2-1)."""

    code = "disk-full"
    http_status = 507
    dimse_status = 0xA700


class PeerError(DicomnodeError):
    """A peer did not take or answer what was sent; worth another try later."""

    code = "peer"
    http_status = 502


class PeerRefused(PeerError):
    """A peer refuses for good (SOP class not accepted, object rejected); trying again will not help."""

    code = "peer-refused"


class Busy(DicomnodeError):
    """Another process holds what is needed (a lock, a port)."""

    code = "busy"
    http_status = 503

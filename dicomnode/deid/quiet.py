"""Keeps what identifies a patient out of messages: of our errors, of warnings, and of other packages' logs.

pydicom and ``deid`` quote values in their warnings; an exception's text may quote the element that it failed on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import warnings
from collections.abc import Iterator

import pydicom.config

from dicomnode.errors import DeidError, DicomnodeError, QuarantineError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """No warning or log line of pydicom leaves the block, and pydicom does not judge values while it is open.

    Changes state of the process (warning filters, pydicom's logger and validation mode) and puts it back: for
    worker processes and commands, not for threads that share a process with other users of pydicom.
    """
    logger = logging.getLogger("pydicom")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def safe_error(error: BaseException) -> DicomnodeError:
    """Our own errors as they are; any other one without its text, which may quote a value of the object.

    A full disk is ``StorageFull`` and other failures of the system are ``DeidError``: worth another try. The rest
    is the object's own doing: ``QuarantineError`` with reason ``deid-failed``.
    """
    if isinstance(error, DicomnodeError):
        return error
    if isinstance(error, OSError) and error.errno in _FULL:
        return StorageFull("the disk is full", advice="free some space; nothing was lost")
    if isinstance(error, (OSError, MemoryError)) and not isinstance(error, EOFError):
        number = getattr(error, "errno", None)
        return DeidError(f"the system refused ({type(error).__name__} {errno.errorcode.get(number or 0, '')})".strip())
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" in {frame.tb_frame.f_code.co_name}" if frame is not None else ""
    line = f"the object could not be de-identified: {type(error).__name__}{where}"
    return QuarantineError("deid-failed", line, advice="look at the object with its sender")

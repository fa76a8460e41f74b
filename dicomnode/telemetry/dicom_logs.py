"""Keeps pydicom and pynetdicom from logging what identifies a patient.

pynetdicom logs C-FIND identifiers by default (``LOG_*_IDENTIFIERS``), prints whole exceptions, and its default event
handlers log every message; pydicom repeats attribute values in warnings. Every process that speaks DICOM calls
``silence_dicom_libraries`` once at its start; what the node logs itself is enough.
"""

from __future__ import annotations

import logging
import threading
import warnings

import structlog
from pydicom import config as pydicom_config
from pynetdicom import _config as pynetdicom_config

log = structlog.get_logger(__name__)


def silence_dicom_libraries() -> None:
    """Turn off identifying output of pydicom and pynetdicom in this process. Calling it again changes nothing."""
    pynetdicom_config.LOG_REQUEST_IDENTIFIERS = False
    pynetdicom_config.LOG_RESPONSE_IDENTIFIERS = False
    pynetdicom_config.LOG_HANDLER_LEVEL = "none"
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    for name in ("pydicom", "pynetdicom"):
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = False
        library.setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"(pydicom|pynetdicom)(\..*)?")
    threading.excepthook = _thread_died


def _thread_died(args: threading.ExceptHookArgs) -> None:
    """A thread's traceback may quote data; its type and thread are what is needed."""
    if args.exc_type is not SystemExit:
        log.error("thread_died", error=args.exc_type.__name__)

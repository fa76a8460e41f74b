"""Keeps pydicom and pynetdicom from logging what identifies a patient.

pynetdicom logs C-FIND identifiers by default (``LOG_*_IDENTIFIERS``), prints whole exceptions, and its default event
handlers log every message; pydicom repeats attribute values in warnings. Every process that speaks DICOM calls
``silence_dicom_libraries`` once at its start; what the node logs itself is enough.
"""

from __future__ import annotations

import logging
import warnings

from pydicom import config as pydicom_config
from pynetdicom import _config as pynetdicom_config


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

"""Words of the options of ``dicomnode deid``; imports nothing, so that the command line starts at once."""

from __future__ import annotations

from enum import StrEnum


class Layout(StrEnum):
    """``--layout``: folders by pseudonyms, or those of the input under mapped names."""

    DICOM = "dicom"
    KEEP = "keep"


class ReportPaths(StrEnum):
    """``--report-paths``: inputs by their whole paths, by those below the given folder, or by keyed hashes."""

    FULL = "full"
    HASHED = "hashed"
    RELATIVE = "relative"


def paths_in(suffix: str, chosen: ReportPaths | None) -> ReportPaths:
    """How a report names inputs where nothing is chosen: JSON is for programs, CSV and HTML are sent around."""
    return chosen or (ReportPaths.HASHED if suffix.lower() in (".csv", ".html", ".htm") else ReportPaths.FULL)


INPUT_PREFIX = "input-"  # before the keyed hash of an input, where it is named for people

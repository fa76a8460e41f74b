"""C-ECHO as SCP (PS3.4 annex A): answered to every known peer; unknown ones never get an association."""

from __future__ import annotations

from pynetdicom.events import Event

from dicomnode.scp.status import SUCCESS


def handle_echo(_event: Event) -> int:
    """Answer a C-ECHO request."""
    return SUCCESS

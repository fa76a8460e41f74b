"""The confidentiality profile and its options: names in the settings, codes, and which of them are offered.

An option that cannot be honoured is refused at the start, never ignored. Imports nothing heavy, so that settings can
be checked quickly. Sources: PS3.15 E.2 and E.3 (profile, options), PS3.16 CID 7050 (codes).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from dicomnode.errors import SettingsError


class Option(StrEnum):
    """Options of the Basic Application Level Confidentiality Profile, PS3.15 E.3, as named in the settings."""

    SAFE_PRIVATE = "retain-safe-private"
    UIDS = "retain-uids"
    DEVICE = "retain-device-identity"
    INSTITUTION = "retain-institution-identity"
    PATIENT = "retain-patient-characteristics"
    FULL_DATES = "retain-longitudinal-full-dates"
    MODIFIED_DATES = "retain-longitudinal-modified-dates"
    DESCRIPTORS = "clean-descriptors"
    STRUCTURED = "clean-structured-content"
    GRAPHICS = "clean-graphics"
    PIXEL_DATA = "clean-pixel-data"
    VISUAL_FEATURES = "clean-recognizable-visual-features"


PROFILE = "basic"
PROFILE_CODE = ("113100", "Basic Application Confidentiality Profile")
# PS3.16 CID 7050, De-identification Method.
OPTION_CODES = {
    Option.PIXEL_DATA: ("113101", "Clean Pixel Data Option"),
    Option.VISUAL_FEATURES: ("113102", "Clean Recognizable Visual Features Option"),
    Option.GRAPHICS: ("113103", "Clean Graphics Option"),
    Option.STRUCTURED: ("113104", "Clean Structured Content Option"),
    Option.DESCRIPTORS: ("113105", "Clean Descriptors Option"),
    Option.FULL_DATES: ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    Option.MODIFIED_DATES: ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    Option.PATIENT: ("113108", "Retain Patient Characteristics Option"),
    Option.DEVICE: ("113109", "Retain Device Identity Option"),
    Option.UIDS: ("113110", "Retain UIDs Option"),
    Option.SAFE_PRIVATE: ("113111", "Retain Safe Private Option"),
    Option.INSTITUTION: ("113112", "Retain Institution Identity Option"),
}
_REFUSED = {
    Option.STRUCTURED: "content trees are always removed, they are not cleaned",
    Option.GRAPHICS: "overlays, curves and graphic annotations are always removed, they are not cleaned",
    Option.VISUAL_FEATURES: "faces are not removed from head images",
}


def parse(profile: str, options: Iterable[str]) -> frozenset[Option]:
    """The options as a set.

    Raises
    ------
    SettingsError
        The profile or an option is unknown, cannot be honoured, or contradicts another one.
    """
    if profile != PROFILE:
        raise SettingsError(f"'{profile}' is not a profile", place="[deid] profile", advice=f"use '{PROFILE}'")
    chosen = set()
    for name in options:
        try:
            option = Option(name)
        except ValueError:
            known = " ".join(item.value for item in Option if item not in _REFUSED)
            raise SettingsError(f"'{name}' is not an option", place="[deid] options", advice=f"use {known}") from None
        if option in _REFUSED:
            raise SettingsError(
                f"'{name}' is not offered: {_REFUSED[option]}", place="[deid] options", advice="remove it"
            )
        chosen.add(option)
    if {Option.FULL_DATES, Option.MODIFIED_DATES} <= chosen:
        line = f"'{Option.FULL_DATES}' and '{Option.MODIFIED_DATES}' contradict each other"
        raise SettingsError(line, place="[deid] options", advice="keep one")
    return frozenset(chosen)

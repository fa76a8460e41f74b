"""Regions of the body in the words of a header."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dicomnode.archive.regions import _WORDS, described_region, joined, regions_in
from dicomnode.domain import REGION_WORDS, Shows

CT_CHEST = Shows("CT", "CHEST")


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ("Thorax^1_LUNG (Adult)", "CHEST"),
        ("TC de tórax sin contraste", "CHEST"),
        ("CT Chest/Abd/Pelvis w", "ABDOMEN/CHEST"),
        ("RM de cerebro", "HEAD"),
        ("AX T2 CSPINE", "NECK"),
        ("Thoracic spine sag", "SPINE"),
        ("Columna cervical", "SPINE"),
        ("angio de carótidas", "NECK"),
        ("rodilla izq", "LIMB"),
        ("ABDOMEN", "ABDOMEN"),
        ("mamografía de mamas", "BREAST"),
        ("5.0 B31f", ""),
        ("chestnut headed", ""),
        ("", ""),
    ],
)
def test_whole_words_in_two_languages(text: str, regions: str) -> None:
    assert joined(regions_in(text)) == regions


def test_every_region_has_words_for_readers_and_for_headers() -> None:
    assert set(_WORDS) == set(REGION_WORDS)


@pytest.mark.parametrize("language", ["en", "es"])
def test_the_viewer_has_the_same_words(language: str) -> None:
    text = (Path(__file__).parents[2] / "viewer" / "src" / "i18n" / f"{language}.ts").read_text("utf-8")
    words = dict(re.findall(r"'region\.(\w+)': '([^']+)'", text))
    assert words == {region: said[language] for region, said in REGION_WORDS.items()}


def test_a_series_says_more_than_its_study() -> None:
    assert described_region("brain", "Chest and head") == "HEAD"
    assert described_region("AX T2", "Chest and head") == "CHEST/HEAD"
    assert described_region("AX T2", "follow up") == ""


@pytest.mark.parametrize(
    ("shows", "outside"),
    [
        (Shows("CT", "CHEST"), False),
        (Shows("CT", "ABDOMEN/CHEST"), False),
        (Shows("CT", ""), False),
        (Shows("", ""), False),
        (Shows("OT", ""), False),
        (Shows("CT/MR", "CHEST"), False),
        (Shows("MR", "CHEST"), True),
        (Shows("MR", ""), True),
        (Shows("CT", "HEAD"), True),
        (Shows("", "HEAD"), True),
    ],
)
def test_only_what_is_told_can_lie_outside(shows: Shows, outside: bool) -> None:
    assert shows.outside([CT_CHEST]) is outside
    assert not shows.outside([])
    assert not shows.outside([CT_CHEST, Shows(shows.modality, shows.region)])

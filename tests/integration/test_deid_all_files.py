"""Every file of pydicom, pydicom-data and deid-data through ``dicomnode deid``: equal pixels or a reason, no crash.

What dciodvfy says of the result is compared with what it says of the original: nothing new may appear.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import corpora
import pytest
import validators

from dicomnode.config import Settings
from dicomnode.node import Node

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# Table E.1-1 removes (X) what is Type 2C in an object about an animal: the Standard's own contradiction.
ALLOWED = {
    f"Error - Missing attribute Type 2C Conditional Element=<{name}> Module=<Patient>"
    for name in ("ResponsiblePerson", "ResponsibleOrganization")
}


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[corpora.Row, Path]]:
    folder = tmp_path_factory.mktemp("corpora")
    # Text in pixels is the matter of test_deid_pixels.py: to look for it in all of these takes many minutes.
    node = Node(Settings(node={"data_dir": folder / "var"}, deid={"pixels": "quarantine"}))
    try:
        return list(corpora.deidentified_pairs(node, corpora.folders(), folder / "out"))
    finally:
        node.close()


def test_each_file_passes_with_its_pixels_or_says_why_not(settled: list[tuple[corpora.Row, Path]]) -> None:
    assert len(settled) > 200
    for row, original in settled:
        corpora.assert_settled(row, original)
    assert sum(row.output is not None for row, _ in settled) > 30


@pytest.mark.parametrize("validate", [validators.dciodvfy, validators.dciodvfy_debian])
def test_dciodvfy_finds_no_new_error(settled: list[tuple[corpora.Row, Path]], validate) -> None:  # type: ignore[no-untyped-def]
    pairs = [(original, Path(row.output)) for row, original in settled if row.output]
    before = validate([original for original, _ in pairs])
    after = validate([written for _, written in pairs])
    new = {
        original.name: more
        for original, written in pairs
        if (more := set(_kinds(after[written]) - _kinds(before[original])) - ALLOWED)
    }
    assert new == {}


def _kinds(errors: list[str]) -> Counter[str]:
    """Errors without the UIDs in them, which are others in the result."""
    return Counter(re.sub(r"<[\d.]+>", "<UID>", error) for error in errors)

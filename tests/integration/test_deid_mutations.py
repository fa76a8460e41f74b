"""Every rule of the recipe left out in turn: the auditor finds each, at every depth."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import CT, plant

from dicomnode.deid.audit import Auditor
from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import Action, compile_recipe
from dicomnode.domain import Pseudonym

SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
DEFAULT = (
    "retain-longitudinal-modified-dates",
    "clean-descriptors",
    "clean-pixel-data",
    "retain-patient-characteristics",
)
OTHERS = ("retain-longitudinal-full-dates", "retain-device-identity", "retain-institution-identity")


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("options", [(), DEFAULT, OTHERS], ids=["basic", "default", "others"])
@pytest.mark.parametrize("place", ["top", "nested", "un"])
def test_no_rule_can_be_left_out_unnoticed(options: tuple[str, ...], place: str, tmp_path: Path) -> None:
    recipe = compile_recipe("basic", options)
    auditor = Auditor(recipe.options)
    src, out = tmp_path / "in.dcm", tmp_path / "out.dcm"
    missed = []
    tags = [tag for tag in recipe.rules if recipe.action(tag, CT) is not Action.KEEP]
    for tag in tags:
        plant(src, [tag], [place])
        if tag.to_bytes(4, "big")[:2] not in src.read_bytes() and b"PHIX" not in src.read_bytes():
            continue
        Deidentifier(recipe.without(tag), bytes(32), fsync=False, audited=False).deidentify(src, out, SUBJECT)
        if not auditor.findings(src, out, SUBJECT):
            missed.append(f"{tag:08X}")
    assert len(tags) > 500
    assert missed == [], " ".join(missed)

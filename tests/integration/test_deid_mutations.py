"""Every rule of the recipe left out in turn: the auditor finds each, at every depth."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import CT, plant

from dicomnode.deid.audit import Auditor
from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import Action, Recipe, compile_recipe
from dicomnode.domain import Pseudonym

SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
DEFAULT = (
    "retain-longitudinal-modified-dates",
    "clean-descriptors",
    "clean-pixel-data",
    "retain-patient-characteristics",
)
OTHERS = ("retain-longitudinal-full-dates", "retain-device-identity", "retain-institution-identity")


def unaudited(recipe: Recipe) -> Deidentifier:
    return Deidentifier(recipe, bytes(32), fsync=False, audited=False)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("options", [(), DEFAULT, OTHERS], ids=["basic", "default", "others"])
@pytest.mark.parametrize("place", ["top", "nested", "un"])
def test_no_rule_can_be_left_out_unnoticed(options: tuple[str, ...], place: str, tmp_path: Path) -> None:
    recipe = compile_recipe("basic", options)
    auditor = Auditor(recipe.options)
    src, out, complete = tmp_path / "in.dcm", tmp_path / "out.dcm", tmp_path / "complete.dcm"
    missed, redundant = [], 0
    tags = [tag for tag in recipe.rules if recipe.action(tag, CT) is not Action.KEEP]
    for tag in tags:
        plant(src, [tag], [place])
        unaudited(recipe).deidentify(src, complete, SUBJECT)
        assert auditor.findings(src, complete, SUBJECT) == [], f"{tag:08X}"
        unaudited(recipe.without(tag)).deidentify(src, out, SUBJECT)
        if out.read_bytes() == complete.read_bytes():
            redundant += 1  # another step covers the attribute in this place
        elif not auditor.findings(src, out, SUBJECT):
            missed.append(f"{tag:08X}")
    assert missed == [], " ".join(missed)
    assert len(tags) > 450
    assert redundant < 40

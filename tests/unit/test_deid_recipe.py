"""The compiled recipe: complete, refused where it cannot be honoured, and never skipped in silence by deid."""

from __future__ import annotations

import pytest
from planted import CT
from pydicom.sr.codedict import codes

from dicomnode.deid import iod, table
from dicomnode.deid.options import OPTION_CODES, Option
from dicomnode.deid.recipe import Action, Recipe, compile_recipe, lint_header, preflight
from dicomnode.errors import DeidError, SettingsError

OFFERED = [
    "retain-safe-private",
    "retain-uids",
    "retain-device-identity",
    "retain-institution-identity",
    "retain-patient-characteristics",
    "retain-longitudinal-full-dates",
    "retain-longitudinal-modified-dates",
    "clean-descriptors",
    "clean-pixel-data",
]
REFUSED = [
    "clean-structured-content",
    "clean-graphics",
    "clean-recognizable-visual-features",
]


def test_the_table_has_every_row_with_a_tag() -> None:
    assert len(table.rows()) == 652
    assert table.by_tag()[0x00100020].basic == "Z/D"
    assert table.by_tag()[0x00080020].columns == {Option.FULL_DATES: "K", Option.MODIFIED_DATES: "C"}


def test_every_option_of_the_settings_is_offered_or_refused() -> None:
    assert sorted(OFFERED + REFUSED) == sorted(option.value for option in Option)


@pytest.mark.parametrize("option", OFFERED)
def test_an_offered_option_compiles(option: str) -> None:
    assert compile_recipe("basic", [option]).options == {Option(option)}


@pytest.mark.parametrize("option", [*REFUSED, "retain-everything"])
def test_an_option_that_cannot_be_honoured_stops_the_start_and_is_named(option: str) -> None:
    with pytest.raises(SettingsError, match=option):
        compile_recipe("basic", [option])


def test_full_and_modified_dates_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match="contradict"):
        compile_recipe("basic", ["retain-longitudinal-full-dates", "retain-longitudinal-modified-dates"])


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(SettingsError, match="profile"):
        compile_recipe("relaxed", [])


def test_the_type_in_the_iod_chooses_among_x_z_and_d() -> None:
    recipe = compile_recipe()
    device_serial, station, contrast = 0x00181000, 0x00081010, 0x00180010
    enhanced_ct = "1.2.840.10008.5.1.4.1.1.2.1"
    assert iod.attribute_type(enhanced_ct, device_serial) == "1"  # Enhanced General Equipment
    assert recipe.action(device_serial, enhanced_ct) is Action.DUMMY
    assert recipe.action(station, CT) is Action.REMOVE
    assert recipe.action(contrast, CT) is Action.BLANK


@pytest.mark.parametrize(
    ("option", "tag", "action"),
    [
        ("retain-longitudinal-modified-dates", 0x00080020, Action.SHIFT),
        ("retain-longitudinal-modified-dates", 0x00080030, Action.KEEP),
        ("retain-longitudinal-full-dates", 0x00080020, Action.KEEP),
        ("clean-descriptors", 0x00081030, Action.CLEAN),
        ("retain-patient-characteristics", 0x00101010, Action.AGE),
        ("retain-patient-characteristics", 0x00100040, Action.TERM),
        ("retain-patient-characteristics", 0x001021C0, Action.KEEP),
        ("retain-institution-identity", 0x00080080, Action.KEEP),
        ("retain-device-identity", 0x00181000, Action.KEEP),
        ("retain-uids", 0x0020000D, Action.KEEP),
    ],
)
def test_an_option_changes_what_happens_to_its_attributes(option: str, tag: int, action: Action) -> None:
    assert compile_recipe("basic", [option]).action(tag, CT) is action
    assert compile_recipe("basic", []).action(tag, CT) is not action


def test_the_hash_names_the_recipe() -> None:
    assert compile_recipe("basic", OFFERED[:1]).sha256 == compile_recipe("basic", OFFERED[:1]).sha256
    assert compile_recipe("basic", OFFERED[:1]).sha256 != compile_recipe("basic", []).sha256


def test_the_codes_of_the_options_are_those_of_cid_7050() -> None:
    known = {getattr(codes.cid7050, name).value: getattr(codes.cid7050, name).meaning for name in codes.cid7050.dir()}
    for value, meaning in OPTION_CODES.values():
        assert known[value] == meaning


def test_a_row_of_the_table_without_a_rule_does_not_pass_the_preflight() -> None:
    with pytest.raises(DeidError, match=r"\(0010,1040\)"):
        preflight(compile_recipe().without(0x00101040))


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "remove", "field": "(0010,1040)"},
        {"action": "DELETE", "field": "(0010,1040)"},
        {"action": "BLANK", "field": "(0010,1040)"},
        {"action": "REMOVE", "field": "(0010,104O)"},
        {"action": "REMOVE", "field": "(0010,10ab)"},
        {"action": "REMOVE", "field": "PatientAdress"},
        {"action": "REMOVE", "field": "(0010,1040)", "value": "func:uid"},
        {"action": "REPLACE", "field": "(0010,1040)"},
        {"action": "REPLACE", "field": "(0010,1040)", "value": "func:missing"},
        {"action": "REPLACE", "field": "(0010,1040)", "value": "var:missing"},
        {"action": "REPLACE", "field": "(0011,1040)", "value": "func:dummy"},
        {"action": "REMOVE", "field": "values:names"},
    ],
)
def test_rules_that_deid_would_skip_in_silence_are_refused(rule: dict[str, str]) -> None:
    with pytest.raises(DeidError):
        lint_header([rule])


def test_two_rules_for_one_field_are_refused() -> None:
    rule = {"action": "REMOVE", "field": "(0010,1040)"}
    lint_header([rule])
    with pytest.raises(DeidError, match="two rules"):
        lint_header([rule, dict(rule)])


def test_without_takes_out_exactly_one_rule() -> None:
    recipe: Recipe = compile_recipe()
    assert set(recipe.rules) - set(recipe.without(0x00100010).rules) == {0x00100010}
    assert "PatientIdentityRemoved" not in recipe.without("PatientIdentityRemoved").additions

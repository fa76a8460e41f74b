"""How values of a C-FIND identifier are read: what each form matches, what is refused, what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from dicomnode.archive.finding import ATTRIBUTES, Between, Level, Like, OneOf
from dicomnode.errors import InputError
from dicomnode.scp.keys import KEYS, IdentifierMismatch, as_markdown, read_query
from dicomnode.scp.similar import Asked, read_similar, write_similar

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")


def identifier(level: str = "STUDY", **keys) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


def read(ds: Dataset, **how):
    return read_query(ds, lambda uid: (uid, f"2.25.{uid}"), **how)


def matches(keyword: str, value) -> tuple:
    (condition,) = read(identifier(**{keyword: value})).conditions
    assert condition.keyword == keyword
    return condition.matches


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("PatientID", "DN-1", [OneOf(("DN-1",))]),
        ("PatientID", " DN-1 ", [OneOf(("DN-1",))]),
        ("PatientID", "DN-*", [Like("DN-*")]),
        ("PatientID", "DN-?", [Like("DN-?")]),
        ("PatientID", "?", [Like("?")]),
        ("PatientName", "DN-1^", [OneOf(("DN-1",))]),
        ("PatientName", "DN*^^", [Like("DN*")]),
        ("ModalitiesInStudy", ["CT", "M*"], [OneOf(("CT",)), Like("M*")]),
        ("StudyInstanceUID", "1.2", [OneOf(("1.2", "2.25.1.2"))]),
        ("StudyInstanceUID", ["1.2", "1.3", "1.2"], [OneOf(("1.2", "2.25.1.2", "1.3", "2.25.1.3"))]),
        ("SOPClassesInStudy", "1.2", [OneOf(("1.2",))]),  # no UID of an instance: the same for everybody
        ("StudyDate", "20230102", [OneOf(("20230102",))]),
        ("StudyDate", "2023.01.02", [OneOf(("20230102",))]),
        ("StudyDate", "20240229", [OneOf(("20240229",))]),
        ("StudyDate", "20230102-20230203", [Between("20230102", "20230203")]),
        ("StudyDate", "2023.01.02-2023.02.03", [Between("20230102", "20230203")]),
        ("StudyDate", "20230102 - 20230203", [Between("20230102", "20230203")]),
        ("StudyDate", "20230102-", [Between("20230102", "")]),
        ("StudyDate", "-20230102", [Between("", "20230102")]),
        ("StudyTime", "12", [OneOf(("12",))]),
        ("StudyTime", "235960", [OneOf(("235960",))]),
        ("StudyTime", "12:30-14", [Between("1230", "14")]),
        ("StudyTime", "-120000.5", [Between("", "120000.5")]),
    ],
)
def test_a_value_matches_by_its_form(keyword, value, expected):
    assert list(matches(keyword, value)) == expected


@pytest.mark.parametrize("value", ["", "*", "**", "  ", None, [], ["CT", "*"]])
def test_nothing_and_a_lone_asterisk_match_everything_and_are_returned(value):
    query = read(identifier(ModalitiesInStudy=value))
    assert (query.conditions, query.wanted, query.all_served) == ((), {"ModalitiesInStudy"}, True)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyDate", "2023"),
        ("StudyDate", "20230230"),
        ("StudyDate", "20230229"),
        ("StudyDate", "00000101"),
        ("StudyDate", "2023-01-02"),
        ("StudyDate", "-"),
        ("StudyDate", "20230101-20230102-20230103"),
        ("StudyDate", "2023*"),
        ("StudyDate", "２０２３０１０１"),
        ("StudyTime", "24"),
        ("StudyTime", "1260"),
        ("StudyTime", "noon"),
        ("StudyInstanceUID", "1.2.*"),
        ("StudyInstanceUID", "abc"),
        ("StudyInstanceUID", "1" * 65),
        ("StudyInstanceUID", ["1.2"] * 1001),
        ("PatientID", "x" * 257),
    ],
)
def test_a_value_of_another_form_is_refused_by_the_name_of_its_key_alone(keyword, value):
    with pytest.raises(InputError) as refused:
        read(identifier(**{keyword: value}))
    assert refused.value.dimse_status == 0xC000
    assert refused.value.place == keyword
    assert str(value) not in str(refused.value)


@pytest.mark.parametrize("value", ["1.5", "one", "99999999999", "--1"])
def test_numbers_are_whole(value):
    ds = identifier("IMAGE", StudyInstanceUID="1", SeriesInstanceUID="1")
    ds.add_new("Rows", "LO", value)
    with pytest.raises(InputError, match="Rows"):
        read(ds)


def test_a_sequence_or_bytes_in_a_served_key_are_refused():
    for vr, value in (("SQ", [Dataset()]), ("UN", b"CT\xff")):
        ds = identifier()
        ds.add_new("PatientID", vr, value)
        with pytest.raises(InputError, match="PatientID"):
            read(ds)


def test_what_is_about_the_request_is_no_key():
    ds = identifier(SpecificCharacterSet="ISO_IR 100", RetrieveAETitle="", InstanceAvailability="", StudyDate="",
                    TimezoneOffsetFromUTC="+0100")  # fmt: skip
    ds.add_new(0x00080000, "UL", 10)
    query = read(ds)
    assert (query.all_served, query.wanted) == (True, {"StudyDate"})


@pytest.mark.parametrize(
    ("level", "keys", "missing"),
    [
        ("SERIES", {}, "StudyInstanceUID"),
        ("SERIES", {"StudyInstanceUID": ""}, "StudyInstanceUID"),
        ("SERIES", {"StudyInstanceUID": ["1.2", "1.3"]}, "StudyInstanceUID"),
        ("IMAGE", {"StudyInstanceUID": "1.2"}, "SeriesInstanceUID"),
        ("IMAGE", {"SeriesInstanceUID": "1.2"}, "StudyInstanceUID"),
        ("IMAGE", {"SOPInstanceUID": "1.2"}, "StudyInstanceUID"),
        ("PATIENT", {}, "QueryRetrieveLevel"),
        ("study", {}, "QueryRetrieveLevel"),
        ("", {}, "QueryRetrieveLevel"),
        (["STUDY", "SERIES"], {}, "QueryRetrieveLevel"),
    ],
)
def test_a_hierarchical_query_needs_its_level_and_the_unique_keys_above(level, keys, missing):
    with pytest.raises(IdentifierMismatch, match=missing) as refused:
        read(identifier(level, **keys))
    assert refused.value.dimse_status == 0xA900


def test_a_similarity_query_needs_no_unique_keys():
    assert read(identifier("IMAGE", Modality="CT"), relational=True).level is Level.IMAGE


@pytest.mark.parametrize(
    ("level", "keyword", "served"),
    [
        ("STUDY", "Modality", False),
        ("STUDY", "PatientBirthDate", False),
        ("SERIES", "StudyDate", True),
        ("SERIES", "InstanceNumber", False),
        ("IMAGE", "Modality", True),
    ],
)
def test_keys_of_this_level_and_above_are_served(level, keyword, served):
    query = read(identifier(level, StudyInstanceUID="1", SeriesInstanceUID="1", **{keyword: ""}), relational=True)
    below = {"SeriesInstanceUID"} if level == "STUDY" else set()
    assert query.all_served is (served and not below)
    assert (keyword in query.wanted) is served


def test_every_key_of_the_table_has_its_attribute():
    assert set(KEYS) == set(ATTRIBUTES)


def private(block: int = 0x10, instance="1.2", maximum=None, creator="DICOMNODE 1.0") -> Dataset:
    ds = identifier("IMAGE")
    ds.add_new((0x0099, block), "LO", creator)
    ds.add_new((0x0099, block << 8 | 1), "UI", instance)
    ds.add_new((0x0099, block << 8 | 2), "IS", maximum)
    return ds


@pytest.mark.parametrize("block", [0x10, 0x11, 0xFF])
def test_private_keys_are_found_in_the_block_of_their_creator(block):
    ds = private(block, "1.2", 7)
    if block != 0x10:
        ds.add_new((0x0099, 0x10), "LO", "SOMEBODY ELSE")
    elements = {block, block << 8 | 1, block << 8 | 2}
    assert read_similar(ds) == Asked(block, "1.2", 7, frozenset(0x00990000 | e for e in elements))


def test_private_keys_of_another_creator_are_not_ours():
    assert read_similar(private(creator="DICOMNODE 2.0")) is None
    assert read_similar(identifier("IMAGE")) is None


def test_private_keys_read_without_a_dictionary_are_text_in_bytes():
    ds = identifier("IMAGE")
    for element, value in ((0x10, b"DICOMNODE 1.0 "), (0x1001, b"1.2\0"), (0x1002, b"12")):
        ds.add_new((0x0099, element), "UN", value)
    asked = read_similar(ds)
    assert asked is not None
    assert (asked.instance, asked.maximum) == ("1.2", 12)


@pytest.mark.parametrize(
    "ds",
    [
        private(instance="1.2*"),
        private(instance=["1.2", "1.3"]),
        private(maximum=0),
        private(maximum=1001),
        private(maximum=-1),
    ],
)
def test_private_values_of_another_form_are_refused(ds):
    with pytest.raises(InputError, match="0099,10"):
        read_similar(ds)


def test_an_answer_carries_the_private_keys_in_the_block_that_was_asked():
    answer = Dataset()
    write_similar(answer, Asked(0x12, "1.2", 3, frozenset()), "2.25.1", 0.75, 2)
    block = answer.private_block(0x0099, "DICOMNODE 1.0")
    assert block.block_start == 0x1200
    assert [block[n].value for n in (1, 2, 3, 4)] == ["2.25.1", 3, 0.75, 2]


def test_the_table_of_keys_in_the_documentation_is_current():
    assert as_markdown() in (Path(__file__).parents[2] / "docs" / "query.md").read_text("utf-8")

"""How texts are broken into lines: nothing is lost in silence, nothing is wider than its place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomnode.report.fonts import (
    ELLIPSIS,
    drawable,
    lines_of,
    shortened,
    starts_right_to_left,
    without_controls,
    wrapped,
)


def measure(text: str) -> float:
    return float(len(text))


@settings(max_examples=100, deadline=None)
@given(st.text("ab ", max_size=60), st.integers(2, 12), st.integers(1, 6))
def test_lines_keep_to_their_width_and_hold_the_text_or_end_in_dots(text: str, width: int, lines: int) -> None:
    found = wrapped(text, measure, width, lines)
    assert len(found) <= lines
    assert all(len(line) <= width for line in found)
    if not (found and found[-1].endswith(ELLIPSIS)):
        assert "".join(found).replace(" ", "") == text.replace(" ", "")


def test_a_word_longer_than_a_line_is_broken() -> None:
    assert wrapped("abcdefgh ij", measure, 5, 9) == ["abcde", "fgh", "ij"]


def test_a_shortened_text_says_so() -> None:
    assert shortened("abcdef", measure, 4) == "abc" + ELLIPSIS
    assert shortened("abcd", measure, 4) == "abcd"


def test_several_texts_share_the_lines_and_the_rest_is_counted() -> None:
    found = lines_of(["one", "two", "three", "four"], measure, 10, 3, "and {n} more")
    assert [line.text for line in found] == ["one", "two", "and 2 more"]
    assert [line.text for line in lines_of(["one", "two"], measure, 10, 2, "and {n} more")] == ["one", "two"]


def test_a_latin_line_of_a_hebrew_text_still_reads_from_the_right() -> None:
    found = lines_of(["דלקת ריאות COVID-19"], measure, 10, 3, "")
    assert [line.from_right for line in found] == [True, True]
    assert not lines_of(["COVID-19 דלקת"], measure, 99, 3, "")[0].from_right


@pytest.mark.parametrize(("text", "expected"), [("abc", False), ("12 אב", True), ("אב ab", True), ("", False)])
def test_the_first_strong_letter_gives_the_direction(text: str, expected: bool) -> None:
    assert starts_right_to_left(text) is expected


def test_characters_that_only_reorder_are_dropped_and_joiners_stay() -> None:
    assert without_controls("a\u202eb\u2067c\u200fd") == "abcd"
    assert without_controls("می\u200cخواهم") == "می\u200cخواهم"


def test_what_the_font_lacks_is_not_drawable() -> None:
    assert drawable("Neumonía, пневмония, πνευμονία")
    assert not drawable("肺炎")

"""Pseudonymous UIDs and shifted dates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from dicomnode.deid.pseudonym import pseudo_uid, shift_date, shift_datetime

KEY = b"k" * 32


@given(st.integers(min_value=0, max_value=10**30))
def test_a_pseudonymous_uid_is_valid_stable_and_not_the_original(number: int) -> None:
    original = f"1.2.3.{number}"
    made = pseudo_uid(KEY, original)
    assert UID(made).is_valid
    assert made.startswith("2.25.")
    assert made == pseudo_uid(KEY, original + "\0")
    assert made != pseudo_uid(b"x" * 32, original)


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.1", "2.16.840.1.113883.6.96", ""])
def test_uids_of_the_standard_stay(uid: str) -> None:
    assert pseudo_uid(KEY, uid) == uid


@pytest.mark.parametrize(
    ("value", "days", "moved"),
    [
        ("20200301", -1, "20200229"),
        ("20200101", -1, "20191231"),
        ("00010101", -1, ""),
        ("20200231", -1, ""),
        ("202002", -1, ""),
        ("2020.02.01", -1, ""),
        ("", -1, ""),
    ],
)
def test_dates_move_by_days_or_vanish(value: str, days: int, moved: str) -> None:
    assert shift_date(value, days) == moved


@pytest.mark.parametrize(
    ("value", "moved"),
    [
        ("20200301101112.123456+0100", "20200229101112.123456+0100"),
        ("20200301", "20200229"),
        ("202003", ""),
        ("2020", ""),
        ("20200301 Smith", ""),
    ],
)
def test_a_datetime_keeps_its_time_and_zone(value: str, moved: str) -> None:
    assert shift_datetime(value, -1) == moved

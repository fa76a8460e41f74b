"""Handles: the same case, the same name within one result; nothing that was not made here opens."""

from __future__ import annotations

import os

import pytest

from dicomnode.web.handles import Handles

MINE, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def handles() -> Handles:
    return Handles(os.urandom(32))


def test_a_handle_names_its_case_in_its_result_only(handles):
    handle = handles.make(MINE, 17, "2.25.5")
    named = handles.open(MINE, handle)
    assert (named.row, named.is_of("2.25.5"), named.is_of("2.25.6")) == (17, True, False)
    assert handles.open(OTHER, handle) is None
    assert handles.make(OTHER, 17, "2.25.5") != handle
    assert handles.make(MINE, 17, "2.25.5") == handle
    assert Handles(os.urandom(32)).open(MINE, handle) is None


def test_it_tells_nothing_and_needs_no_escaping_in_a_path(handles):
    made = [handles.make(MINE, n, f"2.25.{n}") for n in range(200)]
    assert len(set(made)) == 200
    assert all(
        len(h) == 40 and set(h) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") for h in made
    )


def test_no_change_to_a_handle_opens(handles):
    handle = handles.make(MINE, 17, "2.25.5")
    for at in range(40):
        for other in "A-_9":
            changed = handle[:at] + other + handle[at + 1 :]
            assert changed == handle or handles.open(MINE, changed) is None


@pytest.mark.parametrize("bad", ["", "query", "a" * 39, "a" * 41, "ñ" * 40, "+" * 40, "/" * 40, "=" * 40, "\x00" * 40])
def test_what_is_no_handle_does_not_open(handles, bad):
    assert handles.open(MINE, bad) is None

"""Which words a cleaned text may have: no name passes but those that the clinical list itself has."""

from __future__ import annotations

import importlib
import pkgutil

import faker.providers.person as person
import pytest

from dicomnode.deid import table
from dicomnode.deid.text import clean
from dicomnode.deid.text_audit import is_clean

LANGUAGES = ("de", "en", "es", "fr", "it", "nl", "pl", "pt")


def names() -> set[str]:
    """Given names and surnames of one word, as Faker has them for the countries of these languages."""
    found: set[str] = set()
    for module in pkgutil.iter_modules(person.__path__):
        if not module.name.startswith(tuple(f"{one}_" for one in LANGUAGES)):
            continue
        provider = importlib.import_module(f"{person.__name__}.{module.name}").Provider
        for kind in dir(provider):
            listed = getattr(provider, kind)
            if "name" in kind and "format" not in kind and isinstance(listed, tuple | list | dict):
                found |= {word for one in listed if isinstance(one, str) for word in one.replace("-", " ").split()}
    return {one for one in found if len(one) > 2 and one.isalpha() and one[0].isupper()}


@pytest.fixture(scope="module")
def not_clinical() -> list[str]:
    clinical = table.data_words("vocabulary.txt", "units.txt")
    return sorted(one for one in names() if one.casefold() not in clinical)


def test_there_are_names_to_try(not_clinical: list[str]) -> None:
    assert len(not_clinical) > 20_000
    assert {"Concepción", "Dueñas", "Müller", "Rossi"} <= set(not_clinical)


def test_no_name_is_let_through(not_clinical: list[str]) -> None:
    assert [one for one in not_clinical if clean(one)] == []


def test_the_auditor_takes_none_for_a_word_either(not_clinical: list[str]) -> None:
    assert [one for one in not_clinical if is_clean(one)] == []


def test_names_in_capitals_are_no_words_either(not_clinical: list[str]) -> None:
    assert [one for one in not_clinical if clean(one.upper())] == []

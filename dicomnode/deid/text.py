"""Cleaner of descriptive text for the Clean Descriptors Option (PS3.15 E.3.5).

It keeps words of an allow-list (``config/deid/vocabulary.txt``) and numbers with a unit, and drops everything
else: names, ids, dates and room numbers go because nobody listed them. It never rewrites or guesses a word.
"""

from __future__ import annotations

import functools
import re

from dicomnode.deid import table

# Letters and digits, with decimals: "CHEST", "T2", "1.5T", "5.0". Everything else separates.
_TOKEN = re.compile(r"[^\W_]+(?:\.\d+[^\W_]*)?")
_NUMBER = re.compile(r"\d{1,3}(?:\.\d{1,3})?")
_NUMBER_WITH_UNIT = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)([^\W\d_][^\W_]*)")


@functools.cache
def vocabulary() -> frozenset[str]:
    """The allowed words, in lower case."""
    return frozenset(word for line in table.data_lines("vocabulary.txt") for word in line.casefold().split())


@functools.cache
def units() -> frozenset[str]:
    """Units that make a number descriptive, in lower case."""
    return frozenset(word for line in table.data_lines("units.txt") for word in line.casefold().split())


def clean(text: str) -> str:
    """The allowed words of ``text`` in their order, joined by one space; empty where none is allowed."""
    tokens = _TOKEN.findall(text)
    following = (*tokens[1:], "")[: len(tokens)]
    kept: list[str] = []
    number_before = False
    for token, after in zip(tokens, following, strict=True):
        word = token.casefold()
        is_number = _NUMBER.fullmatch(word) is not None and after.casefold() in units()
        joined = _NUMBER_WITH_UNIT.fullmatch(word)
        if (
            is_number
            or word in vocabulary()
            or (joined is not None and joined[2] in units())
            or (number_before and word in units())
        ):
            kept.append(token)
        number_before = is_number
    return " ".join(kept)

"""Cleaner of descriptive text for the Clean Descriptors Option (PS3.15 E.3.5).

It keeps known words (words.py), numbers with a unit ("4 ml/s"), counts of two digits ("12 weeks") and single digits
that follow such a word ("grade 3"), and drops everything else: names, ids, dates and room numbers go because nobody
listed them. It never rewrites or guesses a word. Also the terms that a text of the Retain Patient Characteristics
Option may have (``config/deid/terms.txt``, E.3.4).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable

from dicomnode.deid import table
from dicomnode.deid.names import named
from dicomnode.deid.words import is_known, lower_case_words, vocabulary

# Letters and digits, with decimals: "CHEST", "T2", "1.5T", "5.0", "0,6". Everything else separates.
_WORD = re.compile(r"\d+,\d+[^\W_]*|[^\W_]+(?:\.\d+[^\W_]*)?")
_TOKEN = re.compile(f"{_WORD.pattern}|%")
# Of e-mail or a page on the web: none of its words stays.
_ADDRESS = re.compile(r"[^\s@<>]+@[^\s@<>]+|(?:https?://|www\.)\S+", re.IGNORECASE)
_NAME_WORD = re.compile(r"[^\W\d_]+")
SHORTEST_NAME = 3  # letters; two of them are CT, MR and the like more often than a name
PRIVATE_CODE = "PrivateCode"  # in terms.txt: codes of safe private elements
NUMBER = "0-999"  # in place of terms
_SMALL_NUMBER = re.compile(r"\d{1,3}(?:\.\d{0,6})?")
_NUMBER = re.compile(r"\d{1,3}(?:[.,]\d{1,3})?")
_DIGIT = re.compile(r"[0-9]")
_COUNT = re.compile(r"[0-9]{1,2}")
_BESIDE = re.compile(r"[\s_-]*")
_STOP = re.compile(r"\.(?:\s|$)")
_AFTER_DIGIT = frozenset(",;)")
_NUMBER_WITH_UNIT = re.compile(r"(\d{1,3}(?:[.,]\d{1,3})?)([^\W\d_][^\W_]*)")


@functools.cache
def units() -> frozenset[str]:
    """Units that make a number descriptive, in lower case."""
    return table.data_words("units.txt")


@functools.cache
def counted() -> frozenset[str]:
    """Words before which a number of two digits is a count: 12 weeks. No years and months: that may be an age."""
    return table.data_words("counted-words.txt")


@functools.cache
def terms() -> dict[str, frozenset[str]]:
    """By keyword: the words that a kept text may be made of, in lower case."""
    found: dict[str, frozenset[str]] = {}
    for line in table.data_lines("terms.txt"):
        keyword, words = line.split(":", 1)
        found[keyword] = found.get(keyword, frozenset()) | frozenset(words.casefold().split())
    return found


def term(keyword: str, text: str) -> str:
    """``text`` where each of its words is a term of the attribute, else empty."""
    if NUMBER in terms()[keyword]:
        return text if _SMALL_NUMBER.fullmatch(text.strip()) else ""
    words = [word.casefold() for word in _WORD.findall(text)]
    return text if words and terms()[keyword].issuperset(words) else ""


def clean_code(text: str, names: frozenset[str] = frozenset()) -> str:
    """A code of a private element whole, or nothing: of words of the vocabulary, codes, numbers of three digits."""
    words = [word.casefold() for word in _WORD.findall(text)]
    known = vocabulary() | terms()[PRIVATE_CODE]
    good = all((word in known or _NUMBER.fullmatch(word)) and word not in names for word in words)
    return text if words and good else ""


def name_words(names: Iterable[str]) -> frozenset[str]:
    """The words of persons' names that a cleaned text may not have, be they in the vocabulary or not."""
    words = (word.casefold() for name in names for word in _NAME_WORD.findall(name))
    return frozenset(word for word in words if len(word) >= SHORTEST_NAME)


def clean(text: str, names: frozenset[str] = frozenset()) -> str:
    """The allowed words of ``text`` in their order, joined by one space; empty where none is allowed.

    ``names`` (lower case) are words that go though the vocabulary has them: the patient is called Head. So do words
    that a title or a relation introduces as a person's name (names.py).
    """
    matches = list(_TOKEN.finditer(text))
    persons = named(text, matches) | _in_addresses(text, matches)
    tokens = [match[0] for match in matches]
    following = (*tokens[1:], "")[: len(tokens)]
    pairs = _pairs(tokens, names)
    kept: list[str] = []
    lone: list[int] = []  # where in ``kept`` a digit without a unit stands
    number_before = unit_before = word_before = False
    for number, (token, after) in enumerate(zip(tokens, following, strict=True)):
        if number in persons:
            number_before = unit_before = word_before = False
            continue
        word = token.casefold()
        is_number = number + 1 not in persons and _is_measure(text, matches[number : number + 2], names)
        joined = _NUMBER_WITH_UNIT.fullmatch(word)
        per_unit = unit_before and text[matches[number - 1].end() : matches[number].start()] == "/"  # ml/s
        unit = (joined is not None and joined[2] in units()) or ((number_before or per_unit) and word in units())
        known = word not in names and (is_known(word) or (word == token and word in lower_case_words()))
        allowed = is_number or unit or known or number in pairs
        if not allowed and word_before and not after[:1].isdigit():
            allowed = _stands_alone(text, matches[number - 1], matches[number])
            lone += [len(kept)] if allowed else []
        kept += [token] if allowed else []
        number_before, unit_before, word_before = is_number, unit, allowed and word.isalpha()
    beside = [at for at in lone if any(one[0].isdigit() for one in kept[max(0, at - 1) : at + 2 : 2])]
    return " ".join(one for at, one in enumerate(kept) if at not in beside)


def _in_addresses(text: str, matches: list[re.Match[str]]) -> frozenset[int]:
    """Numbers of the tokens that are parts of an e-mail or web address."""
    spans = [found.span() for found in _ADDRESS.finditer(text)]
    return frozenset(n for n, one in enumerate(matches) if any(a <= one.start() < b for a, b in spans))


def _is_measure(text: str, pair: list[re.Match[str]], names: frozenset[str]) -> bool:
    """Whether the first of ``pair`` is a number that a unit or a counted word behind it makes a measure or a count."""
    if len(pair) < 2:
        return False
    word, following = (match[0].casefold() for match in pair)
    if following in counted() or following == "%":
        beside = _BESIDE.fullmatch(text, pair[0].end(), pair[1].start()) is not None
        return (
            beside and following not in names and (_COUNT if following != "%" else _NUMBER).fullmatch(word) is not None
        )
    return following in units() and _NUMBER.fullmatch(word) is not None


def _pairs(tokens: list[str], names: frozenset[str]) -> frozenset[int]:
    """Numbers of those ``tokens`` that are listed together only (X-ray), less pairs with a word of ``names``."""
    words = [token.casefold() for token in tokens]
    found = (n for n, pair in enumerate(itertools.pairwise(words)) if "-".join(pair) in vocabulary())
    return frozenset(number for n in found if names.isdisjoint(words[n : n + 2]) for number in (n, n + 1))


def _stands_alone(text: str, before: re.Match[str], token: re.Match[str]) -> bool:
    """Whether ``token`` is one digit behind a blank and before one, a stop or the end: no part of a date or an id."""
    after = text[token.end() : token.end() + 1]
    return (
        _DIGIT.fullmatch(token[0]) is not None
        and text[before.end() : token.start()].isspace()
        and (after in _AFTER_DIGIT or not after.strip() or _STOP.match(text, token.end()) is not None)
    )

"""The audit of cleaned texts: what an allow-list may have left of them. It shares no code with what cleans (text.py).

Both read the lists of ``config/deid``: ``vocabulary.txt``, ``everyday-*.txt``, ``units.txt``, ``word-parts.txt``,
``word-endings.txt``, ``surnames.txt``, ``lower-case-words.txt`` and ``terms.txt``.
Sources: PS3.15 E.3.4, E.3.5.
"""

from __future__ import annotations

import functools
import re

from dicomnode.deid import table

# Values that say nothing: empty, and the dummies of PS3.15 E.1.
NOTHING = frozenset({"", "ANONYMIZED", "000Y", "19000101", "19000101000000", "000000", "0", "0.0", "about:blank"})
_CLEANED_NUMBER = re.compile(r"\d{1,3}([.,]\d{1,3})?([^\W\d_][^\W_]*)?")
_CODE_WORD = re.compile(r"[^\W_]+(?:\.[0-9]+)?")
_ACCENTS = str.maketrans("áéíóúàèìòùâêîôûäëïöüãõñç", "aeiouaeiouaeiouaeiouaonc")
_LONGEST_WORD = 40  # letters
_SHORTEST_REST = 5  # letters of the listed word that ends a compound


def is_clean(text: str) -> bool:
    """Only allowed words, compounds and pairs of words, numbers of at most three digits before the point that carry or
    precede a unit, and single digits behind a word.
    """
    shown, listed = text.split(), _vocabulary()
    words = [word.casefold() for word in shown]
    for at, (before, word, following) in enumerate(zip(["", *words], words, [*words[1:], ""], strict=False)):
        if text in NOTHING or is_allowed(word) or (word == shown[at] and word in everyday()):
            continue
        number = _CLEANED_NUMBER.fullmatch(word)
        unit = (number[2] or following) if number else ""
        digit = len(word) == 1 and word in "0123456789" and before.isalpha()
        pair = f"{before}-{word}" in listed or f"{word}-{following}" in listed
        if not (pair or digit or unit in listed):
            return False
    return True


def is_term(keyword: str, text: str) -> bool:
    """Whether a characteristic of the patient is made of the terms of its attribute."""
    if terms()[keyword] == {"0-999"}:
        return not text or re.fullmatch(r"[0-9]{1,3}(\.[0-9]{,6})?", text.strip()) is not None
    return all(word in terms()[keyword] for word in re.findall(r"[^\W_]+", text.casefold()))


def is_code(text: str) -> bool:
    """A private code: words of the vocabulary or codes, and numbers of at most three digits."""
    known = _vocabulary() | terms()["PrivateCode"]
    return all(
        word in known or re.fullmatch(r"\d{1,3}(\.\d{1,3})?", word) for word in _CODE_WORD.findall(text.casefold())
    )


@functools.cache
def terms() -> dict[str, set[str]]:
    """By keyword: the words, in lower case, that a characteristic may be made of."""
    found: dict[str, set[str]] = {}
    for line in table.data_lines("terms.txt"):
        keyword, _, words = line.partition(":")
        found.setdefault(keyword, set()).update(words.casefold().split())
    return found


@functools.cache
def _vocabulary() -> frozenset[str]:
    return table.data_words("vocabulary.txt", "everyday-en.txt", "everyday-es.txt", "units.txt")


@functools.cache
def _bare() -> frozenset[str]:
    """Listed words written without their accents."""
    return frozenset(word.translate(_ACCENTS) for word in _vocabulary())


@functools.cache
def _surnames() -> frozenset[str]:
    return table.data_words("surnames.txt")


@functools.cache
def everyday() -> frozenset[str]:
    """Words that may stay in lower case, though they are surnames."""
    return table.data_words("lower-case-words.txt")


@functools.cache
def _word_parts() -> re.Pattern[str]:
    return re.compile(f"(?:{'|'.join(sorted(map(re.escape, table.data_words('word-parts.txt'))))})+")


@functools.cache
def _siblings() -> dict[str, set[str]]:
    """Ending -> the endings that it may stand for."""
    found: dict[str, set[str]] = {}
    for line in table.data_lines("word-endings.txt"):
        group = {ending.strip("-") for ending in line.casefold().split()}
        for ending in group:
            found.setdefault(ending, set()).update(group)
    return found


@functools.lru_cache(maxsize=4096)
def is_allowed(word: str) -> bool:
    """A listed word, with another ending, or behind word parts; Spanish doubles its r there (esplenorrenal)."""
    if word in _vocabulary():
        return True
    if len(word) > _LONGEST_WORD or word.translate(_ACCENTS) in _surnames():  # the longer are no words: bytes, a key
        return False
    if word in _bare() or _is_form(word):
        return True
    for at in range(1, len(word) - _SHORTEST_REST + 1):
        rest = word[at:]
        ends = _is_form(rest) or (rest[:2] == "rr" and len(rest) > _SHORTEST_REST and _is_form(rest[1:]))
        if ends and _word_parts().fullmatch(word[:at]):
            return True
    return False


def _is_form(word: str) -> bool:
    if word in _vocabulary():
        return True
    ends = range(len(word), 3, -1) if len(word) > 5 else ()  # at least four letters stay
    return any(word[:end] + other in _vocabulary() for end in ends for other in _siblings().get(word[end:], ()))

"""The words that a cleaned text may have (``config/deid``): listed ones, their inflections, and compounds with them.

The lists cannot name each form of each word. An ending or a part that is listed makes others of them; surnames which
that would let through are listed too (``surnames.txt``). Nothing is guessed beyond.
"""

from __future__ import annotations

import functools
import unicodedata

from dicomnode.deid import table

VOCABULARY = ("vocabulary.txt", "everyday-en.txt", "everyday-es.txt")
SHORTEST_INFLECTED, SHORTEST_STEM = 6, 4  # letters
SHORTEST_REST = 5  # letters of the word that ends a compound: short ones end many a surname
LONGEST_WORD = 40  # letters of a word that is looked into


@functools.cache
def vocabulary() -> frozenset[str]:
    """The listed words, and pairs of words with a hyphen between, in lower case."""
    return table.data_words(*VOCABULARY)


@functools.cache
def _without_accents() -> frozenset[str]:
    """The listed words as scanners and forms in capitals often have them: "TORAX", "LESION", "NINO"."""
    return frozenset(_plain(word) for word in vocabulary() if not word.isascii())


def _plain(word: str) -> str:
    return "".join(one for one in unicodedata.normalize("NFD", word) if not unicodedata.combining(one))


@functools.cache
def lower_case_words() -> frozenset[str]:
    """Everyday words that are surnames too: allowed where they are written in lower case."""
    return table.data_words("lower-case-words.txt")


@functools.cache
def _surnames() -> frozenset[str]:
    return table.data_words("surnames.txt")


@functools.cache
def _word_parts() -> frozenset[str]:
    return table.data_words("word-parts.txt")


@functools.cache
def _endings() -> tuple[tuple[str, ...], ...]:
    """Groups of endings, the empty one among them."""
    return tuple(
        tuple("" if ending == "-" else ending for ending in line.casefold().split())
        for line in table.data_lines("word-endings.txt")
    )


@functools.lru_cache(maxsize=4096)
def is_known(word: str) -> bool:
    """Whether ``word`` (lower case) is listed (its accents may lack), an inflection of a listed word, or a compound.

    A compound is made of parts ("aorto") and a known word of five letters or more behind them ("pulmonary"). Spanish
    doubles an r between the two (espleno + renal: "esplenorrenal").
    """
    if word in vocabulary():
        return True
    if len(word) > LONGEST_WORD or _plain(word) in _surnames():
        return False
    return word in _without_accents() or _is_inflected(word) or _is_compound(word)


def _is_inflected(word: str) -> bool:
    if len(word) < SHORTEST_INFLECTED:
        return False
    for group in _endings():
        for ending in group:
            stem = word.removesuffix(ending)
            fits = word.endswith(ending) and len(stem) >= SHORTEST_STEM
            if fits and any(stem + other in vocabulary() for other in group):
                return True
    return False


def _is_compound(word: str) -> bool:
    for part in _word_parts():
        if word.startswith(part):
            rest = word[len(part) :]
            rests = (rest, rest[1:]) if rest.startswith("rr") else (rest,)
            if any(len(one) >= SHORTEST_REST and is_known(one) for one in rests):
                return True
    return False

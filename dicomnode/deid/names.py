"""Where a text names a person by what stands before: "Mrs Hand", "daughter: Small", "firmado por Cabeza".

Surnames are words too, and an allow-list lets them through (text.py). Here a word that begins with a capital letter
falls where a title, a relation or "signed by" precedes it (``config/deid/name-cues.txt``); behind a title or "by"
an everyday word in lower case falls too ("dr hill"). It knows no name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from dicomnode.deid import table
from dicomnode.deid.words import lower_case_words

MOST = 3  # words of one name
_ENDS = re.compile(r"[;()\[\]/\n\r]|\.\s|\s-\s")  # between two words: the name, or what introduces it, is over
_TITLE, _SURE, _FILLER, _BY, _RELATION = "title", "sure", "filler", "by", "relation"
_STOPPED = "with has had and or of for con tiene tuvo y o por para sin without who que"
_STOPPED_BY = frozenset(_STOPPED.split())


@functools.cache
def _cues() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for line in table.data_lines("name-cues.txt"):
        kind, words = line.split(":", 1)
        found[kind] = found.get(kind, frozenset()) | frozenset(words.casefold().split())
    return found


def named(text: str, tokens: Sequence[re.Match[str]]) -> frozenset[int]:
    """Numbers of those ``tokens`` of ``text`` that a name is made of, and of the cue where there is one."""
    out: set[int] = set()
    for number in range(len(tokens)):
        if start := _after_cue(text, tokens, number):
            sure = start == number + 2 or tokens[number][0].casefold() in _cues()[_SURE]
            name = list(_name(text, tokens, start, lower_case_words() if sure else frozenset()))
            if name:
                out.update(range(number, name[-1] + 1))
    return frozenset(out)


def _after_cue(text: str, tokens: Sequence[re.Match[str]], number: int) -> int:
    """The number of the token behind the cue that begins at ``number``; 0 where none does."""
    cues, word = _cues(), tokens[number][0]
    low = word.casefold()
    if low in cues[_TITLE]:
        dot = text[tokens[number].end() : tokens[number].end() + 1] == "."
        return number + 1 if dot or not (word.isupper() and len(word) > 1) else 0
    if low in cues[_RELATION]:
        return number + 1
    if number + 1 < len(tokens) and f"{low}-{tokens[number + 1][0].casefold()}" in cues[_BY]:
        return number + 2
    return 0


def _name(text: str, tokens: Sequence[re.Match[str]], start: int, also: frozenset[str]) -> Iterator[int]:
    """Numbers of the tokens from ``start`` on that a name is made of; words of ``also`` begin one in lower case too."""
    count = 0
    for number in range(start, len(tokens)):
        word, between = tokens[number][0], text[tokens[number - 1].end() : tokens[number].start()]
        first = count == 0
        if (between.strip() == "," or _ENDS.search(between)) and not (first and _introduces(text, tokens, number)):
            return
        if not first and ":" in between:
            return
        if first and word.casefold() in _cues()[_FILLER]:
            continue
        begins = word[0].isupper() or (first and word in also)
        if not begins or word.casefold() in _STOPPED_BY or count == MOST:
            return
        count += 1
        yield number


def _introduces(text: str, tokens: Sequence[re.Match[str]], number: int) -> bool:
    """Whether what precedes is the full stop of a title: "Mrs. Hand"."""
    before = tokens[number - 1][0].casefold()
    between = text[tokens[number - 1].end() : tokens[number].start()]
    return before in _cues()[_TITLE] and between.strip() == "."

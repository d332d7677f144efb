"""Whether a short answer gives the right word: `The capital of France is Paris.` does, `not Paris` does not.

A word counts wherever it stands in the answer, so that brief and wordy models are judged alike. It does not count
within another word, in a clause that denies it, beside "or", or before a question mark; and nothing counts where a word
is given that is known to be wrong: a list of everything is no answer. Numbers are compared as exact values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import islice

from glmtune.arithmetic.characters import normalize_answer
from glmtune.arithmetic.numbers import find_numbers
from glmtune.arithmetic.reading import final_number

LONGEST = 1000  # characters of an answer that is read
_MOST_NUMBERS = 100
_PUNCTUATION = " \n\t.。!！?？,，;；:：\"'“”‘’「」`*"
_HAN = "\u3400-\u9fff"
_LETTERS = "0-9A-Za-z\u00c0-\u024f\u0370-\u04ff"  # of scripts that put blanks between words
_NUMERALS = "一二三四五六七八九十百千万"
_CLAUSE_ENDS = re.compile(r"[,.;:!?](?=\s|$)|[\n，。；：！？]|\bbut\b|而是|而非(?=.)", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|wrong|incorrect|false)\b|n['’]t\b|不(?!过|仅|但|只|同)|没|并非|绝非|错",
    re.IGNORECASE,
)
_HEDGE = re.compile(r"\bor\b|或|还是", re.IGNORECASE)


def is_right(
    target: str, completion: str, accepted: Sequence[str] = (), wrong: Sequence[str] = (), question: str = ""
) -> bool:
    """Return whether an answer is the right one, or a short text that gives it and nothing wrong.

    Args:
        target: the right answer. One in capitals asks for them; a number is compared by its value.
        completion: what a model wrote.
        accepted: other spellings of the target, and words that mean the same.
        wrong: words that an answer must not give, unless it denies them.
        question: what was asked; numbers that it names may be repeated.
    """
    answer, spellings = completion[:LONGEST], (target, *accepted)
    if target.strip().isdecimal():
        return _is_number(Fraction(target.strip()), answer, accepted, question)
    if any(_is_same(spelling, answer) for spelling in spellings):
        return True
    gives_right = any(not _is_hedged(clause, spellings) for clause in _given(answer, spellings))
    return gives_right and next(_given(answer, wrong), None) is None


def _is_same(spelling: str, answer: str) -> bool:
    """Whether a text is all that was answered, but for blanks, case and the punctuation around it."""
    wanted, given = (" ".join(text.split()).strip(_PUNCTUATION) for text in (spelling, answer))
    return wanted == given or (not wanted.isupper() and wanted.casefold() == given.casefold())


def _given(answer: str, words: Sequence[str]) -> Iterator[str]:
    """Yield the clauses in which one of some words is said, neither denied nor asked, with the words blanked out."""
    for word in words:
        for found in _pattern(word).finditer(answer):
            start = max((end.end() for end in _CLAUSE_ENDS.finditer(answer, 0, found.start())), default=0)
            stop = _CLAUSE_ENDS.search(answer, found.end())
            end = stop.start() if stop else len(answer)
            clause = f"{answer[start : found.start()]} {answer[found.end() : end]}"
            if not _DENIAL.search(clause) and answer[end : end + 1] not in ("?", "？"):
                yield clause


def _is_hedged(clause: str, spellings: Sequence[str]) -> bool:
    """Whether a clause offers several answers: of two spellings of the same, one is enough."""
    for spelling in spellings:
        clause = _pattern(spelling).sub(" ", clause)
    return bool(_HEDGE.search(clause)) and bool(_HEDGE.sub("", clause).strip(_PUNCTUATION))


@cache
def _pattern(word: str) -> re.Pattern[str]:
    """Return what matches a word that is no part of another.

    Chinese puts no blanks between words: a single character must end its clause's word, and follow what introduces an
    answer; a numeral is not taken out of a longer one (`二月` in `十二月`).
    """
    word = word.strip(_PUNCTUATION) or word
    before, after = f"(?<![{_LETTERS}])", f"(?![{_LETTERS}])"
    if re.match(f"[{_HAN}]", word):
        before = f"(?<![{_NUMERALS}])" if word[0] in _NUMERALS else ""
        after = ""
    if re.fullmatch(f"[{_HAN}]", word):
        before, after = f"(?:(?<![{_HAN}])|(?<=[是为叫作写读填成]))", f"(?![{_HAN}])"
    words = r"\s+".join(map(re.escape, word.split()))
    return re.compile(before + words + after, 0 if word.isupper() else re.IGNORECASE)


def _is_number(wanted: Fraction, answer: str, spellings: Sequence[str], question: str) -> bool:
    """Whether the right number is given, in figures or as a word, and no other; or what a working comes to.

    Numbers of the question are passed over, unless the right one is among them.
    """
    asked = set(_values(question))
    given = {value for value in _values(answer) if wanted in asked or value not in asked}
    says_it = bool(given) or any(not _is_hedged(clause, spellings) for clause in _given(answer, spellings))
    comes_to_it = "=" in answer and final_number(answer) == wanted
    return says_it and (given <= {wanted} or comes_to_it)


def _values(text: str) -> list[Fraction]:
    """Return the values of the numbers that a text gives, but for those that it denies or counts by."""
    numbers = islice(find_numbers(normalize_answer(text)), _MOST_NUMBERS)
    return [
        number.value
        for number in numbers
        if number.value is not None and not number.is_label and not number.is_denied and number.is_it
    ]

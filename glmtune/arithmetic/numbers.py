"""Numbers in a text: which notation each has, its sign, and whether it is a result or something to be worked out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property

from glmtune.arithmetic.characters import CURRENCIES
from glmtune.arithmetic.notations import NOTATIONS, Notation
from glmtune.arithmetic.numerals import CHINESE

LOOK_BACK = 40  # characters before a number that tell its sign, and what is done with it

# Not within a number or a name, nor an index or an exponent: the 2 of H2O, x_2, cm^2.
_BEGINS = {
    "figure": r"(?=[.0-9]|\(\()(?<![0-9.A-Za-z_^])(?<!\^[-{(])(?<!\^[{(]-)(?<!_\{)",
    "chinese": rf"(?=[{CHINESE}半])(?<![{CHINESE}第点周期])",
    "english": r"(?=[b-zB-Z])(?<![A-Za-z0-9_])(?<![A-Za-z0-9]-)",
}

_FUNCTION = r"\\?(?:sqrt|ln|lg|log|exp|sin|cos|tan)"

# Behind a number.
_PERCENT = re.compile(r" ?(?:(%|percent\b|per cent\b)|(‰))")
_OPERATOR_AFTER = re.compile(
    r"[)\]}]{0,3}[ \t]{0,3}(?:(?:\*\*|--|[-+*/^xX])[ \t]{0,3}(?:[-$]?\.?\d|[(\[{]{1,3}(?![^\W\d_]{2}))"
    rf"|[-+*/^][ \t]{{0,3}}(?:[b-zB-HJ-Z](?![^\W_])|\\?pi\b|π|√|{_FUNCTION})"
    rf"| of (?:the )?[{CURRENCIES}]?\d|:\d| : \d|,\d"
    r"|(?:plus|minus|times|divided by) [-\d(]|(?:加上?|减去?|乘以?|除以)[\d负])"
    rf"|(?:[aeinqrxyz]|[XYZ])(?![A-Za-z])|\s?(?:\\?pi\b|π|√|{_FUNCTION}(?=\s?[\d({{\\]))"
    r"|\s?(?:[万亿]|分之|(?:thousand|[mbtr]{1,2}illion)\b)"  # of what is no decimal: 1/2 million
)
# Before one.
_OPERATOR_BEFORE = re.compile(
    rf"(?:[\d)\]}}%][ \t]{{0,3}}(?:\*\*|[-+*/^xX])[ \t]{{0,3}}|\d : )[-(\[{{{CURRENCIES}]{{0,3}}[ \t]?$"
    r"|(?:\d:|\d,|[A-Za-z]-|±|±\s|[\d)%]\s?(?:plus|minus|times|divided by|加上?|减去?|乘以?|除以)\s?)$"
    r"|(?:√|\\sqrt\[\d\])\s?[({]?$|(?<![A-Za-z\\])(?:[a-z]|\\?pi|π) ?[-+*/^] ?$|[\d%] of (?:the )?$|\|-$"  # x+5, |-5|
    rf"|(?<![A-Za-z]){_FUNCTION}(?:_\{{?\d{{1,3}}\}}?)?\s?[({{]?-?$"
)
_OPERATOR_ENDS = f"*-+/^xX:([{{{CURRENCIES},±√]}}0123456789tsynpgfe加上减去乘以除"  # the last signs of what it finds
_OPERATOR_LENGTH = 20
_SIGN_WORD = re.compile(r"(?:负的?|零下|\b(?:minus|negative))$", re.IGNORECASE)
_DENIED = re.compile(r"(?:\bnot|n't|不是|不等于|≠|!=)[ \t(\[{]{0,3}[$¥€£]?-?$", re.IGNORECASE)
_SAID = re.compile(r"(?:\b(?:is|are|was|be|equals?|gives?|gets?)|是|为|得|等于)[ \t]{0,3}$", re.IGNORECASE)
_LABEL_BEFORE = re.compile(r"\b(?:step|part|question|problem|case|figure|equation|example)\s?$|第\s?$", re.IGNORECASE)
_LABEL_LENGTH = 10
_LABEL_AFTER = re.compile(r"\s?[步题问种章节点]")
_LIST_ITEM = re.compile(
    r"^[ \t]{0,8}(#{1,6}[ \t]{0,3})?([0-9]{1,3})(?:[.);][ \t]+|[);](?=[^\W\d_]))(?=\S)", re.MULTILINE
)


@dataclass(frozen=True)
class NumberInText:
    """A number in a text, worked out when it is asked for.

    Attributes:
        text: the normalized text.
        notation: how it is written.
        match: of the notation's pattern in the text.
    """

    text: str
    notation: Notation
    match: re.Match[str]

    @property
    def start(self) -> int:
        """Where it begins, behind its sign."""
        return self.match.start()

    @property
    def end(self) -> int:
        """Where it ends, with its percent sign."""
        percent = self.percent
        return percent.end() if percent else self.match.end()

    @cached_property
    def percent(self) -> re.Match[str] | None:
        """The percent sign behind it, or per mille."""
        return _PERCENT.match(self.text, self.match.end())

    @cached_property
    def _before(self) -> str:
        """The end of the text before it."""
        return self.text[max(0, self.start - LOOK_BACK) : self.start]

    @cached_property
    def value(self) -> Fraction | None:
        """The value; None where it divides by zero, is too large, or is no number: a date, a range."""
        value = self.notation.value(self.match)
        if value is None:
            return None
        percent = self.percent
        if percent is not None:
            value /= 100 if percent[1] else 1000
        return -value if self.is_negative else value

    @property
    def is_percent(self) -> bool:
        """Whether it is written in hundredths; `value` is the hundredth part."""
        return bool(self.percent and self.percent[1]) or self.match[0].startswith("百分之")

    @property
    def is_result(self) -> bool:
        """Whether it has a value, and no operator beside it leaves something to be worked out."""
        before = self._before[-_OPERATOR_LENGTH:]
        if before.rstrip()[-1:] in _OPERATOR_ENDS and _OPERATOR_BEFORE.search(before):
            return False
        return self.value is not None and not _OPERATOR_AFTER.match(self.text, self.end)

    @property
    def is_it(self) -> bool:
        """Whether it is what its notation means."""
        return self.notation.is_it is None or self.notation.is_it(self.match)

    @property
    def is_word(self) -> bool:
        """Whether it is written without figures."""
        return self.notation.is_word

    @property
    def is_negative(self) -> bool:
        """Whether a sign stands before it, and neither an operator (`5-3`), a dash (`--3`) nor a bullet (`- 3`)."""
        dashed = self._before.rstrip(f" \t([{{{CURRENCIES}")
        word = _SIGN_WORD.search(dashed)
        if word is not None:
            left = dashed[: word.start()].rstrip()
            return not (word[0][0] in "mM" and left and left[-1] in "0123456789)]}%")
        if not dashed.endswith("-") or dashed[:-1].rstrip("([{ ").endswith("-"):
            return False
        left = dashed[:-1].rstrip(" \t>")
        is_apart = self._before[len(dashed) :].startswith((" ", "\t"))
        if not left or left[-1] == "\n":
            return not is_apart
        if left[-1] in "0123456789)]}%":
            return False
        if left[-1].isalpha():
            if is_apart:  # `the sum is - 5`; `the sum - 5 apples`
                return _SAID.search(left) is not None
            return left != dashed[:-1] or not left[-1].isascii()
        return True

    @property
    def is_denied(self) -> bool:
        """Whether it is said not to be the answer: `42, not 41`."""
        return _DENIED.search(self._before) is not None

    @property
    def is_label(self) -> bool:
        """Whether it numbers something: `Step 2`, `第2步`."""
        before = self._before[-_LABEL_LENGTH:]
        if not before.rstrip()[-1:].isalpha():
            return False
        label = _LABEL_BEFORE.search(before)
        return label is not None and (label[0][0] != "第" or _LABEL_AFTER.match(self.text, self.end) is not None)


_ROWS = {f"row{row}": row for row in range(len(NOTATIONS))}  # by the names of groups


@cache
def _pattern(row: int) -> re.Pattern[str]:
    notation = NOTATIONS[row]
    return re.compile(notation.pattern, re.IGNORECASE if notation.begins == "english" else 0)


@cache
def _scanner(first: int) -> re.Pattern[str]:
    """All notations from one on, as named groups; what begins a number is looked at once for all of a kind."""
    kinds: dict[str, list[str]] = {}
    for row, notation in enumerate(NOTATIONS[first:], first):
        kinds.setdefault(notation.begins, []).append(f"(?P<row{row}>{notation.pattern})")
    branches = [
        f"{_BEGINS[kind]}{'(?i:' if kind == 'english' else '(?:'}{'|'.join(rows)})" for kind, rows in kinds.items()
    ]
    return re.compile("|".join(branches))


def scan(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the numbers of a normalized text begin, behind their signs, and the row of each one's notation.

    What counts the items of a list is left out. The time grows with the length of the text alone.
    """
    listed, search, place = _listed(text), _scanner(0).search, 0
    while (found := search(text, place)) is not None:
        row, start, place = _ROWS[str(found.lastgroup)], found.start(), found.end()
        while NOTATIONS[row].is_it is not None and not number_at(text, start, row).is_it:
            other = None if NOTATIONS[row].is_word else _scanner(row + 1).match(text, start)
            if other is None:  # words that make no number together
                break
            row, place = _ROWS[str(other.lastgroup)], other.end()
        else:
            if start not in listed:
                yield start, row


def number_at(text: str, start: int, row: int) -> NumberInText:
    """Return a number that `scan` found."""
    match = _pattern(row).match(text, start)
    assert match is not None
    return NumberInText(text, NOTATIONS[row], match)


def find_numbers(text: str) -> Iterator[NumberInText]:
    """Yield the numbers of a normalized text, from the first to the last, in all notations of `notations.NOTATIONS`.

    A unit behind a number is no part of it. A numeral of one sign or word, which may be a part of some word, is none
    of them.
    """
    return (number_at(text, start, row) for start, row in scan(text) if not NOTATIONS[row].is_small)


def _listed(text: str) -> set[int]:
    """Where the numbers stand that count items: `1.` and `2.` before them; or one, before a number or in a heading."""
    starts: set[int] = set()
    items = [(int(item[2]), item) for item in _LIST_ITEM.finditer(text)]
    for place, (count, item) in enumerate(items):
        after = text[item.end()]
        counts_on = place > 0 and items[place - 1][0] == count - 1 and items[place - 1][1].start(2) in starts
        is_first = count == 1 and (after.isdigit() or (place + 1 < len(items) and items[place + 1][0] == 2))
        if counts_on or is_first or (item[1] and after.isalpha()):
            starts.add(item.start(2))
    return starts

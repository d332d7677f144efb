"""Numbers and equations in free text, read exactly: `Fraction`s throughout, and nothing that a model wrote is run.

`notations.NOTATIONS` is the table of how numbers are written, `numbers` finds them in a text with their signs, and here
it is told which of them is the answer: `read_answer` takes the one number of a short answer as it is written, and
`final_number` finds the number that a whole explanation ends with. All work is bounded: texts, numbers, nesting,
exponents and results have largest sizes, and what is beyond them is None.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

from glmtune.arithmetic.characters import CURRENCIES, MOST_CHARACTERS, normalize_answer, without_commas
from glmtune.arithmetic.expressions import UNDEFINED, ExpressionError, evaluate_start
from glmtune.arithmetic.notations import NOTATIONS
from glmtune.arithmetic.numbers import LOOK_BACK, NumberInText, find_numbers, number_at, scan
from glmtune.arithmetic.working import DRAFT_MARK, STEP

MOST_EXPRESSION = 1000  # characters of an expression

# Where an answer is.
_MARK = re.compile(r"(?<!#)####(?!#)")
_BOX = re.compile(r"\\f?box(?:ed)?\s?\{")
_ANSWER = re.compile(
    r"answer\s{0,2}(?:is|=|:|would be|equals)+\s{0,2}:?|答案?\s{0,2}(?:应该)?(?:是|为|等于|:|=)\s{0,2}:?", re.IGNORECASE
)
_PIECE_END = re.compile(r"\n|。|;|[.,!?](?:\s|$)")
_MOST_PIECES = 5  # of what follows "the answer is"
_MOST_NUMBERS = 100  # that are looked at where there may be but one
_EQUALS = re.compile(r"=|等于|\bequals?\b")
# What may stand between "=", or another mark, and its number.
_BESIDE = re.compile(
    rf"[\s:]{{0,4}}(?:≈|~|about|approximately|大约|约|only)?[\s>*_`\"'(\[{{]{{0,6}}(?:\\[a-z]{{1,12}}\s?\{{)?"
    rf"[\s{CURRENCIES}]{{0,3}}(?:负|零下|[-+±]|minus|negative|[A-Za-z]\w{{0,11}}\s?[=:])?[\s(\[{{{CURRENCIES}*]{{0,5}}-?",
    re.IGNORECASE,
)

_OR = re.compile(
    rf"[)\]}}°{CURRENCIES}]{{0,3}}[ \t]?(?:\bor\b|或者?)[ \t]?(?:[A-Za-z]\w? ?= ?)?[-(\[{{{CURRENCIES}]{{0,3}}"
)

_WORD_END = re.compile(r"(?<=[A-Za-z]{2})(?=-?\.?[0-9])")  # 80less8, gives-5: in a short answer, no names
_IN_NAME = re.compile(r"[A-Za-z][0-9]")
_UNKNOWN = re.compile(r"(?<![A-Za-z])[xX]\s{0,3}=")
_EXPRESSION_GOES_ON = re.compile(r"\s*[-+*/^%().\[\]{}\d]|[xyzXYZ](?![A-Za-z])")
_MIXED_FACTOR = re.compile(r"(?<![\d.])(\d{1,100})\((\d{1,100})/(\d{1,100})\)")


def read_answer(text: str) -> str | None:
    """Return the one number after the last `=` or draft of a text, as written; None where there is none, or several.

    `25.31+86.35=111.66` -> `111.66`; `19+23=24|42` -> `42`; `答案是111.66。` -> `111.66`; `88, or 90` -> None. What is
    still to be worked out is no number, nor are other notations: `2+3`, `6/8`, `1e5`, `5%`, `五` -> None.
    """
    said = _without_thinking(text).rstrip()
    if said.endswith((STEP, "；")):  # cut off within the working
        return None
    tail = normalize_answer(said).rpartition("=")[2].rpartition(DRAFT_MARK)[2].strip()
    if re.match(r"-[ \t]+[^-\s].*\Z", tail):  # an answer of one line is no list
        tail = f"-{tail[1:].lstrip()}"
    tail = _WORD_END.sub(" ", tail)
    if _IN_NAME.search(tail):
        return None
    written: set[str | None] = set()
    for number in islice(find_numbers(tail), _MOST_NUMBERS):
        if not number.is_word and not number.is_label:
            written.add(_decimal(number))
        if len(written) > 1:
            return None
    if written:
        return written.pop()
    return UNDEFINED if UNDEFINED in tail.lower() else None


def final_number(text: str) -> Fraction | None:
    r"""Return the number that a text gives as its answer.

    That is the last `#### x`, else the last `\boxed{x}`, else what follows "the answer is" or "答案是", else what
    follows the last `=` or "等于", else the last number in figures, else in words. None where there is none, where it
    is still to be worked out (`2*3`), and where it may be read in two ways (`3,5`). What a model thinks, between
    `<think>` and `</think>`, is not read.
    """
    found = find_final_number(text)
    return found.value if found is not None else None


def find_final_number(text: str) -> NumberInText | None:
    """Return the number that `final_number` gives the value of, with how it is written."""
    answers = _Answers(normalize_answer(_without_thinking(text)))
    found = answers.final()
    return found if found is not None and found.is_result and not answers.is_one_of_two(found) else None


def equation_value(text: str) -> Fraction | None:
    """Return the value of the expression behind the last `x=`, or of a text that is one: `x=(3+4)/2=3.5` -> 7/2.

    What follows a second `=` is not read. Known are + - * / ** ^ : % and brackets of all kinds, also nested;
    `1(3/4)` is a mixed number. None where there is no such expression, or one that divides by zero or is too large.
    """
    text = normalize_answer(_without_thinking(text))
    start = 0
    for found in _UNKNOWN.finditer(text):
        start = found.end()
    text = _MIXED_FACTOR.sub(_mixed_sum, without_commas(text[start : start + MOST_EXPRESSION + 1].partition("=")[0]))
    if len(text) > MOST_EXPRESSION:
        return None
    try:
        value, rest = evaluate_start(text.replace(":", "/"))
    except ExpressionError:
        return None
    return None if _EXPRESSION_GOES_ON.match(rest) else value


def write_number(value: Fraction) -> str:
    """Write a value as a decimal where that is short, else as a fraction: `3/2` -> `1.5`, `1/3` -> `1/3`."""
    for places in range(13):
        if 10**places % value.denominator == 0:
            units = abs(value.numerator) * (10**places // value.denominator)
            whole, rest = divmod(units, 10**places)
            return "-" * (value < 0) + str(whole) + (f".{rest:0{places}}" if places else "")
    return str(value)


def _decimal(number: NumberInText) -> str | None:
    """A number as it is written, without commas and plus; None where it is no row of digits: 6/8, 1e5, 5%."""
    if not number.is_result or number.percent or not number.notation.is_decimal or number.value is None:
        return None
    written = number.match[0].replace(",", "")
    if not written.replace(".", "").isdecimal():  # 2.5万
        return write_number(number.value)
    return "-" * number.is_negative + written


def _mixed_sum(found: re.Match[str]) -> str:
    """`1(3/4)` -> `(1+3/4)`; a fraction that is none, `3(4/2)`, stays."""
    whole, above, below = found.groups()
    return f"({whole}+{above}/{below})" if int(above) < int(below) else found[0]


def _without_thinking(text: str) -> str:
    """The end of what a model says after it has thought, as far as it is read."""
    said = text[max(0, text.rfind("</think")) :]
    return said.partition("<think")[0][-MOST_CHARACTERS:]


class _Answers:
    """The numbers of a normalized text, among which the answer is looked for."""

    def __init__(self, text: str):
        self.text = text
        self.found = list(scan(text))

    def is_one_of_two(self, number: NumberInText) -> bool:
        """Whether "or" stands between a number and one of another value: `3 or 4`, but not `1/2 or 0.5`."""
        place = bisect_left(self.found, (number.start, 0))
        for first, second in ((place - 1, place), (place, place + 1)):
            if first >= 0 and second < len(self.found):
                one, other = (number_at(self.text, *self.found[index]) for index in (first, second))
                if _OR.fullmatch(self.text, one.end, other.start) and one.value != other.value:
                    return True
        return False

    def between(self, start: int, end: int) -> Iterator[NumberInText]:
        """The numbers of a part of the text that are no labels; small numerals only at its start."""
        for place in range(bisect_left(self.found, (start, 0)), bisect_left(self.found, (end, 0))):
            number = number_at(self.text, *self.found[place])
            if (
                not number.is_label
                and not number.is_denied
                and (not number.notation.is_small or self.is_beside(start, number))
            ):
                yield number

    def is_beside(self, start: int, number: NumberInText) -> bool:
        """Whether no more than a sign, a currency or brackets stand between a place and a number."""
        return number.start - start < LOOK_BACK and bool(_BESIDE.fullmatch(self.text, start, number.start))

    def directly(self, start: int) -> NumberInText | None:
        """The number that follows a place."""
        number = next(self.between(start, start + LOOK_BACK), None)
        return number if number is not None and self.is_beside(start, number) else None

    def first(self, start: int, end: int) -> NumberInText | None:
        """The first number behind the last `=` of a part of the text."""
        return next(self.between(max(start, self.text.rfind("=", start, end) + 1), end), None)

    def final(self) -> NumberInText | None:
        """The number that the text gives as its answer, whether or not it is still to be worked out."""
        text = self.text
        for mark in reversed([*_MARK.finditer(text)]):
            number = self.directly(mark.end())
            if number is not None:  # or what it comes to: #### 5+3=8
                end = text.find("\n", mark.end())
                return number if number.is_result else self.first(mark.end(), end if end >= 0 else len(text))
        if text.rstrip().endswith("####"):
            return None
        *_, box = (None, *_BOX.finditer(text))
        if box is not None:
            return self.boxed(box.end())
        *_, said = (None, *_ANSWER.finditer(text))
        number = self.said(said.end()) if said is not None else None
        if number is None:
            *_, equals = (None, *_EQUALS.finditer(text, 0, len(text.rstrip(" \n=?"))))
            number = self.directly(equals.end()) if equals is not None else None
        return number or self.last()

    def boxed(self, start: int) -> NumberInText | None:
        """The number of a box, of which there may be but one."""
        end, depth = start, 1
        while end < len(self.text) and depth:
            depth += {"{": 1, "}": -1}.get(self.text[end], 0)
            end += 1
        numbers = [*islice(self.between(max(start, self.text.rfind("=", start, end) + 1), end), _MOST_NUMBERS)]
        is_one = numbers and all(number.value == numbers[0].value for number in numbers)
        return numbers[0] if is_one else None

    def said(self, start: int) -> NumberInText | None:
        """The number that follows "the answer is", within a few sentences."""
        start = len(self.text) - len(self.text[start:].lstrip())
        for _ in range(_MOST_PIECES):
            ends = _PIECE_END.search(self.text, start)
            number = self.first(start, ends.start() if ends else len(self.text))
            if number is not None or ends is None:
                return number
            start = ends.end()
        return None

    def last(self) -> NumberInText | None:
        """The last number in figures, else the last in several words, else the one word that the text is."""
        for is_word in (False, True):
            for start, row in reversed(self.found):
                notation = NOTATIONS[row]
                if notation.is_word == is_word and not notation.is_small:
                    number = number_at(self.text, start, row)
                    if not number.is_label and not number.is_denied:
                        return number
        if len(self.found) == 1:
            only = number_at(self.text, *self.found[0])
            rest = self.text[only.end :]
            if self.is_beside(0, only) and len(rest) < LOOK_BACK and len(rest.split()) <= 1:
                return only
        return None

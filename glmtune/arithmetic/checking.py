"""Which step of a working is the first wrong one, and what is wrong with it.

A working has one right form (`working.py`), and up to its first wrong sign a text is that form. So the first sign that
differs tells the step; what stands there in the right step tells the kind. The text is compared, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from typing import Literal

from glmtune.arithmetic.characters import normalize_problem
from glmtune.arithmetic.working import DRAFT_MARK, STEP

Kind = Literal["copied wrongly", "wrong carry", "wrong figure", "wrong order of operations", "cut off"]

_NUMBER = r"[0-9][0-9.]*"
_WORKING = re.compile(r"[-+*/^%()\[\]{}0-9.:;<>]*(?<![0-9.])[0-9.]+\|-?[0-9.]+")
_SUM = re.compile(rf"-?({_NUMBER})[-+]-?({_NUMBER})([:<>])({_NUMBER});")
_FACTORS = re.compile(r"-?([0-9]+)\*([0-9]+):")
_PARTIAL = re.compile(rf"([0-9]):({_NUMBER})(?::({_NUMBER}))?;")
_DIVISION = re.compile(r"-?([0-9]+)/([0-9]+):")
_TIMES = re.compile(r"([0-9]+):([0-9]):([0-9]+)(?:<([0-9]):([0-9]+))?>")
_OPERATION = re.compile(rf"-?({_NUMBER})([-+*/])-?({_NUMBER})")
_OPERATION_IN = re.compile(rf"(?=(?<![0-9.])({_NUMBER})[)\]}}%]*([-+*/])[-(\[{{]*({_NUMBER}))")  # also over brackets
_LONGEST = 4000  # signs of a number that is compared by its value
_LARGEST_CARRY = 8  # of 9 * 9 and what was carried before


@dataclass(frozen=True)
class StepFault:
    """The first wrong step of a working.

    Attributes:
        kind: what is wrong with it.
        step: its number, from 1; 0 where the problem itself is repeated wrongly.
        place: of the first wrong sign in it, from 1.
        written: the step as it was written.
        right: the step as it should be.
    """

    kind: Kind
    step: int
    place: int
    written: str
    right: str

    def __str__(self) -> str:
        """Tell the kind and the place: `wrong carry in step 1, sign 10: 91+32:140; for 91+32:240;`."""
        where = f"step {self.step}" if self.step else "the problem"
        return f"{self.kind} in {where}, sign {self.place}: {self.written or 'nothing'} for {self.right}"


def first_fault(target: str, text: str) -> StepFault | None:
    """Return what is first wrong with a working; None where all of it is right, or where the target has none.

    Args:
        target: the right text: `19+23=91+32:240;24|42`, with or without the problem before `=`.
        text: what was written; without the problem it is compared from its working on.
    """
    said, _, right = target.strip().rpartition("=")
    if not _WORKING.fullmatch(right):
        return None
    text = normalize_problem(text[: 2 * len(target) + 100]).replace(" ", "").strip()
    echo, equals, working = text.partition("=")
    if not equals and said and said.startswith(text):
        return StepFault("cut off", 0, len(text) + 1, text, said)
    if not equals:
        working = text
    elif said and echo != said:
        return StepFault("copied wrongly", 0, 1 + _common(echo, said), echo, said)
    place = _common(working, right)
    if place == len(right):
        longer = working[place : place + 1]
        if not (longer.isdigit() or longer == "."):
            return None
    start = right.rfind(STEP, 0, place) + 1
    step = 1 + right.count(STEP, 0, start)
    right_step, written = _step(right, start), _step(working, start)
    if place == len(working):
        kind: Kind = "cut off"
    else:
        kind = _kind(right, start, place - start, right_step, written)
    return StepFault(kind, step, 1 + place - start, written, right_step)


def _common(one: str, other: str) -> int:
    """The number of signs that two texts begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _step(text: str, start: int) -> str:
    """The step that begins at a place, with its end."""
    end = text.find(STEP, start)
    return text[start:] if end < 0 else text[start : end + 1]


def _kind(working: str, start: int, place: int, right: str, written: str) -> Kind:
    """What is wrong with a step of which the sign at a place is the first wrong one."""
    before = working[:start].split(STEP)[:-1]  # the steps before, without their ends
    if not right.endswith(STEP):
        return _in_draft(before, right, place)
    total, head = _SUM.fullmatch(right), _FACTORS.match(right) or _DIVISION.match(right)
    operands = total.start(3) if total else head.end() if head else 0
    if place < operands:
        return "wrong order of operations" if _is_other_operation(before, right, written) else "copied wrongly"
    if not operands and _PARTIAL.fullmatch(right) is None:  # an expression that is written again
        is_whole = written.endswith(STEP)
        return "wrong order of operations" if is_whole and _signs(written) != _signs(right) else "copied wrongly"
    others = dict(_other_digits(working[:start], right)).get(place, frozenset())
    if others is None:
        return "copied wrongly"
    return "wrong carry" if written[place] in others else "wrong figure"


def _in_draft(before: list[str], right: str, place: int) -> Kind:
    """The draft copies the last result, unless it is rounded, and the answer copies the draft."""
    draft = right.partition(DRAFT_MARK)[0].lstrip("-")
    last = before[-1] if before else ""
    division = _DIVISION.match(last)
    if division is None:
        is_copy = [_value(row) for row in re.findall(_NUMBER, last)[-1:]] == [_value(draft)]
    else:
        quotient = "".join(found[4] or found[2] for found in _TIMES.finditer(last, division.end()))
        is_copy = quotient.lstrip("0").startswith(draft[::-1].replace(".", "").strip("0"))
    return "copied wrongly" if is_copy or place > right.index(DRAFT_MARK) else "wrong figure"


def _value(row: str) -> Fraction | None:
    """A number that is written backwards; None where it is none."""
    number = row[::-1]
    return Fraction(number) if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", number) and len(number) < _LONGEST else None


def _signs(state: str) -> str:
    """What stands between the numbers of an expression."""
    return re.sub(_NUMBER, "0", state)


def _is_other_operation(before: list[str], right: str, written: str) -> bool:
    """Whether another operation of the expression is done than the one that is due."""
    state = next((step for step in reversed(before) if not {":", "<", ">"} & {*step}), "")
    given, due = ([_operation(found) for found in [_OPERATION.match(step)] if found] for step in (written, right))
    return bool(given) and given != due and given[0] in map(_operation, _OPERATION_IN.finditer(state))


def _operation(found: re.Match[str]) -> tuple[str, tuple[str, ...]]:
    """An operation in one form: digits without points, and without the zeros around them; a dividend is no row."""
    left, operator, right = found.groups()
    is_dividend = operator == "/" and found.re is _OPERATION
    numbers = [part.replace(".", "").strip("0") for part in (left[::-1] if is_dividend else left, right)]
    return "-+"[operator != "-"] if operator in "-+" else operator, tuple(
        sorted(numbers) if operator in "+*" else numbers
    )


# For each digit of a result: where it stands in its step, and what it would be with other carries; None: it is a copy.
_Digits = Iterator[tuple[int, frozenset[str] | None]]


def _other_digits(before: str, right: str) -> _Digits:
    """The digits of the results in a right step."""
    total = _SUM.fullmatch(right)
    if total is not None:
        first, second, mark, result = total.groups()
        if mark == ":":
            yield from _added(total.start(4), result, first, second)
        else:
            yield from _subtracted(total.start(4), result, *((second, first) if mark == "<" else (first, second)))
        return
    division = _DIVISION.match(right)
    if division is not None:
        yield from _divided(right, division)
        return
    *_, head = (None, *_FACTORS.finditer(before + right))
    partial = _PARTIAL.search(right, max(0, head.end() - len(before))) if head is not None else None
    if head is None or partial is None:
        return
    yield partial.start(1), None
    yield from _multiplied(partial.start(2), partial[2], head[1], int(partial[1]), before.count(STEP, head.end()))
    if partial[3]:
        so_far = re.findall(_NUMBER, before)[-1]
        yield from _added(partial.start(3), partial[3], so_far, partial[2])


def _columns(start: int, result: str, *rows: str) -> Iterator[tuple[int, list[int]]]:
    """Where each digit of a result stands, and the digits above it in rows that stand point under point."""
    rows = tuple(row.replace(".", "") for row in rows)
    places = (start + place for place, sign in enumerate(result) if sign != ".")
    for column, place in enumerate(places):
        yield place, [int(row[column]) if column < len(row) else 0 for row in rows]


def _added(start: int, result: str, first: str, second: str) -> _Digits:
    carry = 0
    for place, (a, b) in _columns(start, result, first, second):
        yield place, frozenset({str((a + b + 1 - carry) % 10)})
        carry = (a + b + carry) // 10


def _subtracted(start: int, result: str, larger: str, smaller: str) -> _Digits:
    borrow = 0
    for place, (a, b) in _columns(start, result, larger, smaller):
        yield place, frozenset({str((a - b - 1 + borrow) % 10)})
        borrow = int(a - b - borrow < 0)


def _multiplied(start: int, result: str, row: str, times: int, zeros: int) -> _Digits:
    """Without its carry, or with one that is off by one."""
    carry = 0
    for place, (digit,) in _columns(start, result, "0" * zeros + row):
        others = {0, carry - 1, carry + 1} - {carry} & {*range(_LARGEST_CARRY + 1)}
        yield place, frozenset(str((digit * times + other) % 10) for other in others)
        carry = (digit * times + carry) // 10


def _divided(right: str, division: re.Match[str]) -> _Digits:
    """What is left with a digit brought down, and the multiples of the divisor."""
    left = multiple = ""
    for found in _TIMES.finditer(right, division.end()):
        if left:
            yield found.start(1), None  # brought down
            yield from _subtracted(found.start(1) + 1, found[1][1:], left, multiple)
        else:
            yield from ((found.start(1) + place, None) for place in range(len(found[1])))
        for times, product in ((2, 3), (4, 5)):
            if found[times]:
                yield from _multiplied(found.start(product), found[product], division[2], int(found[times]), 0)
        left, multiple = found[1], found[5] or found[3]

"""Worked steps of arithmetic, as a small model can write them: every sign needs only signs that stand nearby.

Numbers within steps are written from the last digit to the first, so that carries go in the direction of writing. The
numbers of one operation stand in rows of one width, point under point: what a digit needs stands at one distance.

An expression of several operations is written again before each of them, with the numbers that are known by then. Of
the operations that can be done, the first is done: `879-(9544+3858)` -> `978-(4459+8583);4459+8583:20431;978-20431;...`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glmtune.arithmetic.expressions import BINDING, CLOSING, DividedByZero, ExpressionError, is_number, with_places

STEP = ";"  # ends a step
DRAFT_MARK = "|"  # between a draft and the answer
_SHIFT = 8  # quotients' digits are guessed from the quotient and an eighth


@dataclass(frozen=True)
class Value:
    """A decimal with so many places: `units / 10**places`."""

    units: int
    places: int

    @classmethod
    def of(cls, text: str) -> Value:
        """Read a non-negative number as it is written: `13.60` -> 1360, 2."""
        whole, _, decimals = text.partition(".")
        return cls(int(whole + decimals), len(decimals))

    @property
    def backwards(self) -> str:
        """The sign, then the digits from the last to the first: `-17.60` -> `-06.71`."""
        return "-" * (self.units < 0) + with_places(abs(self.units), self.places)[::-1]

    def cut(self, places: int) -> Value:
        """At most so many places; further ones are dropped."""
        if self.places <= places:
            return self
        units = abs(self.units) // 10 ** (self.places - places)
        return Value(-units if self.units < 0 else units, places)

    def rounded(self, places: int) -> Value:
        """At most so many places, halves away from zero."""
        if self.places <= places:
            return self
        scale = 10 ** (self.places - places)
        units = (2 * abs(self.units) + scale) // (2 * scale)
        return Value(-units if self.units < 0 else units, places)


Item = Value | str  # of an expression that is being worked out: a number, or an operator or a bracket


@dataclass(frozen=True)
class Cut:
    """How many decimals of a quotient and of a product are worked out; further ones are dropped.

    Attributes:
        quotient: of a quotient.
        product: of a product; None: all.
        inner: of both, where the result is no term of the whole expression; None: as elsewhere. Terms are only added,
            so that what is dropped stays as small as it is. Within brackets, and beside `*` and `/`, it is multiplied:
            `5/9999*9999`.
    """

    quotient: int
    product: int | None
    inner: int | None = None

    def at(self, items: Sequence[Item], place: int) -> tuple[int, int | None]:
        """Return the decimals of a quotient and of a product whose operator stands at a place."""
        if self.inner is None or is_term(items, place):
            return self.quotient, self.product
        return self.inner, None if self.product is None else self.inner


def row(value: int, width: int, places: int = 0) -> str:
    """Return a value from its last digit to its first, with zeros up to a width, and a point before its decimals."""
    digits = str(value).rjust(width, "0")[::-1]
    return f"{digits[:places]}.{digits[places:]}" if places else digits


def sum_steps(left: Value, operator: str, right: Value) -> tuple[str, Value]:
    """Column addition or subtraction: `25.4-28.02` -> `04.52-20.82<26.2;`.

    The operator is that of the magnitudes, `3--5` is `3+5`. Where they are subtracted, a `<` or `>` between the rows
    and the difference says which is larger.
    """
    places = max(left.places, right.places)
    a, b = left.units * 10 ** (places - left.places), right.units * 10 ** (places - right.places)
    negative = (operator == "-") != (b < 0)
    total = a + (-abs(b) if negative else abs(b))
    first, second = abs(a), abs(b)
    width = max(len(str(max(first, second))), places + 1)
    rows = f"{'-' * (a < 0)}{row(first, width, places)}{'-' if negative else '+'}{row(second, width, places)}"
    if negative == (a < 0):
        return f"{rows}:{row(first + second, width + 1, places)}{STEP}", Value(total, places)
    mark = "<" if first < second else ">"
    return f"{rows}{mark}{row(abs(first - second), width, places)}{STEP}", Value(total, places)


def product_steps(left: Value, right: Value) -> tuple[str, Value]:
    """One number times each digit of the one with fewer digits, and the sum so far: `12*34` -> `21*43:4:8400;3:...`."""
    places = left.places + right.places
    first, second = abs(left.units), abs(right.units)
    if len(str(first)) < len(str(second)):
        first, second = second, first
    digits = str(second)[::-1]
    width = max(len(str(first)) + len(digits), places + 1)
    negative = (left.units < 0) != (right.units < 0)
    written, total = [f"{'-' * negative}{row(first, 1)}*{digits}:"], 0
    for place, digit in enumerate(digits):
        partial = first * int(digit) * 10**place
        total += partial
        so_far = f":{row(total, width, places)}" if place else ""
        written.append(f"{digit}:{row(partial, width, places)}{so_far}{STEP}")
    return "".join(written), Value(-total if negative else total, places)


def quotient_steps(left: Value, right: Value, places: int) -> tuple[str, Value]:
    """Long division, decimals after `places` cut: `7/3` -> `700/3:70:2:60>01:3:90>01:3:90>;`.

    Each step has what is left with the next digit brought down, how often the divisor may go into it, and that many
    times the divisor. Where that is too much, `<` says so, and one less is tried. The guess is the quotient and an
    eighth: a model that is a little off guesses right or one too many, never one too few, and mends it.

    Raises:
        DividedByZero: the right one is zero.
    """
    common = max(left.places, right.places)
    number, divisor = (abs(value.units) * 10 ** (common - value.places) for value in (left, right))
    if not divisor:
        raise DividedByZero("the expression divides by zero")
    digits = len(str(divisor))
    dividend = str(number).rjust(digits, "0") + "0" * places
    width, rest, quotient = digits + 1, int(dividend[: digits - 1] or 0), 0
    negative = (left.units < 0) != (right.units < 0)
    written = [f"{'-' * negative}{dividend}/{row(divisor, 1)}:"]
    for digit in dividend[digits - 1 :]:
        rest = 10 * rest + int(digit)
        times = min(9, (_SHIFT * rest + divisor) // (_SHIFT * divisor))
        written.append(f"{row(rest, width)}:{times}:{row(times * divisor, width)}")
        if times * divisor > rest:
            times -= 1
            written.append(f"<{times}:{row(times * divisor, width)}")
        written.append(">")
        rest -= times * divisor
        quotient = 10 * quotient + times
    written.append(STEP)
    return "".join(written), Value(-quotient if negative else quotient, places)


def items_of(tokens: Sequence[str]) -> list[Item]:
    """Tokens with numbers as values."""
    return [Value.of(token) if is_number(token) else token for token in tokens]


def expression_steps(items: Sequence[Item], cut: Cut) -> tuple[str, Value]:
    """Return all operations of an expression, one after the other, and its value, which is exact but for what is cut.

    Args:
        items: the expression.
        cut: decimals of quotients and products.

    Raises:
        DividedByZero: a divisor is zero, or becomes so where decimals are cut.
        ExpressionError: an exponent is no whole number.
    """
    bare = len(items) == 3 and isinstance(items[0], Value) and isinstance(items[2], Value)
    items, written = simplified(list(items)), []
    while len(items) > 1:
        if not bare:
            written.append(state(items) + STEP)
        place = next_operation(items)
        left, operator, right = items[place - 1 : place + 2]
        assert isinstance(left, Value) and isinstance(right, Value)
        if operator == "^":
            if right.places or right.units < 0:
                raise ExpressionError("steps of powers are products; their exponents are whole numbers")
            factors: list[Item] = [left]
            for _ in range(right.units - 1):
                factors += ["*", left]
            items[place - 1 : place + 2] = ["(", *factors, ")"] if right.units else [Value(1, 0)]
        else:
            quotient_places, product_places = cut.at(items, place)
            if operator == "*":
                steps, value = product_steps(left, right)
                value = value if product_places is None else value.cut(product_places)
            elif operator == "/":
                steps, value = quotient_steps(left, right, quotient_places)
            else:
                steps, value = sum_steps(left, str(operator), right)
            written.append(steps)
            items[place - 1 : place + 2] = [value]
        items = simplified(items)
    [result] = items
    assert isinstance(result, Value)
    return "".join(written), result


def state(items: Sequence[Item]) -> str:
    """Return an expression with its numbers backwards: `-12.5*(3+4)` -> `-5.21*(3+4)`."""
    return "".join(item if isinstance(item, str) else item.backwards for item in items)


def simplified(items: list[Item]) -> list[Item]:
    """Return the expression without signs, percents and brackets of single numbers: `-(5)`, `5%` -> `-5`, `0.05`."""
    place = 0
    while place < len(items):
        item = items[place]
        following = items[place + 1] if place + 1 < len(items) else ""
        if isinstance(item, Value):
            before = items[place - 1] if place else ""
            if following == "%":
                items[place : place + 2] = [Value(item.units, item.places + 2)]
            elif isinstance(before, str) and CLOSING.get(before) == following:
                items[place - 1 : place + 2] = [item]
                place -= 1
            elif before in ("-", "+") and following != "^" and is_sign(items, place - 1):
                items[place - 1 : place + 1] = [Value(-item.units if before == "-" else item.units, item.places)]
                place -= 1
            else:
                place += 1
        else:
            place += 1
    return items


def is_sign(items: Sequence[Item], place: int) -> bool:
    """Whether a `+` or `-` has no number before it."""
    before = items[place - 1] if place else "("
    return isinstance(before, str) and before not in (*CLOSING.values(), "%")


def is_term(items: Sequence[Item], place: int) -> bool:
    """Whether the result of the operator at a place stands outside brackets, with nothing but `+` and `-` beside it."""
    before, after = items[: place - 1], items[place + 2 :]
    open_brackets = sum((item in CLOSING) - (item in CLOSING.values()) for item in before if isinstance(item, str))
    return not open_brackets and {*before[-1:], *after[:1]} <= {"+", "-"}


def next_operation(items: Sequence[Item]) -> int:
    """Where the operator stands that is the first that can be done: between numbers, and none beside it binds more."""
    for place in range(1, len(items) - 1):
        operator = items[place]
        if isinstance(operator, str) and operator in BINDING and isinstance(items[place + 1], Value):
            if not isinstance(items[place - 1], Value):
                continue
            binding = BINDING[operator]
            before = items[place - 2] if place > 1 else ""
            after = items[place + 2] if place + 2 < len(items) else ""
            looser = not isinstance(before, str) or BINDING.get(before, 0) < binding
            if looser and (not isinstance(after, str) or BINDING.get(after, 0) <= binding) and after != "%":
                return place
    raise AssertionError(f"nothing can be done in {state(items)}")

"""Arithmetic expressions, read and worked out exactly: `-(4976/1081)*12%+[3-2^3]`.

Values are `Fraction`s; a text is parsed and never run. All work is bounded, and what is beyond the bounds, or no
expression at all, is said in words. This module imports nothing of glmtune.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

UNDEFINED = "undefined"  # the answer to a division by zero
NUMBER = r"(?:(?:\d{1,3}(?:,\d{3}){1,20}|\d+)(?:\.\d+)?|\.\d+)"  # without its sign, as texts have it
NUMBER_START = r"(?<![\d.])(?<!\d,)"  # not within a number; keeps a search linear as well

MOST_CHARACTERS = 2000  # of an expression
MOST_NESTING = 32  # brackets within brackets, and exponents of exponents
MOST_EXPONENT = 100
MOST_BITS = 10_000  # of a numerator or denominator on the way to a value

CLOSING = {"(": ")", "[": "]", "{": "}"}
BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "^": 3}  # the higher binds first

_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\*\*|[-+*/^%()\[\]{}])", re.ASCII)


class ExpressionError(ValueError):
    """What a text is instead of an expression with a value, in words for its writer."""


class DividedByZero(ExpressionError):
    """An expression that has no value."""


def tokens_of(text: str) -> tuple[str, ...]:
    """Numbers without signs, operators, brackets: `-(2.5+3)%` -> `- ( 2.5 + 3 ) %`.

    Raises:
        ExpressionError: it is too long, or there is something else in it.
    """
    tokens, ends = _scan(text)
    rest = text[ends[-1] if ends else 0 :].strip()
    if rest:
        raise ExpressionError(f"{rest[:1]!r} in {text[:60]!r} is no part of an expression")
    return tokens


def _scan(text: str) -> tuple[tuple[str, ...], list[int]]:
    """The tokens that a text begins with, and where each ends."""
    if len(text) > MOST_CHARACTERS:
        raise ExpressionError(f"the expression has {len(text)} characters; at most {MOST_CHARACTERS} are read")
    tokens, ends, place = [], [], 0
    while (found := _TOKEN.match(text, place)) is not None:
        tokens.append("^" if found[1] == "**" else found[1])
        place = found.end()
        ends.append(place)
    return tuple(tokens), ends


def is_number(token: str) -> bool:
    """Whether a token is a number."""
    return token[-1].isdigit()


def evaluate(expression: str | Sequence[str]) -> Fraction:
    """Return the exact value of an expression, as a text or in tokens.

    Raises:
        DividedByZero: it has no value.
        ExpressionError: it is no expression, or one that is too large.
    """
    tokens = tokens_of(expression) if isinstance(expression, str) else tuple(expression)
    reader = _Reader(tokens)
    value = reader.sum()
    if reader.place < len(tokens):
        raise ExpressionError(f"{tokens[reader.place]!r} stands where an operator or the end is expected")
    return reader.checked(value)


def evaluate_start(text: str) -> tuple[Fraction, str]:
    """Return the value of the expression that a text begins with, and what follows it: `3*4 apples` -> 12, ` apples`.

    Raises:
        DividedByZero: it has no value.
        ExpressionError: there is none, or one that is too large.
    """
    tokens, ends = _scan(text)
    reader = _Reader(tokens)
    value = reader.sum()
    return reader.checked(value), text[ends[reader.place - 1] :]


@dataclass
class _Reader:
    """Reads tokens from the first on.

    sum: product {+ - product}; product: signed {* / signed}; signed: {+ -} power; power: item {%} [^ signed]

    What divides by zero is read to its end, as if by one: only then is it known to be an expression.
    """

    tokens: tuple[str, ...]
    place: int = 0
    depth: int = 0
    divides_by_zero: bool = False

    def checked(self, value: Fraction) -> Fraction:
        if self.divides_by_zero:
            raise DividedByZero("the expression divides by zero")
        return value

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        if self.place == len(self.tokens):
            raise ExpressionError("the expression ends where a number is expected" if self.tokens else "it is empty")
        self.place += 1
        return self.tokens[self.place - 1]

    def sum(self) -> Fraction:
        total = self.product()
        while self.peek() in ("+", "-"):
            total = _bounded(total + self.product() if self.take() == "+" else total - self.product())
        return total

    def product(self) -> Fraction:
        total = self.signed()
        while self.peek() in ("*", "/"):
            multiplies, factor = self.take() == "*", self.signed()
            if not multiplies and not factor:
                self.divides_by_zero, factor = True, Fraction(1)
            total = _bounded(total * factor if multiplies else total / factor)
        return total

    def signed(self) -> Fraction:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        return -self.power() if negative else self.power()

    def power(self) -> Fraction:
        base = self.item()
        while self.peek() == "%":
            self.take()
            base = _bounded(base / 100)
        if self.peek() != "^":
            return base
        self.take()
        with _Deeper(self):
            exponent = self.signed()
        if exponent.denominator != 1 or abs(exponent) > MOST_EXPONENT:
            raise ExpressionError(f"exponents are whole numbers up to {MOST_EXPONENT}, not {exponent}")
        if exponent < 0 and not base:
            self.divides_by_zero, base = True, Fraction(1)
        return _bounded(base ** int(exponent))

    def item(self) -> Fraction:
        token = self.take()
        if token in CLOSING:
            with _Deeper(self):
                inner = self.sum()
            if self.take() != CLOSING[token]:
                raise ExpressionError(f"the bracket {token!r} is not closed by {CLOSING[token]!r}")
            return inner
        if not is_number(token):
            raise ExpressionError(f"{token!r} stands where a number is expected")
        return _bounded(Fraction(token))


@dataclass
class _Deeper:
    """One level of nesting."""

    reader: _Reader

    def __enter__(self) -> None:
        self.reader.depth += 1
        if self.reader.depth > MOST_NESTING:
            raise ExpressionError(f"the expression is nested more than {MOST_NESTING} deep")

    def __exit__(self, *_: object) -> None:
        self.reader.depth -= 1


def _bounded(value: Fraction) -> Fraction:
    """The value, if it is not too large to go on with."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise ExpressionError("the expression has a value too large to be worked out")
    return value


def is_endless(value: Fraction) -> bool:
    """Whether a value has no finite decimal notation."""
    return _places(value) is None


def _places(value: Fraction) -> int | None:
    """The decimals that a value needs; None where they never end."""
    counts, rest = [], value.denominator
    for prime in (2, 5):
        counts.append(0)
        while rest % prime == 0:
            rest //= prime
            counts[-1] += 1
    return max(counts) if rest == 1 else None


def shortest(value: Fraction) -> str:
    """Decimal notation of an exactly representable value without needless zeros: `146.40` -> `146.4`.

    Raises:
        ValueError: the value has no finite decimal notation.
    """
    places = _places(value)
    if places is None:
        raise ValueError(f"{value} has no finite decimal notation; round it first")
    return with_places(int(value * 10**places), places)


def with_places(units: int, places: int) -> str:
    """`units / 10**places` with all its decimals: 5490, 2 -> `54.90`. No `Decimal`, which would round to 28 digits."""
    digits = str(abs(units)).rjust(places + 1, "0")
    return "-" * (units < 0) + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def round_half_up(value: Fraction, places: int) -> Fraction:
    """Round to `places` decimals, halves away from zero, as taught in school."""
    scaled = abs(value) * 10**places + Fraction(1, 2)
    rounded = Fraction(scaled.numerator // scaled.denominator, 10**places)
    return -rounded if value < 0 else rounded

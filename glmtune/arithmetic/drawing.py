"""Draws problems: operands, signs, brackets, carries, as the settings say. The same `rng` draws the same everywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveFloat, field_validator

from glmtune.arithmetic.characters import normalize_problem
from glmtune.arithmetic.expressions import UNDEFINED, ExpressionError, shortest, with_places
from glmtune.arithmetic.problems import Problem

Operator = Literal["+", "-", "*", "/"]
Kind = Literal["integer", "decimal"]

MOST_OPERANDS = 100  # the steps of more take long: each step writes what is left again


class DrawingSettings(BaseModel):
    """What problems are drawn."""

    operators: Annotated[dict[Operator, PositiveFloat], Field(min_length=1)] = Field(
        {"+": 1, "-": 1, "*": 1, "/": 1}, description="operators and how often each is drawn, or just a text: '+-'"
    )
    kinds: Annotated[list[Kind], Field(min_length=1)] = Field(
        ["integer", "decimal"], description="kinds of operands, drawn equally often"
    )
    maximum: int = Field(100, ge=1, description="largest operand")
    digits: int | None = Field(
        None, ge=1, description="largest number of digits before the point, all lengths equally often; replaces maximum"
    )
    same_digits: float = Field(
        0,
        ge=0,
        le=1,
        description="with `digits`, share of problems whose operands have the same number of digits, but for leading "
        "zeros; by chance that is rare among long numbers, and their differences are the hardest",
    )
    decimals: int = Field(2, ge=1, description="most decimals of an operand, and the decimals of a rounded quotient")
    operand_decimals: int | None = Field(
        None, ge=1, description="most decimals of an operand, all numbers of them equally often; null: as `decimals`"
    )
    num_operands: (
        Annotated[int, Field(ge=2, le=MOST_OPERANDS)]
        | Annotated[dict[Annotated[int, Field(ge=2, le=MOST_OPERANDS)], PositiveFloat], Field(min_length=1)]
    ) = Field(
        2, description="operands in a problem, or several numbers of them and how often each is drawn: {2: 3, 5: 1}"
    )
    brackets: float = Field(
        0,
        ge=0,
        le=1,
        description="share of problems of three and more operands that have brackets; outer ones may be square",
    )
    signed_brackets: float = Field(0, ge=0, le=1, description="share of brackets that have a sign before them: -(3+4)")
    negatives: float = Field(
        0, ge=0, le=1, description="share of problems in which four operands in ten have signs: 3*-2"
    )
    percents: float = Field(
        0, ge=0, le=1, description="share of problems in which four operands in ten are percent: 640%"
    )
    fractions: float = Field(
        0, ge=0, le=1, description="share of problems in which four operands in ten are fractions: (3/4)"
    )
    powers: float = Field(0, ge=0, le=1, description="share of problems in which four operands in ten are powers: 12^3")
    most_exponent: int = Field(3, ge=2, le=100, description="largest exponent of a power")
    balance_carries: bool = Field(
        False,
        description="draw the carries or borrows of a sum or difference of two numbers, each number of them equally "
        "often; operands have up to the digits of `digits` or `maximum`, and all their decimals",
    )
    trailing_zeros: float = Field(
        0.3, ge=0, le=1, description="share of decimal operands written with all their decimals: 54.90, not 54.9"
    )
    zero_divisors: bool = Field(False, description=f"draw divisions by zero, answered '{UNDEFINED}'")

    @field_validator("operators", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """'+-×' means + - and * equally often."""
        if not value:
            raise ValueError("name at least one operator, such as task.operators='+-'")
        value = dict.fromkeys(value, 1.0) if isinstance(value, str | list) else value
        if not isinstance(value, dict):
            return value
        return {normalize_problem(str(key)): weight for key, weight in value.items()}


def draw_problem(rng: random.Random, settings: DrawingSettings) -> Problem | None:
    """Draw a problem; None where chance made one that is not wanted.

    That is a problem of decimals without any, one that divides by zero unless `zero_divisors`, and one too large to be
    worked out.
    """
    kind = rng.choice(settings.kinds)
    problem = draw_expression(rng, settings, kind)
    if kind == "decimal" and "%" not in problem.tokens and not any("." in number for number in problem.numbers):
        return None
    try:
        return problem if settings.zero_divisors or problem.value() is not None else None
    except ExpressionError:
        return None


def draw_expression(rng: random.Random, settings: DrawingSettings, kind: Kind) -> Problem:
    """Draw numbers and operators, and write them as one expression."""
    count = settings.num_operands
    if isinstance(count, dict):
        count = rng.choices(list(count), list(count.values()))[0]
    shares = {
        "negatives": settings.negatives,
        "percents": settings.percents,
        "powers": settings.powers,
        "fractions": settings.fractions,
    }
    adornments = [name for name, share in shares.items() if rng.random() < share]
    operators = rng.choices(list(settings.operators), list(settings.operators.values()), k=count - 1)
    if settings.balance_carries and count == 2 and operators[0] in "+-":
        numbers = draw_column(rng, settings, kind, operators[0])
    else:
        shared: int | None = None
        if settings.digits is not None and settings.same_digits and rng.random() < settings.same_digits:
            shared = rng.randint(1, settings.digits)
        numbers = [draw_operand(rng, settings, kind, shared) for _ in range(count)]
    operands = [adorn(rng, number, adornments, settings.most_exponent) for number in numbers]
    bracketed = rng.random() < settings.brackets
    return Problem(tuple(join(rng, operands, operators, bracketed, settings.signed_brackets)))


def draw_operand(rng: random.Random, settings: DrawingSettings, kind: Kind, digits: int | None = None) -> str:
    """Draw one non-negative operand. Three decimals in ten have fewer places than the most.

    Args:
        digits: before the point; None: as the settings say.
    """
    places = 0
    if kind == "decimal" and settings.operand_decimals is not None:
        places = rng.randint(1, settings.operand_decimals) if rng.random() < 0.6 else 0
    elif kind == "decimal":
        places = settings.decimals if rng.random() < 0.7 else rng.randint(0, settings.decimals)
    limit = settings.maximum
    if settings.digits is not None:
        limit = 10 ** (digits or rng.randint(1, settings.digits)) - 1
    units = rng.randint(0, limit * 10**places)
    text = shortest(Fraction(units, 10**places))
    if places and rng.random() < settings.trailing_zeros:
        text = with_places(units, places)
    return text


def draw_column(rng: random.Random, settings: DrawingSettings, kind: Kind, operator: str) -> list[str]:
    """Draw two numbers, of a difference the smaller last, with any number of carries or borrows equally often."""
    places = settings.decimals if kind == "decimal" else 0
    width = places + (settings.digits or len(str(settings.maximum)))
    carries = rng.randint(0, width - 1)
    carrying = set(rng.sample(range(width - 1), carries))
    left = right = carry = 0
    for column in range(width):
        pairs = [
            (a, b)
            for a in range(10)
            for b in range(10)
            if (a + b + carry > 9 if operator == "+" else a - b - carry < 0) == (column in carrying)
        ]
        a, b = rng.choice(pairs)
        left, right, carry = left + a * 10**column, right + b * 10**column, int(column in carrying)
    return [shortest(Fraction(number, 10**places)) for number in (left, right)]


def adorn(rng: random.Random, number: str, adornments: Sequence[str], most_exponent: int) -> list[str]:
    """Make a number negative, a percentage, a power or a fraction, by chance for each of the adornments."""
    tokens = [number]
    for name in adornments:
        if rng.random() >= 0.4:
            continue
        if name == "negatives":
            tokens = ["-", *tokens]
        elif name == "percents":
            tokens = [*tokens, "%"]
        elif name == "powers" and len(tokens) == 1:
            tokens = [*tokens, "^", str(rng.randint(2, most_exponent))]
        elif name == "fractions" and len(tokens) == 1:
            tokens = ["(", number, "/", str(rng.randint(2, 99)), ")"]
    return tokens


def join(
    rng: random.Random,
    operands: Sequence[list[str]],
    operators: Sequence[str],
    bracketed: bool,
    signed_brackets: float,
    depth: int = 0,
) -> list[str]:
    """Write operands and operators as one expression, with brackets around parts of it.

    Args:
        bracketed: whether there are any.
        signed_brackets: share of brackets with a sign before them.
        depth: how many brackets stand around, or were put beside; there are two at most.
    """
    count = len(operands)
    if not (bracketed and count > 2 and depth < 2):
        tokens = operands[0]
        for operator, operand in zip(operators, operands[1:], strict=True):
            tokens = [*tokens, operator, *operand]
        return tokens
    length = rng.randint(2, min(count - 1, 5))
    start = rng.randint(0, count - length)
    end = start + length
    deeper = length > 2 and rng.random() < 0.4
    inner = join(rng, operands[start:end], operators[start : end - 1], deeper, signed_brackets, depth + 1)
    square = "(" in inner and "[" not in inner and rng.random() < 0.7
    group = ["[" if square else "(", *inner, "]" if square else ")"]
    if signed_brackets and rng.random() < signed_brackets:
        group = ["-", *group]
    operands = [*operands[:start], group, *operands[end:]]
    operators = [*operators[:start], *operators[end - 1 :]]
    return join(rng, operands, operators, rng.random() < 0.4, signed_brackets, depth + 1)

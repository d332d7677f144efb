"""Problems of arithmetic: found in texts, told apart, answered and described."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any

from glmtune.arithmetic.characters import normalize_problem, without_commas
from glmtune.arithmetic.expressions import (
    BINDING,
    CLOSING,
    NUMBER,
    NUMBER_START,
    UNDEFINED,
    DividedByZero,
    ExpressionError,
    evaluate,
    is_endless,
    is_number,
    round_half_up,
    shortest,
    tokens_of,
    with_places,
)

_OPENING = r"(?:[(\[{]\s{0,3}|-){0,40}"
_CLOSING = r"(?:\s{0,3}[)\]}%]){0,40}"
_OPERAND_PART = rf"{_OPENING}{NUMBER}{_CLOSING}"
_EXPRESSION = re.compile(rf"(?:{NUMBER_START}|(?=[(\[{{])){_OPERAND_PART}(?:\s*(?:\*\*|[-+*/^])\s*{_OPERAND_PART})+")
_BARE = re.compile(rf"-?{NUMBER_START}{NUMBER}(?:\s*[-+*/]\s*-?{NUMBER})+")
_FACTOR = re.compile(r"[(\[{]{0,40}-?\.?\d")
_OPERAND = r"(?:(?<![\d.])-)?(?:\d+(?:\.\d+)?|\.\d+)"
_CHAIN = re.compile(rf"{_OPERAND}(?:[-+*/]{_OPERAND})+")
_ROUND = {"[": "(", "{": "(", "]": ")", "}": ")"}


@dataclass(frozen=True)
class Problem:
    """An expression in tokens, numbers as they are written: `57.84 + 13.60`."""

    tokens: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Problem | None:
        """Return the first expression in a text, or None: `计算: ５７.8 × 2 =` -> 57.8 * 2."""
        whole = cls.exactly(text)
        if whole is not None:
            return whole
        factor_end = -1  # of an expression that goes on with a factor without a sign: 5(3+4), (1+2)(3+4)
        for found in _EXPRESSION.finditer(normalize_problem(text)):
            before = found.string[max(0, found.start() - 1) : found.start()]
            follows = found.group()[0] in CLOSING and (before.isdigit() or found.start() == factor_end)
            if follows or (found.group()[-1] in CLOSING.values() and _FACTOR.match(found.string, found.end())):
                factor_end = found.end()
                continue
            # Brackets of the sentence around it may stand beside an expression: `(3+4=7)`.
            bare = _BARE.search(found.group())
            for candidate in (found.group(), found.group().strip("()[]"), bare.group() if bare else ""):
                problem = cls._read(candidate)
                if problem is not None:
                    return problem
        return None

    @classmethod
    def exactly(cls, text: str) -> Problem | None:
        """Return the problem that a text is, and nothing but that, or None: `５７.8 × 2 =` -> 57.8 * 2."""
        return cls._read(normalize_problem(text).strip().removesuffix("=").rstrip())

    @classmethod
    def _read(cls, text: str) -> Problem | None:
        """A text that is an expression of at least two numbers, or None."""
        try:
            problem = cls(tokens_of(without_commas(text)))
            evaluate(problem.tokens)
        except DividedByZero:
            pass
        except ExpressionError:
            return None
        return problem if len(problem.numbers) > 1 else None

    @property
    def text(self) -> str:
        """As a prompt has it: `57.84+13.64`."""
        return "".join(self.tokens)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The numbers as they are written, without signs."""
        return tuple(filter(is_number, self.tokens))

    @cached_property
    def operators(self) -> tuple[str, ...]:
        """The operators between operands; signs are none."""
        ends = {*CLOSING.values(), "%"}
        return tuple(
            token
            for before, token in pairwise(self.tokens)
            if token in BINDING and (before in ends or is_number(before))
        )

    @cached_property
    def normal_form(self) -> str:
        """Equal for two spellings of one problem: `5.0+13` and `(13)+5`. Held-out problems are told by its hash."""
        bare = Problem(without_needless_brackets(self.tokens))
        operands = bare.signed_operands()
        if operands is not None and set(bare.operators) in ({"+"}, {"*"}):
            return bare.operators[0].join(sorted(shortest(Fraction(operand)) for operand in operands))
        return "".join(shortest(Fraction(t)) if is_number(t) else _ROUND.get(t, t) for t in bare.tokens)

    def signed_operands(self) -> list[str] | None:
        """Return the operands of a chain `3*-2+5`; None where there are brackets, percents or powers."""
        found = _CHAIN.fullmatch(self.text)
        return re.findall(_OPERAND, self.text) if found else None

    def value(self) -> Fraction | None:
        """Return the exact value; None where a divisor is zero."""
        try:
            return evaluate(self.tokens)
        except DividedByZero:
            return None

    def answer(self, decimals: int, always: bool = False) -> str:
        """Return the answer: exact, and rounded half-up to `decimals` where it divides, never ends, or `always`."""
        value = self.value()
        if value is None:
            return UNDEFINED
        rounded = always or "/" in self.tokens or is_endless(value)
        return shortest(round_half_up(value, decimals) if rounded else value)

    def column(self, decimals: int) -> str:
        """Return the answer before needless zeros go, as column arithmetic leaves it: `57.80+13.2` -> `71.00`."""
        answer = Fraction(self.answer(decimals))
        written = [len(number.partition(".")[2]) for number in self.numbers]
        places = decimals if "/" in self.operators else sum(written) if "*" in self.operators else max(written)
        places = max(places, len(shortest(answer).partition(".")[2]))  # of percents and powers
        return with_places(int(answer * 10**places), places)

    def facts(self) -> dict[str, Any]:
        """Tell what makes a problem easy or hard.

        These are `operator` (`mixed` for several), `kind`, `digits` of the longest number; of two numbers
        `left_digits` and `right_digits`; of their sum or difference its `carries` or borrows; of several operations
        how many `operations` they are.
        """
        numbers, operators = list(map(Fraction, self.numbers)), self.operators
        digits = [sum(map(str.isdigit, shortest(number))) for number in numbers]
        facts: dict[str, Any] = {
            "operator": operators[0] if len(set(operators)) == 1 else "mixed",
            "kind": "integer" if all(n.denominator == 1 for n in numbers) and "%" not in self.tokens else "decimal",
            "digits": max(digits),
        }
        if len(digits) == 2:
            facts["left_digits"], facts["right_digits"] = digits
        operands = self.signed_operands()
        if operands is not None and len(operands) == 2 and operators[0] in "+-":
            left, right = map(Fraction, operands)
            facts["carries"] = count_carries(left, right, operators[0])
        elif len(operators) > 1:
            facts["operations"] = len(operators)
        return facts


def without_needless_brackets(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Tokens of an expression without brackets around one number, around brackets, or around the whole.

    `((3+4))*(-2)` -> `(3+4)*-2`; a signed number keeps its brackets before a power, `(-2)^2`.
    """
    kept: list[str] = []
    opened: list[int] = []
    inner = (-1, -1)  # the last brackets that were kept: where they begin and end
    for place, token in enumerate(tokens):
        if token in CLOSING:
            opened.append(len(kept))
        elif token in CLOSING.values():
            start = opened.pop()
            content = kept[start + 1 :]
            is_number_alone = len(content) == 1
            is_signed = len(content) == 2 and content[0] in "+-" and tokens[place + 1 : place + 2] != ("^",)
            if is_number_alone or is_signed or inner == (start + 1, len(kept) - 1):
                del kept[start]
                inner = (start, len(kept) - 1) if inner == (start + 1, len(kept)) else (-1, -1)
                continue
            inner = (start, len(kept))
        kept.append(token)
    return tuple(kept[1:-1] if inner == (0, len(kept) - 1) else kept)


def count_carries(left: Fraction, right: Fraction, operator: str) -> int:
    """Carries of `left + right`, or borrows of the larger magnitude less the smaller, in column arithmetic."""
    places = max(len(shortest(number).partition(".")[2]) for number in (left, right))
    subtract = (operator == "-") == ((left < 0) == (right < 0))
    high, low = sorted((int(abs(left) * 10**places), int(abs(right) * 10**places)), reverse=True)
    carries = carry = 0
    while high or low:
        high, a = divmod(high, 10)
        low, b = divmod(low, 10)
        carry = int(a - b - carry < 0) if subtract else int(a + b + carry > 9)
        carries += carry
    return carries

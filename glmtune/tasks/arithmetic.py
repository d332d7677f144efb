"""Integer and decimal arithmetic, generated and checked exactly: the worked task.

A problem is `57.84+13.64=`, its target `57.84+13.64=71.48`. Numbers are `Fraction`s and `Decimal`s throughout; a float
never makes or checks an answer.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from glmtune.config import NamedSettings
from glmtune.expressions import (
    BINDING,
    DividedByZero,
    ExpressionError,
    evaluate,
    is_number,
    round_half_up,
    shortest,
    tokens_of,
    with_places,
)
from glmtune.records import Prompt
from glmtune.runtime import UserError
from glmtune.steps import STEP, expression_steps, items_of
from glmtune.tasks import Example, Score, Split, Task, split_of

Operator = Literal["+", "-", "*", "/"]
Kind = Literal["integer", "decimal"]

# Question and answer words of the public Chinese arithmetic tutorials.
PROMPT_WORDS = (
    ("问:", "答:"),
    ("问题:", "答案:"),
    ("计算:", "回答:"),
    ("计算题:", "解答:"),
    ("口算:", "解:"),
    ("简便运算:", "剖析:"),
    ("数学题:", "点拨:"),
    ("初等数学:", "解析:"),
)
DRAFT_MARK = "|"  # between a draft and the answer
UNDEFINED = "undefined"  # the answer to a division by zero

# Full-width ASCII, and what else is taken for an operator, a point or a blank. NFKC would go too far: 5² becomes 52.
_FULL_WIDTH = {ord("！") + offset: ord("!") + offset for offset in range(94)} | {ord("\u3000"): " "}
_LOOKALIKES = _FULL_WIDTH | str.maketrans("×✕✖∗·⋅÷∕⁄➗−‐‑‒–—―➖﹣⁻➕﹢。", "******////----------++.")
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_START = r"(?<![\d.])(?<!\d,)"  # not within a number; keeps the search linear as well
_EXPRESSION = re.compile(
    rf"{_START}[-(\[]{{0,40}}(?:{_NUMBER})[)\]%]{{0,40}}(?:\s*[-+*/^]\s*[-(\[]{{0,40}}(?:{_NUMBER})[)\]%]{{0,40}})+"
)
_COMMA = re.compile(r"(?<=\d),(?=\d{3})")
_ROUND = {"[": "(", "{": "(", "]": ")", "}": ")"}
_SIGNED_NUMBER = re.compile(rf"{_START}-?(?:{_NUMBER})(?![.,]?\d)")
_NO_NUMBER = re.compile(r"\d\s*(?:[-+*/]|e[-+]?)\s*-?\.?\d|\d\s*[%^²³¹⁰-⁹]", re.IGNORECASE)  # 2+3, 6/8, 1e5, 2^3, 5%
_MOST_DIGITS = 1000  # of an operand in a foreign text; Python itself refuses to read more than 4300
_MOST_DRAWS = 100_000  # for one problem
_ADORNED = ("negatives", "percents", "powers", "fractions")
_ADORNED_SHARE = 0.4  # of the operands in a problem that has some


def plain(text: str) -> str:
    """The text with ASCII digits and operators: `５７．８×２` -> `57.8*2`."""
    return text.translate(_LOOKALIKES)


@dataclass(frozen=True)
class Problem:
    """An expression in tokens, numbers as they are written: `57.84 + 13.60`."""

    tokens: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Problem | None:
        """The first expression in a text, or None: `计算: ５７.8 × 2 =` -> 57.8 * 2."""
        text = plain(text)
        for found in _EXPRESSION.finditer(text):
            problem = cls._read(found.group())
            if problem is not None:
                return problem
        return None

    @classmethod
    def _read(cls, text: str) -> Problem | None:
        """A text that is an expression of at least two numbers, or None."""
        try:
            problem = cls(tokens_of(_COMMA.sub("", text)))
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
        ends = [")", "]", "}", "%"]
        return tuple(
            token
            for before, token in pairwise(self.tokens)
            if token in BINDING and (before in ends or is_number(before))
        )

    @cached_property
    def normal_form(self) -> str:
        """Equal for two spellings of one problem: `5.0+13` and `13+5`. Held-out problems are told by its hash."""
        tokens = [
            _ROUND.get(token) or (shortest(Fraction(token)) if is_number(token) else token) for token in self.tokens
        ]
        operators = set(self.operators)
        if operators in ({"+"}, {"*"}) and "(" not in tokens and "%" not in tokens:
            operands, start = [], 0
            for place, token in enumerate(tokens, 1):
                if is_number(token):
                    operands.append("".join(tokens[start:place]))
                    start = place + 1
            return operators.pop().join(sorted(operands))
        return "".join(tokens)

    def value(self) -> Fraction | None:
        """The exact value; None where a divisor is zero."""
        try:
            return evaluate(self.tokens)
        except DividedByZero:
            return None

    def answer(self, decimals: int, always: bool = False) -> str:
        """The answer as text: exact, and rounded half-up to `decimals` where a division takes part, or `always`."""
        value = self.value()
        if value is None:
            return UNDEFINED
        return shortest(round_half_up(value, decimals) if always or "/" in self.tokens else value)

    def column(self, decimals: int) -> str:
        """The answer before needless zeros are dropped, as column arithmetic leaves it: `57.80+13.2` -> `71.00`."""
        answer = Fraction(self.answer(decimals))
        written = [len(number.partition(".")[2]) for number in self.numbers]
        places = decimals if "/" in self.operators else sum(written) if "*" in self.operators else max(written)
        return with_places(int(answer * 10**places), places)

    def facts(self) -> dict[str, Any]:
        """Operator (`mixed` for several), kind, digits of the longest operand, and carries or borrows of a + or -."""
        numbers, operators = list(map(Fraction, self.numbers)), self.operators
        facts: dict[str, Any] = {
            "operator": operators[0] if len(set(operators)) == 1 else "mixed",
            "kind": "integer" if all(n.denominator == 1 for n in numbers) and "%" not in self.tokens else "decimal",
            "digits": max(sum(map(str.isdigit, shortest(number))) for number in numbers),
        }
        if len(operators) > 1:
            facts["operations"] = len(operators)
        elif self.tokens == (*self.tokens[:1], *operators, *self.tokens[-1:]) and operators[0] in "+-":
            facts["carries"] = count_carries(*numbers, operators[0])
        return facts


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


def backwards(number: str) -> str:
    """The sign, then the digits from the last to the first: `-17.60` -> `-06.71`."""
    return "-" * number.startswith("-") + number.removeprefix("-")[::-1]


class ArithmeticSettings(NamedSettings):
    """What problems are drawn and how they are written."""

    operators: Annotated[dict[Operator, PositiveFloat], Field(min_length=1)] = Field(
        {"+": 3, "-": 3, "*": 1, "/": 1}, description="operators and how often each is drawn, or just a text: '+-'"
    )
    kinds: Annotated[list[Kind], Field(min_length=1)] = Field(
        ["integer", "decimal"], description="kinds of operands, drawn equally often"
    )
    maximum: int = Field(100, ge=1, description="largest operand")
    digits: int | None = Field(
        None, ge=1, description="largest number of digits before the point, all lengths equally often; replaces maximum"
    )
    decimals: int = Field(2, ge=1, description="most decimals of an operand, and the decimals of a rounded quotient")
    operand_decimals: int | None = Field(
        None, ge=1, description="most decimals of an operand, all numbers of them equally often; null: as `decimals`"
    )
    num_operands: PositiveInt | dict[PositiveInt, PositiveFloat] = Field(
        2, description="operands in a problem, or several numbers of them and how often each is drawn: {2: 3, 5: 1}"
    )
    brackets: float = Field(0, ge=0, le=1, description="share of problems with brackets; outer ones may be square")
    negatives: float = Field(0, ge=0, le=1, description="share of problems in which operands have signs: 3*-2")
    percents: float = Field(0, ge=0, le=1, description="share of problems in which operands are percent: 640%")
    fractions: float = Field(0, ge=0, le=1, description="share of problems in which operands are fractions: (3/4)")
    powers: float = Field(0, ge=0, le=1, description="share of problems in which operands are powers: 12^3")
    most_exponent: int = Field(3, ge=2, le=100, description="largest exponent of a power")
    balance_carries: bool = Field(
        False,
        description="draw the carries or borrows of a sum or difference of two numbers, each number equally often",
    )
    trailing_zeros: float = Field(
        0.3, ge=0, le=1, description="share of decimal operands written with all their decimals: 54.90, not 54.9"
    )
    equals_sign: Literal["always", "sometimes", "never"] = Field("sometimes", description="problems end in '='")
    round_all: bool = Field(False, description="round every answer to `decimals`, not quotients alone")
    working_decimals: int | None = Field(
        None,
        ge=0,
        description="decimals of quotients, and with round_all of products, within steps; null: one more than "
        "`decimals`, and all of products",
    )
    longest_working: int | None = Field(
        None, ge=1, description="characters of the longest working that is learned; longer ones are drawn again"
    )
    echo: bool = Field(True, description="the answer repeats the problem: 1+2=3, not 3")
    style: Literal["direct", "draft", "steps"] = Field(
        "steps",
        description="draft: write the digits from the last to the first, then the answer: 19+23=24|42; steps: before "
        "that, the working of a product or a quotient, 12*34=840;0630:8040;804|408",
    )
    prompt_words: bool = Field(False, description="put one of eight pairs of Chinese words around the problem")
    zero_divisors: bool = Field(False, description=f"draw divisions by zero, answered '{UNDEFINED}'")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of all problems kept out of training")

    @field_validator("operators", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """'+-×' means + - and * equally often."""
        value = dict.fromkeys(value, 1.0) if isinstance(value, str | list) else value
        return {plain(str(key)): weight for key, weight in value.items()} if isinstance(value, dict) else value


class Arithmetic(Task):
    """Problems in + - * / on integers and decimals, with exact answers."""

    Settings = ArithmeticSettings
    settings: ArithmeticSettings

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """Draw a problem of the split and write it as the settings say."""
        settings = self.settings
        problem = self.draw(rng, split)
        ending = {"always": "=", "never": ""}.get(settings.equals_sign)
        question = problem.text + (rng.choice(("", "=")) if ending is None else ending)
        target = self.write_target(f"{problem.text}=", problem)
        if settings.prompt_words:
            before, after = rng.choice(PROMPT_WORDS)
            question = f"{before}{question}\n{after}"
        return Example(question, target, problem.facts())

    def write_target(self, said: str, problem: Problem) -> str:
        """The target of a problem that was put as `said`."""
        answer = self.answer(problem)
        working = ""
        if answer != UNDEFINED and self.settings.style == "steps":
            working = self.steps(problem)[0]
        elif answer != UNDEFINED and self.settings.style == "draft":
            working = backwards(self.draft(problem)) + DRAFT_MARK
        return (said if self.settings.echo else "") + working + answer

    def answer(self, problem: Problem) -> str:
        """The right answer, as the settings round it."""
        return problem.answer(self.settings.decimals, self.settings.round_all)

    def steps(self, problem: Problem) -> tuple[str, bool]:
        """The working up to the answer, and whether it leads there: decimals that are cut may be missing in the end."""
        settings = self.settings
        places = settings.decimals + 1 if settings.working_decimals is None else settings.working_decimals
        kept = settings.working_decimals if settings.round_all else None
        try:
            written, value = expression_steps(items_of(problem.tokens), places, kept)
        except DividedByZero:  # a divisor of which all decimals are cut
            return "", False
        if settings.round_all or "/" in problem.tokens:
            value = value.rounded(settings.decimals)
        right = Fraction(value.units, 10**value.places) == Fraction(self.answer(problem))
        return f"{written}{value.backwards}{DRAFT_MARK}", right

    def is_learnable(self, problem: Problem) -> bool:
        """Whether the working is right and not too long. What is held out is not chosen by that."""
        if problem.value() is None:
            return True
        written, right = self.steps(problem)
        longest = self.settings.longest_working
        return right and (longest is None or len(written) <= longest)

    def draft(self, problem: Problem) -> str:
        """The number that a draft holds, before it is written backwards.

        Backwards, every step is local: the sign, then the last digit of the column, which needs no carry, then each
        further one, which needs only the digit before it. A small model learns to write this many times faster than
        the first digit first, which needs all carries at once. Zeros at the end stay, so that there is no exception.
        """
        return problem.column(self.settings.decimals)

    def draw(self, rng: random.Random, split: Split) -> Problem:
        """Draw problems until one belongs to the split and divides by nothing forbidden.

        Raises:
            UserError: the settings leave (nearly) no such problem.
        """
        settings = self.settings
        for _ in range(_MOST_DRAWS):
            kind = rng.choice(settings.kinds)
            problem = self.draw_problem(rng, kind)
            if kind == "decimal" and not any("." in number for number in problem.numbers) and "%" not in problem.tokens:
                continue
            if split_of(problem.normal_form, settings.held_out) != split:
                continue
            if not settings.zero_divisors and problem.value() is None:
                continue
            if split == "train" and settings.style == "steps" and not self.is_learnable(problem):
                continue
            return problem
        raise UserError(
            f"task: none of {_MOST_DRAWS} problems drawn belongs to the {split} split: these settings allow too few. "
            "Raise task.maximum, task.digits or task.held_out, or add operators or kinds."
        )

    def draw_problem(self, rng: random.Random, kind: Kind) -> Problem:
        """Draw any problem."""
        settings = self.settings
        count = settings.num_operands
        if isinstance(count, dict):
            count = rng.choices(list(count), list(count.values()))[0]
        adorned = [name for name in _ADORNED if rng.random() < getattr(settings, name)]
        operators = rng.choices(list(settings.operators), list(settings.operators.values()), k=count - 1)
        if settings.balance_carries and count == 2 and operators[0] in "+-":
            numbers = self.draw_column(rng, kind, operators[0])
        else:
            numbers = [self.draw_operand(rng, kind) for _ in range(count)]
        operands = [self.adorn(rng, number, adorned) for number in numbers]
        tokens = self.join(rng, operands, operators, rng.random() < settings.brackets)
        return Problem(tuple(tokens))

    def adorn(self, rng: random.Random, number: str, adorned: list[str]) -> list[str]:
        """Make a number negative, a percentage, a fraction or a power; three in ten for each that is `adorned`."""
        tokens = [number]
        for name in adorned:
            if rng.random() >= _ADORNED_SHARE:
                continue
            if name == "negatives":
                tokens = ["-", *tokens]
            elif name == "percents":
                tokens = [*tokens, "%"]
            elif name == "powers" and len(tokens) == 1:
                tokens = [*tokens, "^", str(rng.randint(2, self.settings.most_exponent))]
            elif name == "fractions" and len(tokens) == 1:
                tokens = ["(", number, "/", str(rng.randint(2, 99)), ")"]
        return tokens

    def join(
        self, rng: random.Random, operands: list[list[str]], operators: list[str], bracketed: bool, depth: int = 0
    ) -> list[str]:
        """Operands and operators as one expression, with brackets around parts of it."""
        count = len(operands)
        if bracketed and count > 2 and depth < 2:
            length = rng.randint(2, min(count - 1, 5))
            start = rng.randint(0, count - length)
            deeper = length > 2 and rng.random() < 0.4
            inner = self.join(
                rng, operands[start : start + length], operators[start : start + length - 1], deeper, depth + 1
            )
            square = "(" in inner and "[" not in inner and rng.random() < 0.7
            group = ["[" if square else "(", *inner, "]" if square else ")"]
            operands = [*operands[:start], group, *operands[start + length :]]
            operators = [*operators[:start], *operators[start + length - 1 :]]
            return self.join(rng, operands, operators, rng.random() < 0.4, depth + 1)
        tokens = operands[0]
        for operator, operand in zip(operators, operands[1:], strict=True):
            tokens = [*tokens, operator, *operand]
        return tokens

    def draw_operand(self, rng: random.Random, kind: Kind) -> str:
        """One non-negative operand as text. Three decimals in ten have fewer places than the most."""
        settings = self.settings
        places = 0
        if kind == "decimal" and settings.operand_decimals is not None:
            places = rng.randint(1, settings.operand_decimals) if rng.random() < 0.6 else 0
        elif kind == "decimal":
            places = settings.decimals if rng.random() < 0.7 else rng.randint(0, settings.decimals)
        limit = settings.maximum
        if settings.digits is not None:
            limit = 10 ** rng.randint(1, settings.digits) - 1
        units = rng.randint(0, limit * 10**places)
        text = shortest(Fraction(units, 10**places))
        if places and rng.random() < settings.trailing_zeros:
            text = with_places(units, places)
        return text

    def score(self, example: Example, completion: str) -> Score:
        """Read the one number (or `undefined`) that ends each text and compare their exact values.

        A foreign target without a number is compared as a text.
        """
        target, answer = read_answer(example.target), read_answer(completion)
        if target is None:
            return Score("exact" if completion.strip() == example.target.strip() else "wrong", completion.strip())
        if answer is None:
            return Score("unparseable", answer)
        if answer == target:
            return Score("exact", answer)
        same = UNDEFINED not in (answer, target) and Decimal(answer) == Decimal(target)
        return Score("equal" if same else "wrong", answer)

    def holds_out(self, prompt: Prompt) -> bool:
        """Whether the problem in a text, or in the last question of several, is of the held-out split."""
        asked = [prompt] if isinstance(prompt, str) else [str(t["content"]) for t in prompt if t["role"] == "user"]
        problem = Problem.parse(asked[-1]) if asked else None
        return problem is not None and split_of(problem.normal_form, self.settings.held_out) == "held_out"

    def describe(self, prompt: Prompt, target: str) -> dict[str, Any]:
        """Facts about the problem found in the prompt of a foreign record."""
        problem = Problem.parse(prompt) if isinstance(prompt, str) else None
        return problem.facts() if problem else {}


def read_answer(text: str) -> str | None:
    """The one number after the last `=` or draft of a text, as written; None where there is none, or several.

    `25.31+86.35=111.66` -> `111.66`; `19+23=24|42` -> `42`; `答案是111.66。` -> `111.66`; `88, or 90` -> None. What is
    still to be worked out is no number: `2+3`, `6/8`, `1e5`, `5%` -> None.
    """
    tail = plain(text).rpartition("=")[2].rpartition(DRAFT_MARK)[2].strip()
    if tail.endswith(STEP):  # cut off within the working
        return None
    if _NO_NUMBER.search(tail):
        return None
    if tail.startswith("-"):
        tail = "-" + tail[1:].lstrip()
    numbers = set(_SIGNED_NUMBER.findall(tail))
    if len(numbers) == 1:
        return numbers.pop().replace(",", "")
    return UNDEFINED if not numbers and UNDEFINED in tail.lower() else None

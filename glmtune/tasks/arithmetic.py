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
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator

from glmtune.config import NamedSettings
from glmtune.records import Prompt
from glmtune.runtime import UserError
from glmtune.steps import STEP, product_steps, quotient_steps
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
_EXPRESSION = re.compile(rf"{_START}-?(?:{_NUMBER})(?:\s*[-+*/]\s*-?(?:{_NUMBER}))+")
_STEP = re.compile(rf"(-?(?:{_NUMBER}))\s*([-+*/]?)\s*")  # an operand of an expression, and the operator behind it
_SIGNED_NUMBER = re.compile(rf"{_START}-?(?:{_NUMBER})(?![.,]?\d)")
_NO_NUMBER = re.compile(r"\d\s*(?:[-+*/]|e[-+]?)\s*-?\.?\d|\d\s*[%^²³¹⁰-⁹]", re.IGNORECASE)  # 2+3, 6/8, 1e5, 2^3, 5%
_MOST_DIGITS = 1000  # of an operand in a foreign text; Python itself refuses to read more than 4300
_MOST_DRAWS = 100_000  # for one problem


def plain(text: str) -> str:
    """The text with ASCII digits and operators: `５７．８×２` -> `57.8*2`."""
    return text.translate(_LOOKALIKES)


def shortest(value: Fraction) -> str:
    """Decimal notation of an exactly representable value without needless zeros: `146.40` -> `146.4`.

    Raises:
        ValueError: the value has no finite decimal notation.
    """
    places = 0
    while 10**places % value.denominator:
        places += 1
        if places > value.denominator.bit_length():
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


@dataclass(frozen=True)
class Problem:
    """`operands[0] operators[0] operands[1] ...`, operands as they are written."""

    operands: tuple[str, ...]
    operators: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Problem | None:
        """The first expression in a text, or None: `计算: ５７.8 × 2 =` -> 57.8 * 2."""
        found = _EXPRESSION.search(plain(text))
        steps = _STEP.findall(found.group()) if found else []
        operands = tuple(operand.replace(",", "") for operand, _ in steps)
        if not operands or max(map(len, operands)) > _MOST_DIGITS:
            return None
        return cls(operands, tuple(operator for _, operator in steps[:-1]))

    @property
    def text(self) -> str:
        """As a prompt has it: `57.84+13.64`."""
        pieces = [self.operands[0]]
        for operator, operand in zip(self.operators, self.operands[1:], strict=True):
            pieces += [operator, operand]
        return "".join(pieces)

    @property
    def normal_form(self) -> str:
        """Equal for two spellings of one problem: `5.0+13` and `13+5`. Held-out problems are told by its hash."""
        operands = [shortest(Fraction(operand)) for operand in self.operands]
        if set(self.operators) in ({"+"}, {"*"}):
            operands.sort()
        return Problem(tuple(operands), self.operators).text

    def value(self) -> Fraction | None:
        """The exact value, products and quotients first; None where a divisor is zero."""
        total, term = Fraction(0), Fraction(self.operands[0])
        for operator, operand in zip(self.operators, map(Fraction, self.operands[1:]), strict=True):
            if operator == "/" and operand == 0:
                return None
            if operator in "+-":
                total, term = total + term, operand if operator == "+" else -operand
            else:
                term = term * operand if operator == "*" else term / operand
        return total + term

    def answer(self, decimals: int) -> str:
        """The answer as text: exact, and rounded half-up to `decimals` only where a division takes part."""
        value = self.value()
        if value is None:
            return UNDEFINED
        return shortest(round_half_up(value, decimals) if "/" in self.operators else value)

    def column(self, decimals: int) -> str:
        """The answer before needless zeros are dropped, as column arithmetic leaves it: `57.80+13.2` -> `71.00`."""
        answer = Fraction(self.answer(decimals))
        written = [len(operand.partition(".")[2]) for operand in self.operands]
        places = decimals if "/" in self.operators else sum(written) if "*" in self.operators else max(written)
        return with_places(int(answer * 10**places), places)

    def facts(self) -> dict[str, Any]:
        """Operator (`mixed` for several), kind, digits of the longest operand, and carries or borrows of a + or -."""
        facts: dict[str, Any] = {
            "operator": self.operators[0] if len(set(self.operators)) == 1 else "mixed",
            "kind": "integer" if all(Fraction(o).denominator == 1 for o in self.operands) else "decimal",
            "digits": max(sum(map(str.isdigit, shortest(Fraction(o)))) for o in self.operands),
        }
        if len(self.operands) == 2 and self.operators[0] in "+-":
            left, right = map(Fraction, self.operands)
            facts["carries"] = count_carries(left, right, self.operators[0])
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
    num_operands: int = Field(2, ge=2, description="operands in a problem; * and / bind before + and -")
    trailing_zeros: float = Field(
        0.3, ge=0, le=1, description="share of decimal operands written with all their decimals: 54.90, not 54.9"
    )
    equals_sign: Literal["always", "sometimes", "never"] = Field("sometimes", description="problems end in '='")
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
        answer = problem.answer(self.settings.decimals)
        drafted = self.settings.style != "direct" and answer != UNDEFINED
        draft = backwards(self.draft(problem)) + DRAFT_MARK if drafted else ""
        steps = self.steps(problem) if self.settings.style == "steps" and answer != UNDEFINED else ""
        return (said if self.settings.echo else "") + steps + draft + answer

    def steps(self, problem: Problem) -> str:
        """The working of a product or a quotient of two numbers; sums and differences need none beside their draft."""
        if len(problem.operands) != 2 or problem.operators[0] in "+-" or "-" in "".join(problem.operands):
            return ""
        if problem.operators[0] == "*":
            return product_steps(*problem.operands)
        return quotient_steps(*problem.operands, self.settings.decimals)

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
            operands = tuple(self.draw_operand(rng, kind) for _ in range(settings.num_operands))
            operators = rng.choices(list(settings.operators), list(settings.operators.values()), k=len(operands) - 1)
            problem = Problem(operands, tuple(operators))
            if kind == "decimal" and not any("." in operand for operand in operands):
                continue
            if not settings.zero_divisors and problem.value() is None:
                continue
            if split_of(problem.normal_form, settings.held_out) == split:
                return problem
        raise UserError(
            f"task: none of {_MOST_DRAWS} problems drawn belongs to the {split} split: these settings allow too few. "
            "Raise task.maximum, task.digits or task.held_out, or add operators or kinds."
        )

    def draw_operand(self, rng: random.Random, kind: Kind) -> str:
        """One non-negative operand as text. Three decimals in ten have fewer places than the most."""
        settings = self.settings
        places = 0
        if kind == "decimal":
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

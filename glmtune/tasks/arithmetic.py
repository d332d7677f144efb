"""Integer and decimal arithmetic, generated and checked exactly: the worked task.

A problem is `57.84+13.64=`, its target `57.84+13.64=71.48`. Numbers are `Fraction`s and `Decimal`s throughout; a float
never makes or checks an answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator

from glmtune.arithmetic.expressions import (
    DividedByZero,
    ExpressionError,
    evaluate,
    is_endless,
    round_half_up,
    shortest,
    with_places,
)
from glmtune.arithmetic.problems import NUMBER, NUMBER_START, UNDEFINED, Problem, plain, without_commas
from glmtune.arithmetic.working import STEP, expression_steps, items_of
from glmtune.config import NamedSettings
from glmtune.examples import Example, Split, split_of
from glmtune.messages import Prompt
from glmtune.runtime import UserError
from glmtune.scoring import Score
from glmtune.tasks import Reply, Task

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

_SIGNED_NUMBER = re.compile(rf"{NUMBER_START}-?(?:{NUMBER})(?![.,]?\d)")
_NO_NUMBER = re.compile(r"\d\s*(?:[-+*/]|e[-+]?)\s*-?\.?\d|\d\s*[%^²³¹⁰-⁹]", re.IGNORECASE)  # 2+3, 6/8, 1e5, 2^3, 5%
_MOST_BITS = 400  # of a calculator's result, some 120 digits
_CALL = re.compile(r'calculate\("([^"\n]{1,1000})"\)')
_MOST_CALLED = 1000  # characters of a called expression
_MOST_OPERANDS = 100  # the steps of more take long: each step writes what is left again
_MOST_DRAWS = 100_000  # for one problem
_ADORNED = ("negatives", "percents", "powers", "fractions")


def backwards(number: str) -> str:
    """The sign, then the digits from the last to the first: `-17.60` -> `-06.71`."""
    return "-" * number.startswith("-") + number.removeprefix("-")[::-1]


class ArithmeticSettings(NamedSettings):
    """What problems are drawn and how they are written."""

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
        Annotated[int, Field(ge=2, le=_MOST_OPERANDS)]
        | Annotated[dict[Annotated[int, Field(ge=2, le=_MOST_OPERANDS)], PositiveFloat], Field(min_length=1)]
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
    equals_sign: Literal["always", "sometimes", "never"] = Field("sometimes", description="problems end in '='")
    round_all: bool = Field(False, description="round every answer to `decimals`, not quotients alone")
    working_decimals: int | None = Field(
        None,
        ge=0,
        description="decimals of quotients, and with round_all of products, within steps; null: one more than "
        "`decimals`, and all of products",
    )
    longest_working: int | None = Field(
        None,
        ge=1,
        description="characters of the longest working that is learned, counted from the first `=`; problems with a "
        "longer one are drawn again",
    )
    echo: bool = Field(True, description="the answer repeats the problem: 1+2=3, not 3")
    style: Literal["direct", "draft", "steps", "tool"] = Field(
        "steps",
        description="draft: write the digits from the last to the first, then the answer: 19+23=24|42; steps: before "
        "that, the working, one operation after the other: 19+23=91+32:240;24|42; tool: call the calculator, "
        'calculate("19+23"), and answer with its result',
    )
    unfaithful: Literal["flag", "refuse"] = Field(
        "flag",
        description="with style=tool, answers without the calculator, or with another problem than was asked: counted, "
        "or refused",
    )
    prompt_words: bool = Field(False, description="put one of eight pairs of Chinese words around the problem")
    zero_divisors: bool = Field(False, description=f"draw divisions by zero, answered '{UNDEFINED}'")
    exclude: str | None = Field(
        None,
        description="text file of problems, one a line, that are never learned; needless zeros and "
        "brackets, their shape and the order within a pure sum or product do not count",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="share of all problems kept out of training")

    @field_validator("operators", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """'+-×' means + - and * equally often."""
        if not value:
            raise ValueError("name at least one operator, such as task.operators='+-'")
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
        if settings.prompt_words:
            before, after = rng.choice(PROMPT_WORDS)
            question = f"{before}{question}\n{after}"
        if settings.style == "tool":
            return self.turn(rng, split, question, problem)
        return Example(question, self.write_target(f"{problem.text}=", problem), problem.facts())

    def turn(self, rng: random.Random, split: Split, question: str, problem: Problem) -> Example:
        """The call of the calculator or, as often, the answer after it; what is held out asks for both in turn."""
        call, answer = f'calculate("{problem.text}")', self.answer(problem)
        if split == "held_out":
            return Example(question, f"{call}\n{answer}", problem.facts())
        if rng.random() < 0.5:
            return Example(question, call, problem.facts())
        turns = (("user", question), ("assistant", call), ("observation", self.calculated(problem.text)))
        return Example([{"role": role, "content": text} for role, text in turns], answer, problem.facts())

    def calculated(self, expression: str) -> str:
        """The calculator's result, exact but for what the settings round and for what never ends; or what is wrong."""
        expression = without_commas(plain(expression))
        try:
            value = evaluate(expression)
        except DividedByZero:
            return UNDEFINED
        except ExpressionError as error:
            return f"error: {error}"
        rounded = self.settings.round_all or "/" in expression or is_endless(value)
        value = round_half_up(value, self.settings.decimals) if rounded else value
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
            return "error: the result has too many digits"
        return shortest(value)

    def reply(self, prompt: Prompt, completion: str) -> Reply | None:
        """What the calculator says, if it is called."""
        if self.settings.style != "tool":
            return None
        called = _CALL.match(completion.strip())
        if called is None:
            is_answered = not isinstance(prompt, str) and prompt[-1]["role"] != "user"
            if is_answered or self.settings.unfaithful == "flag":
                return None
            return Reply("refused: there is no call of the calculator that can be read", ends=True)
        if called.end() < len(completion.strip()):
            return Reply("refused: a call stands alone, its result comes from the calculator", ends=True)
        if self.settings.unfaithful == "refuse" and not self.is_faithful(prompt, completion):
            return Reply("refused: the call is not what was asked", ends=True)
        return Reply(self.calculated(called[1]))

    def remarks(self, prompt: Prompt, completion: str) -> dict[str, Any]:
        """Whether the calculator was asked what the user asked."""
        return {"faithful": self.is_faithful(prompt, completion)} if self.settings.style == "tool" else {}

    def is_faithful(self, prompt: Prompt, completion: str) -> bool:
        """Whether a completion calls the calculator, and each time with the problem that was asked."""
        asked = Problem.parse(question_in(prompt))
        calls = [_CALL.fullmatch(line.strip()) for line in completion.splitlines() if line.startswith("calculate")]
        given = [Problem.exactly(call[1]) if call else None for call in calls]
        return asked is not None and bool(given) and all(p and p.normal_form == asked.normal_form for p in given)

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
        except ExpressionError:  # a divisor of which all decimals are cut; an exponent for which there are no steps
            return "", False
        if settings.round_all or "/" in problem.tokens:
            value = value.rounded(settings.decimals)
        right = Fraction(value.units, 10**value.places) == Fraction(self.answer(problem))
        return f"{written}{value.backwards}{DRAFT_MARK}", right

    @cached_property
    def excluded(self) -> frozenset[str]:
        """Normal forms of what `task.exclude` keeps out.

        Raises:
            UserError: no such file, or lines in it that are no problems.
        """
        if self.settings.exclude is None:
            return frozenset()
        try:
            lines = Path(self.settings.exclude).expanduser().read_text("utf-8").splitlines()
        except UnicodeError as error:
            raise UserError(f"task.exclude={self.settings.exclude}: is no text in UTF-8. Save it as such.") from error
        except OSError as error:
            raise UserError(
                f"task.exclude={self.settings.exclude}: cannot be read: {error.strerror}. Name a text file of "
                "problems, one a line, or leave the setting out."
            ) from error
        problems = [(number, Problem.exactly(line)) for number, line in enumerate(lines, 1) if line.strip()]
        strange = [number for number, problem in problems if problem is None]
        if strange:
            raise UserError(
                f"task.exclude={self.settings.exclude}: line {strange[0]} is no problem of arithmetic: "
                f"{lines[strange[0] - 1][:60]!r}. Write one a line, as 3*(4+5)=."
            )
        return frozenset(problem.normal_form for _, problem in problems if problem is not None)

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
        too_long = 0
        for _ in range(_MOST_DRAWS):
            kind = rng.choice(settings.kinds)
            problem = self.draw_problem(rng, kind)
            if kind == "decimal" and not any("." in number for number in problem.numbers) and "%" not in problem.tokens:
                continue
            if split_of(problem.normal_form, settings.held_out) != split:
                continue
            try:
                if not settings.zero_divisors and problem.value() is None:
                    continue
            except ExpressionError:  # too large to be worked out
                continue
            if settings.style == "tool" and len(problem.text) > _MOST_CALLED:
                continue
            if split == "train" and problem.normal_form in self.excluded:
                continue
            if split == "train" and settings.style == "steps" and not self.is_learnable(problem):
                too_long += 1
                continue
            return problem
        if 2 * too_long > _MOST_DRAWS:
            raise UserError(
                f"task: of {_MOST_DRAWS} problems drawn, {too_long} have a working that is too long to be learned or "
                "does not lead to the answer; no other is allowed. Raise task.longest_working or task.working_decimals."
            )
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
            shared: int | None = None
            if settings.digits is not None and settings.same_digits and rng.random() < settings.same_digits:
                shared = rng.randint(1, settings.digits)
            numbers = [self.draw_operand(rng, kind, shared) for _ in range(count)]
        operands = [self.adorn(rng, number, adorned) for number in numbers]
        tokens = self.join(rng, operands, operators, rng.random() < settings.brackets)
        return Problem(tuple(tokens))

    def draw_column(self, rng: random.Random, kind: Kind, operator: str) -> list[str]:
        """Two numbers, of a difference the smaller last, with any number of carries or borrows equally often."""
        settings = self.settings
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

    def adorn(self, rng: random.Random, number: str, adorned: list[str]) -> list[str]:
        """Make a number negative, a percentage, a fraction or a power; four in ten for each that is `adorned`."""
        tokens = [number]
        for name in adorned:
            if rng.random() >= 0.4:
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
        self, rng: random.Random, operands: list[list[str]], operators: Sequence[str], bracketed: bool, depth: int = 0
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
            if self.settings.signed_brackets and rng.random() < self.settings.signed_brackets:
                group = ["-", *group]
            operands = [*operands[:start], group, *operands[start + length :]]
            operators = [*operators[:start], *operators[start + length - 1 :]]
            return self.join(rng, operands, operators, rng.random() < 0.4, depth + 1)
        tokens = operands[0]
        for operator, operand in zip(operators, operands[1:], strict=True):
            tokens = [*tokens, operator, *operand]
        return tokens

    def draw_operand(self, rng: random.Random, kind: Kind, digits: int | None = None) -> str:
        """One non-negative operand as text. Three decimals in ten have fewer places than the most.

        Args:
            rng: where chance comes from.
            kind: integer or decimal.
            digits: before the point; None: as the settings say.
        """
        settings = self.settings
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

    def score(self, example: Example, completion: str) -> Score:
        """Read the one number (or `undefined`) that ends each text and compare their exact values.

        A foreign target without a number is compared as a text.
        """
        if self.settings.style == "tool":
            _, _, answered = completion.strip().rpartition("\n")  # a call without a result is no answer
            score = self.compare(example.target.rpartition("\n")[2], "" if _CALL.fullmatch(answered) else answered)
            return replace(score, faithful=self.is_faithful(example.prompt, completion))
        return self.compare(example.target, completion)

    def compare(self, target: str, completion: str) -> Score:
        """Compare the values that two texts end with; with `round_all`, after rounding both."""
        wanted, answer = read_answer(target), read_answer(completion)
        if wanted is None:
            return Score("exact" if completion.strip() == target.strip() else "wrong", completion.strip())
        if answer is None:
            return Score("unparseable", answer)
        if answer == wanted:
            return Score("exact", answer)
        if UNDEFINED in (answer, wanted):
            return Score("wrong", answer)
        same = Decimal(answer) == Decimal(wanted)
        if self.settings.round_all and not same:
            given, right = (round_half_up(Fraction(text), self.settings.decimals) for text in (answer, wanted))
            same = given == right
        return Score("equal" if same else "wrong", answer)

    def holds_out(self, prompt: Prompt) -> bool:
        """Whether the problem in a text, or in the last question of several, is held out or excluded."""
        problem = Problem.parse(question_in(prompt))
        if problem is None:
            return False
        form = problem.normal_form
        return form in self.excluded or split_of(form, self.settings.held_out) == "held_out"

    def describe(self, prompt: Prompt, target: str) -> dict[str, Any]:
        """Facts about the problem found in the prompt of a foreign record."""
        problem = Problem.parse(prompt) if isinstance(prompt, str) else None
        return problem.facts() if problem else {}


def question_in(prompt: Prompt) -> str:
    """A text, or the last of several that a user says."""
    if isinstance(prompt, str):
        return prompt
    return next((str(turn["content"]) for turn in reversed(prompt) if turn["role"] == "user"), "")


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

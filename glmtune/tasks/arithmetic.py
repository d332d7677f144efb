"""Integer and decimal arithmetic, generated and checked exactly: the worked task.

A problem is `57.84+13.64=`, its target `57.84+13.64=71.48`. Numbers are `Fraction`s and `Decimal`s throughout; a float
never makes or checks an answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from glmtune.arithmetic.asking import problem_asked
from glmtune.arithmetic.checking import StepFault, first_fault
from glmtune.arithmetic.drawing import DrawingSettings, draw_problem
from glmtune.arithmetic.expressions import UNDEFINED, is_number, round_half_up
from glmtune.arithmetic.problems import Problem
from glmtune.arithmetic.reading import read_answer
from glmtune.arithmetic.solutions import Solution
from glmtune.arithmetic.working import DRAFT_MARK
from glmtune.config import NamedSettings
from glmtune.examples import Example, Split, split_of
from glmtune.files import check_named
from glmtune.messages import Message, Prompt, ToolCall, as_messages, make_tool_call, text_in
from glmtune.runtime import UserError
from glmtune.scoring import Score
from glmtune.tasks import Axis, Task, up_to
from glmtune.tools import Tool, answer_call
from glmtune.tools.calculator import MOST_CHARACTERS, Calculator, CalculatorSettings

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

OPERATORS = {"+": "+ addition", "-": "− subtraction", "*": "× multiplication", "/": "÷ division"}
AXES = (
    Axis("operator", labels=OPERATORS, across="kind"),
    Axis("kind", "kind of numbers", {"integer": "integer", "decimal": "decimal"}),
    Axis("left_digits", "digits of the first number", across="right_digits", group=up_to(8)),
    Axis("right_digits", "digits of the second number", group=up_to(8)),
)

MOST_DRAWS = 100_000  # for one problem
MOST_WORKED = 200  # characters of a foreign problem that is worked out to check an answer
MOST_POWER = 10  # exponents in one, and of numbers with up to as many digits


class ArithmeticSettings(DrawingSettings, NamedSettings):
    """What problems are drawn and how they are written."""

    equals_sign: Literal["always", "sometimes", "never"] = Field("sometimes", description="problems end in '='")
    round_all: bool = Field(False, description="round every answer to `decimals`, not quotients alone")
    working_decimals: int | None = Field(
        None,
        ge=0,
        description="decimals of quotients, and with round_all of products, within steps; null: one more than "
        "`decimals`, and all of products",
    )
    inner_decimals: int | None = Field(
        None,
        ge=0,
        description="the same within brackets and beside * and /, where a result is multiplied further, and what was "
        "cut with it; null: as working_decimals",
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
    check_steps: bool = Field(
        False,
        description="with style=steps, find the first wrong step of each working and what is wrong with it: reports "
        "group failures by it, predictions tell it (`first_fault`)",
    )
    prompt_words: bool = Field(False, description="put one of eight pairs of Chinese words around the problem")
    exclude: str | None = Field(
        None,
        description="text file of problems, one a line, that are never learned; needless zeros and "
        "brackets, their shape and the order within a pure sum or product do not count",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="share of all problems kept out of training")

    @field_validator("check_steps")
    @classmethod
    def _has_steps(cls, value: bool, info: ValidationInfo) -> bool:
        style = info.data.get("style", "steps")
        if value and style != "steps":
            raise ValueError(f"there are no steps with task.style={style}; set task.style=steps, or leave it out")
        return value


class Arithmetic(Task):
    """Problems in + - * / on integers and decimals, with exact answers."""

    Settings = ArithmeticSettings
    settings: ArithmeticSettings
    axes = AXES

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """Draw a problem of the split and write it as the settings say; with a tool, learn a turn of it."""
        example = self.pose(rng, split)
        return self.turn(rng, example) if self.settings.style == "tool" and split == "train" else example

    def pose(self, rng: random.Random, split: Split = "train") -> Example:
        """Draw a problem of the split as it is asked."""
        settings = self.settings
        solution = self.draw(rng, split)
        problem = solution.problem
        ending = {"always": "=", "never": ""}.get(settings.equals_sign)
        question = problem.text + (rng.choice(("", "=")) if ending is None else ending)
        if settings.prompt_words:
            before, after = rng.choice(PROMPT_WORDS)
            question = f"{before}{question}\n{after}"
        if settings.style == "tool":
            return Example(question, solution.answer, problem.facts(), tools=self.definitions)
        return Example(question, self.write_target(f"{problem.text}=", solution), problem.facts())

    def turn(self, rng: random.Random, example: Example) -> Example:
        """Return the call of the calculator or, as often, the answer after it."""
        problem = Problem.parse(question_in(example.prompt))
        assert problem is not None, "it is asked"
        call = make_tool_call(Calculator.name, {"expression": problem.text})
        if rng.random() < 0.5:
            return replace(example, target="", tool_calls=[call])
        calling = {"role": "assistant", "content": "", "tool_calls": [call]}
        return replace(example, prompt=[*as_messages(example.prompt), calling, answer_call(self.tools, call)])

    @cached_property
    def tools(self) -> Sequence[Tool]:  # type: ignore[override]
        """With style=tool, the calculator, which rounds as answers are rounded."""
        settings = self.settings
        if settings.style != "tool":
            return ()
        return (Calculator(CalculatorSettings(decimals=settings.decimals, round_all=settings.round_all)),)

    @property
    def final_marker(self) -> str | None:
        """Return what stands before the answer: `|` behind a working or a draft, `=` behind a problem."""
        if self.settings.style in ("steps", "draft"):
            return DRAFT_MARK
        return "=" if self.settings.style == "direct" and self.settings.echo else None

    @cached_property
    def definitions(self) -> Sequence[dict[str, Any]]:
        """What models are told of the tools."""
        return [tool.definition() for tool in self.tools]

    def refuses(self, prompt: Prompt, turn: Message) -> str | None:
        """Refuse results that the model makes up and, as `unfaithful` says, what was not asked of the calculator."""
        calls = turn.get("tool_calls", ())
        if self.settings.style != "tool":
            return None
        if not calls and text_in(turn["content"]).lstrip().startswith(f'{Calculator.name}("'):
            return "a call stands alone, its result comes from the calculator"
        if self.settings.unfaithful == "flag":
            return None
        if calls:
            return None if self.is_faithful(prompt, calls) else "the call is not what was asked"
        is_answered = as_messages(prompt)[-1]["role"] == "tool"
        return None if is_answered else "there is no call of the calculator that can be read"

    def measure(self, prompt: Prompt, completion: str, calls: Sequence[ToolCall] = ()) -> dict[str, float]:
        """Return `faithful_calls`: whether the calculator was asked what the user asked; with style=tool."""
        return {"faithful_calls": self.is_faithful(prompt, calls)} if self.settings.style == "tool" else {}

    def is_faithful(self, prompt: Prompt, calls: Sequence[ToolCall]) -> bool:
        """Whether the calculator is called, and each time with the problem that was asked."""
        asked = Problem.parse(question_in(prompt))
        given = [Problem.exactly(str(call["function"]["arguments"].get("expression"))) for call in calls]
        return asked is not None and bool(given) and all(p and p.normal_form == asked.normal_form for p in given)

    def solve(self, problem: Problem) -> Solution:
        """Return the answer and the working of a problem, as the settings round them."""
        settings = self.settings
        return Solution(
            problem, settings.decimals, settings.round_all, settings.working_decimals, settings.inner_decimals
        )

    def write_target(self, said: str, solution: Solution) -> str:
        """Return the target of a problem that was put as `said`."""
        style = self.settings.style
        working = solution.working if style == "steps" else solution.draft if style == "draft" else ""
        return (said if self.settings.echo else "") + working + solution.answer

    def draw(self, rng: random.Random, split: Split) -> Solution:
        """Draw problems until one belongs to the split.

        Of what is learned, the working must be right and not too long; what is held out is not chosen by that.

        Raises:
            UserError: the settings leave (nearly) no such problem.
        """
        too_long = 0
        for _ in range(MOST_DRAWS):
            problem = draw_problem(rng, self.settings)
            if problem is None or not self.belongs(problem, split):
                continue
            solution = self.solve(problem)
            if split == "train" and self.settings.style == "steps" and not self.is_learnable(solution):
                too_long += 1
                continue
            return solution
        if 2 * too_long > MOST_DRAWS:
            raise UserError(
                f"task: of {MOST_DRAWS} problems drawn, {too_long} have a working that is too long to be learned or "
                "does not lead to the answer; no other is allowed. Raise task.longest_working, task.working_decimals "
                "or task.inner_decimals."
            )
        raise UserError(
            f"task: none of {MOST_DRAWS} problems drawn belongs to the {split} split: these settings allow too few. "
            "Raise task.maximum, task.digits or task.held_out, or add operators or kinds."
        )

    def belongs(self, problem: Problem, split: Split) -> bool:
        """Whether a problem may be drawn for a split: by its hash, by what is excluded, and by what can be called."""
        if split_of(problem.normal_form, self.settings.held_out) != split:
            return False
        if self.settings.style == "tool" and len(problem.text) > MOST_CHARACTERS:
            return False
        return split == "held_out" or problem.normal_form not in self.excluded

    def is_learnable(self, solution: Solution) -> bool:
        """Whether the working leads to the answer and is not too long."""
        longest = self.settings.longest_working
        return solution.is_consistent and (longest is None or len(solution.working) <= longest)

    @cached_property
    def excluded(self) -> frozenset[str]:
        """Normal forms of what `task.exclude` keeps out.

        Raises:
            UserError: no such file, or lines in it that are no problems.
        """
        if self.settings.exclude is None:
            return frozenset()
        file = Path(self.settings.exclude).expanduser()
        check_named(file, "task.exclude")
        try:
            lines = file.read_text("utf-8").splitlines()
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

    def score(self, example: Example, completion: str, calls: Sequence[ToolCall] = ()) -> Score:
        """Read the one number (or `undefined`) that ends each text and compare their exact values.

        A foreign target without a number is compared as a text.
        """
        score = self.compare(example.target, completion)
        fault = self.fault_in(example.prompt, completion, example.target)
        return replace(score, metrics=self.measure(example.prompt, completion, calls), fault=fault)

    def remarks(self, prompt: Prompt, completion: str) -> dict[str, str | None]:
        """Return `first_fault`: the first wrong step of the working, and what is wrong with it; with check_steps."""
        if not self.settings.check_steps:
            return {}
        fault = self.fault_in(prompt, completion)
        return {"first_fault": None if fault is None else str(fault)}

    def answer_in(self, prompt: Prompt, completion: str, calls: Sequence[ToolCall] = ()) -> str | None:
        """Return the value that an answer ends with, as `compare` sees it."""
        answer = read_answer(completion)
        if answer is None or answer == UNDEFINED:
            return answer
        value = Fraction(Decimal(answer))
        return str(round_half_up(value, self.settings.decimals) if self.settings.round_all else value)

    @property
    def checks_working(self) -> bool:
        """Whether steps are checked, or calls are."""
        return self.settings.check_steps or self.settings.style == "tool"

    def holds(self, prompt: Prompt, completion: str, calls: Sequence[ToolCall] = ()) -> bool | None:
        """Return whether each step follows from those before, or each call is of what was asked."""
        if self.settings.style == "tool":
            faithful = self.measure(prompt, completion, calls).get("faithful_calls")
            return None if faithful is None else faithful >= 1
        problem = Problem.parse(question_in(prompt)) if self.settings.check_steps else None
        if problem is None or not is_short(problem):
            return None
        return self.fault_in(prompt, completion) is None

    def fault_in(self, prompt: Prompt, completion: str, target: str = "") -> StepFault | None:
        """Find the first wrong step of a working, where steps are checked.

        A target without a working is worked out from the prompt; None where that holds no problem, or a long one.
        """
        if not self.settings.check_steps:
            return None
        if DRAFT_MARK not in target:
            problem = Problem.parse(question_in(prompt))
            if problem is None or not is_short(problem):
                return None
            target = self.write_target(f"{problem.text}=", self.solve(problem))
        return first_fault(target, completion)

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
            given, right = (round_half_up(Fraction(Decimal(text)), self.settings.decimals) for text in (answer, wanted))
            same = given == right
        return Score("equal" if same else "wrong", answer)

    def answer_to(self, prompt: Prompt) -> str | None:
        """Return the exact answer to a question that is a problem and nothing else, rounded as the settings say."""
        problem = problem_asked(question_in(prompt))
        return self.solve(problem).answer if problem is not None and is_short(problem) else None

    def holds_out(self, prompt: Prompt) -> bool:
        """Whether the problem in a text, or in the last question of several, is held out or excluded."""
        problem = Problem.parse(question_in(prompt))
        if problem is None:
            return False
        form = problem.normal_form
        return form in self.excluded or split_of(form, self.settings.held_out) == "held_out"

    def describe(self, prompt: Prompt, target: str) -> dict[str, Any]:
        """Return facts about the problem found in the prompt of a foreign record."""
        problem = Problem.parse(prompt) if isinstance(prompt, str) else None
        return problem.facts() if problem else {}


def question_in(prompt: Prompt) -> str:
    """Return a text, or the last of several that a user says."""
    if isinstance(prompt, str):
        return prompt
    return next((str(turn["content"]) for turn in reversed(prompt) if turn["role"] == "user"), "")


def is_short(problem: Problem) -> bool:
    """Whether the working of any problem of its length is short enough to be written."""
    exponents = [after for token, after in zip(problem.tokens, problem.tokens[1:], strict=False) if token == "^"]
    if exponents and max(map(len, problem.numbers)) > MOST_POWER:
        return False
    return len(problem.text) <= MOST_WORKED and all(
        is_number(exponent) and Fraction(exponent) <= MOST_POWER for exponent in exponents
    )

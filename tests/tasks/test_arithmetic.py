"""What `arithmetic` draws and answers, against a second evaluator that shares no code with it."""

from __future__ import annotations

import random
import re
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from glmtune.arithmetic.expressions import round_half_up, shortest
from glmtune.arithmetic.problems import Problem
from glmtune.arithmetic.reading import read_answer
from glmtune.config import RecipeError, load_recipe
from glmtune.examples import Example
from glmtune.messages import make_tool_call
from glmtune.scoring import Score
from glmtune.tasks.arithmetic import PROMPT_WORDS, Arithmetic, ArithmeticSettings
from glmtune.tools import answer_call


def task(**values: Any) -> Arithmetic:
    return Arithmetic(ArithmeticSettings(name="arithmetic", **values))


def drawn(count: int = 300, split: Any = "train", seed: int = 0, **values: Any) -> list[Example]:
    made, rng = task(**values), random.Random(seed)
    return [made.sample(rng, split) for _ in range(count)]


def test_what_is_posed_is_whole_where_a_sample_is_a_turn_of_it() -> None:
    made = task(style="tool")
    for split in ("train", "held_out"):
        for seed in range(20):
            posed = made.pose(random.Random(seed), split)
            assert isinstance(posed.prompt, str) and not posed.tool_calls and posed.tools
            assert made.score(posed, posed.target).correct
            assert made.holds_out(posed.prompt) == (split == "held_out")
    assert task().pose(random.Random(3)) == task().sample(random.Random(3))


def problem_of(example: Example) -> Problem:
    problem = Problem.parse(example.prompt)
    assert problem is not None
    return problem


SETTINGS: list[dict[str, Any]] = [
    {},
    {"digits": 12, "decimals": 5, "operators": "*/"},
    {"num_operands": 4, "style": "direct", "zero_divisors": True, "maximum": 3, "kinds": ["integer"]},
    {"kinds": ["decimal"], "echo": False, "prompt_words": True, "trailing_zeros": 1, "equals_sign": "always"},
]


@pytest.mark.parametrize("values", SETTINGS)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_examples_are_right(values: dict[str, Any], split: str) -> None:
    made = task(**values)
    for example in drawn(200, split, **values):
        problem = problem_of(example)
        answer = problem.answer(made.settings.decimals)
        assert example.target.endswith(answer) and "e" not in answer.replace("undefined", "").lower()
        assert made.score(example, example.target).verdict == made.score(example, answer).verdict == "exact"
        assert example.facts == problem.facts() == made.describe(example.prompt, example.target)
        assert not re.search(r"=.*\d", example.prompt, re.DOTALL)  # the prompt never tells the answer


def test_all_operators_and_kinds_by_default() -> None:
    examples = drawn()
    assert {example.facts["operator"] for example in examples} == set("+-*/")
    assert {example.facts["kind"] for example in examples} == {"integer", "decimal"}
    assert any(example.target.rpartition("|")[2].startswith("-") for example in examples)


def test_decimals() -> None:
    made = drawn(kinds=["decimal"], decimals=4, operators="+/")
    assert max(len(o.partition(".")[2]) for e in made for o in problem_of(e).numbers) == 4
    assert max(len(e.target.rpartition("|")[2].partition(".")[2]) for e in made if e.facts["operator"] == "/") == 4


@pytest.mark.parametrize(("setting", "endings"), [("always", {True}), ("never", {False}), ("sometimes", {True, False})])
def test_equals_sign(setting: str, endings: set[bool]) -> None:
    assert {example.prompt.endswith("=") for example in drawn(equals_sign=setting)} == endings


def draft_of(expression: str, answer: str, decimals: int) -> str:
    """The answer with all decimals of its column: the sign, then the digits from the last to the first."""
    left, sign, right = re.fullmatch(r"([\d.]+)(\D)([\d.]+)", expression).groups()  # type: ignore[union-attr]
    lengths = [len(operand.partition(".")[2]) for operand in (left, right)]
    places = {"+": max(lengths), "-": max(lengths), "*": sum(lengths), "/": decimals}[sign]
    column = f"{Decimal(answer):.{places}f}"
    return ("-" if column.startswith("-") else "") + column.lstrip("-")[::-1] + "|"


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("style", ["direct", "draft"])
@pytest.mark.parametrize("echo", [False, True])
def test_form_of_prompt_and_target(echo: bool, style: str, words: bool) -> None:
    pairs = set()
    for example in drawn(echo=echo, style=style, prompt_words=words, equals_sign="always"):
        text = problem_of(example).text
        answer = problem_of(example).answer(2)
        draft = draft_of(text, answer, 2) if style == "draft" else ""
        assert example.target == (f"{text}=" if echo else "") + draft + answer
        before, question, after = example.prompt.partition(f"{text}=")
        assert question and after.startswith("\n") == words
        pairs.add((before, after.removeprefix("\n")))
    assert pairs == (set(PROMPT_WORDS) if words else {("", "")})
    assert len(PROMPT_WORDS) == 8


def test_zero_divisors() -> None:
    values: dict[str, Any] = {"operators": "/", "maximum": 2, "kinds": ["integer"], "held_out": 0.5}
    assert not any("undefined" in example.target for example in drawn(**values))
    undefined = [e for e in drawn(zero_divisors=True, **values) if e.target.endswith("undefined")]
    assert undefined and all(problem_of(e).numbers[1] == "0" and "|" not in e.target for e in undefined)


WRONG = {
    "operators": ("", "'^'", "{}", "{+: 0}", "{+: -1}"),
    "kinds": ("[]", "[real]"),
    "maximum": ("0", "many"),
    "digits": ("0",),
    "decimals": ("0",),
    "num_operands": ("1", "{1: 2}", "{2: 0}"),
    "brackets": ("2",),
    "most_exponent": ("1", "1000"),
    "unfaithful": ("ignore",),
    "trailing_zeros": ("1.1", "-0.1"),
    "held_out": ("0", "1"),
    "equals_sign": ("maybe",),
    "style": ("fast",),
    "echo": ("perhaps",),
}


@pytest.mark.parametrize("override", [f"{setting}={value}" for setting, values in WRONG.items() for value in values])
def test_wrong_settings(override: str) -> None:
    with pytest.raises(RecipeError, match="task." + override.partition("=")[0]):
        load_recipe(None, [f"task.{override}"])


WIDE: dict[str, Any] = {
    "num_operands": {2: 1, 3: 1, 5: 1},
    "brackets": 0.7,
    "signed_brackets": 0.2,
    "negatives": 0.5,
    "percents": 0.5,
    "fractions": 0.3,
    "powers": 0.3,
    "operators": "+-*/",
    "maximum": 9999,
    "operand_decimals": 5,
}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_expressions_are_answered_exactly(split: str) -> None:
    made = task(**WIDE, round_all=True, working_decimals=12)
    for example in drawn(200, split, **WIDE, round_all=True, working_decimals=12):
        problem = problem_of(example)
        value = problem.value()
        answer = example.target.rpartition("|")[2]
        assert Fraction(answer) == round_half_up(value, 2)
        assert made.score(example, example.target).verdict == "exact"
        more = shortest(round_half_up(value, 9))
        if Fraction(more) != Fraction(answer) and round_half_up(Fraction(more), 2) == Fraction(answer):
            assert made.score(example, f"{problem.text}={more}").verdict == "equal"
        assert made.score(example, shortest(Fraction(answer) + Fraction(1, 100))).verdict == "wrong"


def test_working_that_is_wrong_or_long_is_asked_but_not_learned() -> None:
    values = {**WIDE, "powers": 0, "fractions": 0, "round_all": True, "working_decimals": 1, "longest_working": 400}
    made = task(**values)
    for split, learnable in (("train", {True}), ("held_out", {True, False})):
        examples = drawn(150, split, **values)
        assert {made.is_learnable(made.solve(problem_of(example))) for example in examples} == learnable
        for example in examples:
            assert Fraction(str(read_answer(example.target))) == round_half_up(problem_of(example).value(), 2)


def calling(expression: str) -> dict[str, Any]:
    """A turn that calls the calculator."""
    call = make_tool_call("calculate", {"expression": expression})
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def saying(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def judged(made: Arithmetic, example: Example, turn: dict[str, Any]) -> Score:
    """The score of a model that takes this turn and believes the calculator."""
    calls = turn.get("tool_calls", [])
    if made.refuses(example.prompt, turn) is not None:
        return made.score(example, "", calls)
    return made.score(example, answer_call(made.tools, calls[0])["content"] if calls else turn["content"], calls)


def test_the_calculator_is_called_and_believed() -> None:
    made = task(style="tool", operators="+-*/")
    definition = [tool.definition() for tool in made.tools]
    stages = Counter()
    for example in drawn(200, style="tool", operators="+-*/"):
        assert example.tools == definition and made.refuses(example.prompt, example.answer) is None
        if isinstance(example.prompt, str):
            assert example.answer == calling(problem_of(example).text)
            stages["call"] += 1
        else:
            question, call, result = example.prompt
            assert (question["role"], result["role"]) == ("user", "tool")
            assert result == answer_call(made.tools, call["tool_calls"][0])
            assert example.answer == saying(result["content"])
            stages["answer"] += 1
    assert min(stages.values()) > 70
    for example in drawn(50, "held_out", style="tool", operators="+-*/"):
        assert not example.tool_calls
        score = judged(made, example, calling(problem_of(example).text))
        assert score.verdict == "exact" and score.metrics == {"faithful_calls": True}
    assert not task(style="steps").tools and not drawn(1, style="steps")[0].tools


@pytest.mark.parametrize(
    ("turn", "verdict", "faithful"),
    [
        (calling("12.5+3"), "exact", True),
        (calling("3+12.50"), "exact", True),
        (calling("15+0.5"), "exact", False),  # right by luck
        (calling("12.5+4"), "wrong", False),
        (calling("12.5+"), "unparseable", False),
        (calling("9^99^9"), "unparseable", False),
        (calling("1/0"), "wrong", False),
        (calling("__import__"), "unparseable", False),
        (saying("15.5"), "exact", False),
        (saying("calculate(12.5+3)"), "unparseable", False),
        (saying(""), "unparseable", False),
        (calling("2**3+12.5+3"), "wrong", False),  # the problem is only a part of what is called
        (calling("5*(12.5+3)"), "wrong", False),
        (saying('calculate("12.5+3")\n15.5'), "unparseable", False),  # the model made the result up
        (saying('calculate("(5)")\n15.5'), "unparseable", False),
    ],
)
def test_calls_are_judged(turn: dict[str, Any], verdict: str, faithful: bool) -> None:
    score = judged(task(style="tool"), Example("12.5+3=", "15.5", {}), turn)
    assert (score.verdict, score.metrics) == (verdict, {"faithful_calls": faithful})


def test_every_call_must_be_faithful() -> None:
    made = task(style="tool")
    calls = [call for text in ("12.5+3", "9*9") for call in calling(text)["tool_calls"]]
    assert made.measure("12.5+3=", "15.5", calls[:1]) == {"faithful_calls": True}
    assert made.measure("12.5+3=", "15.5", calls) == made.measure("12.5+3=", "15.5") == {"faithful_calls": False}
    assert made.is_faithful("1/0", calling("1/0")["tool_calls"])
    assert not made.is_faithful("1/0", calling("1/0)")["tool_calls"])
    assert not made.is_faithful("1/0", [make_tool_call("calculate", {"text": "1/0"})])
    assert task(style="steps").measure("1+1", "2") == {}


def test_unfaithful_calls_can_be_refused() -> None:
    made = task(style="tool", unfaithful="refuse")
    assert made.refuses("１２.5＋3=", calling("12.5+3")) is None
    assert made.refuses("１２.5＋3=", calling("15+0.5")) == "the call is not what was asked"
    assert made.refuses("12.5+3=", saying("15.5")) == "there is no call of the calculator that can be read"
    turns = [{"role": "user", "content": "12.5+3="}, calling("12.5+3"), {"role": "tool", "content": "15.5"}]
    assert made.refuses(turns, saying("15.5")) is None
    assert not judged(made, Example("12.5+3=", "15.5", {}), calling("15+0.5")).correct
    assert task(style="steps").refuses("1", saying('calculate("1")\n1')) is None


@pytest.mark.parametrize("style", ["draft", "steps"])
@pytest.mark.parametrize("adorned", ["percents", "powers", "fractions"])
def test_drafts_of_expressions_are_right(style: str, adorned: str) -> None:
    for example in drawn(100, style=style, **{adorned: 1.0}):
        draft, _, answer = example.target.rpartition("|")
        draft = re.split("[=;]", draft)[-1]
        assert Fraction(draft.lstrip("-")[::-1]) == abs(Fraction(answer))


def test_expressions_too_large_are_drawn_again() -> None:
    assert drawn(3, digits=60, powers=1.0, most_exponent=100, style="direct", num_operands=3)
    assert all(len(example.target) < 1100 for example in drawn(20, style="tool", digits=200, num_operands=12))


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("style", ["steps", "draft", "direct", "tool"])
def test_the_final_answer_stands_behind_its_marker(style: str, echo: bool) -> None:
    marker = task(style=style, echo=echo).final_marker
    for example in drawn(50, "held_out", style=style, echo=echo):
        final = example.target.partition(marker)[2] if marker else example.target
        assert final == read_answer(example.target)

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
from glmtune.tasks.arithmetic import PROMPT_WORDS, Arithmetic, ArithmeticSettings


def task(**values: Any) -> Arithmetic:
    return Arithmetic(ArithmeticSettings(name="arithmetic", **values))


def drawn(count: int = 300, split: Any = "train", seed: int = 0, **values: Any) -> list[Example]:
    made, rng = task(**values), random.Random(seed)
    return [made.sample(rng, split) for _ in range(count)]


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


def answered(made: Arithmetic, prompt: str, call: str) -> str:
    """What a model says that makes this call and believes the calculator."""
    reply = made.reply(prompt, call)
    return call if reply is None else f"{call}\n{reply.text}"


def test_the_calculator_is_called_and_believed() -> None:
    made = task(style="tool", operators="+-*/")
    stages = Counter()
    for example in drawn(200, style="tool", operators="+-*/"):
        if isinstance(example.prompt, str):
            problem = problem_of(example)
            assert example.target == f'calculate("{problem.text}")'
            assert made.reply(example.prompt, example.target) is not None
            stages["call"] += 1
        else:
            question, call, result = (turn["content"] for turn in example.prompt)
            assert [turn["role"] for turn in example.prompt] == ["user", "assistant", "tool"]
            assert answered(made, question, call) == f"{call}\n{result}" and example.target == result
            assert made.reply(example.prompt, example.target) is None
            stages["answer"] += 1
    assert min(stages.values()) > 70
    for example in drawn(50, "held_out", style="tool", operators="+-*/"):
        call = example.target.partition("\n")[0]
        score = made.score(example, answered(made, example.prompt, call))
        assert score.verdict == "exact" and score.metrics == {"faithful_calls": 1.0}


@pytest.mark.parametrize(
    ("call", "verdict", "faithful"),
    [
        ('calculate("12.5+3")', "exact", True),
        ('calculate("3+12.50")', "exact", True),
        ('calculate("15+0.5")', "exact", False),  # right by luck
        ('calculate("12.5+4")', "wrong", False),
        ('calculate("12.5+")', "unparseable", False),
        ('calculate("9^99^9")', "unparseable", False),
        ('calculate("1/0")', "wrong", False),
        ('calculate("__import__")', "unparseable", False),
        ("15.5", "exact", False),
        ("calculate(12.5+3)", "unparseable", False),
        ("", "unparseable", False),
        ('calculate("2**3+12.5+3")', "wrong", False),  # the problem is only a part of what is called
        ('calculate("5*(12.5+3)")', "wrong", False),
        ('calculate("12.5+3")\n15.5', "unparseable", True),  # the model made the result up
        ('calculate("12.5+3")\ncalculate("9*9")\n15.5', "unparseable", False),
    ],
)
def test_calls_are_judged(call: str, verdict: str, faithful: bool) -> None:
    made = task(style="tool")
    example = Example("12.5+3=", 'calculate("12.5+3")\n15.5', {})
    score = made.score(example, answered(made, example.prompt, call))
    assert (score.verdict, score.metrics) == (verdict, {"faithful_calls": float(faithful)})


def test_unfaithful_calls_can_be_refused() -> None:
    made = task(style="tool", unfaithful="refuse")
    asked, other = (made.reply("１２.5＋3=", f'calculate("{text}")') for text in ("12.5+3", "15+0.5"))
    assert asked is not None and asked.text == "15.5" and not asked.ends
    assert other is not None and other.text.startswith("refused") and other.ends
    assert not made.is_faithful("1/0", 'calculate("1/0)")') and made.is_faithful("1/0", 'calculate("1/0")')
    without = made.reply("12.5+3=", "15.5")
    assert without is not None and without.text.startswith("refused") and without.ends
    turns = [("user", "12.5+3="), ("assistant", 'calculate("12.5+3")'), ("tool", "15.5")]
    assert made.reply([{"role": role, "content": text} for role, text in turns], "15.5") is None
    example = Example("12.5+3=", 'calculate("12.5+3")\n15.5', {})
    assert not made.score(example, answered(made, "12.5+3=", 'calculate("15+0.5")')).correct


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("7/3", "2.33"),
        ("1÷8", "0.13"),
        ("3^-1", "0.33"),
        ("50%", "0.5"),
        ("１２×３", "36"),
        ("1,234+5", "1239"),
        ("5/0", "undefined"),
        ("(1", "error: .*"),
        ("x", "error: .*"),
        ("1.5^30", r"191751\.\d+"),
        ("9^99", "\\d{95}"),
        ("9^99*9^99", "error: .*too many digits"),
        ("(0.5^99)^100", "error: .*"),
        ("1" * 900, "error: .*too many digits"),
    ],
)
def test_the_calculator_never_fails(text: str, result: str) -> None:
    reply = task(style="tool").reply("1+1", f'calculate("{text}")')
    assert reply is not None and re.fullmatch(result, reply.text)


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

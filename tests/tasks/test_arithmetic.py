"""What `arithmetic` draws and answers, against a second evaluator that shares no code with it."""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.arithmetic.expressions import round_half_up, shortest, tokens_of
from glmtune.arithmetic.problems import Problem
from glmtune.arithmetic.reading import read_answer
from glmtune.config import RecipeError, load_recipe
from glmtune.examples import Example
from glmtune.tasks.arithmetic import PROMPT_WORDS, Arithmetic, ArithmeticSettings

OPERATIONS = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: Fraction.__truediv__,
}


def evaluate(expression: str) -> Fraction:
    """The exact value by Python's own grammar. Numbers are read from the source: as constants they were floats."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        return Fraction(ast.get_source_segment(expression, node))

    return value(ast.parse(expression, mode="eval").body)


def expected(expression: str, decimals: int) -> str:
    """The answer as `decimal` writes it."""
    try:
        exact = evaluate(expression)
    except ZeroDivisionError:
        return "undefined"
    with localcontext() as context:
        context.prec = 500
        value = Decimal(exact.numerator) / Decimal(exact.denominator)
        if "/" in expression:
            value = value.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
        return f"{value.normalize():f}" if value else "0"


@st.composite
def operands(draw: st.DrawFn, signed: bool = False) -> str:
    """A number as text, some with needless zeros at its end."""
    whole = draw(st.one_of(st.integers(0, 120), st.integers(0, 10**30)))
    fraction = draw(st.one_of(st.just(""), st.from_regex(r"\.[0-9]{1,6}", fullmatch=True)))
    return draw(st.sampled_from(["", "-"] if signed else [""])) + str(whole) + fraction


def problems(signed: bool = False) -> st.SearchStrategy[Problem]:
    def of_length(size: int) -> st.SearchStrategy[Problem]:
        numbers, signs = [operands(signed)] * size, [st.sampled_from("+-*/")] * (size - 1)
        return st.builds(chain, st.tuples(*numbers), st.tuples(*signs))

    return st.integers(2, 5).flatmap(of_length)


def chain(numbers: tuple[str, ...], signs: tuple[str, ...]) -> Problem:
    return Problem(tokens_of("".join(map("".join, zip(numbers, (*signs, ""), strict=True)))))


def task(**values: Any) -> Arithmetic:
    return Arithmetic(ArithmeticSettings(name="arithmetic", **values))


def drawn(count: int = 300, split: Any = "train", seed: int = 0, **values: Any) -> list[Example]:
    made, rng = task(**values), random.Random(seed)
    return [made.sample(rng, split) for _ in range(count)]


def problem_of(example: Example) -> Problem:
    problem = Problem.parse(example.prompt)
    assert problem is not None
    return problem


@given(problem=problems(signed=True), decimals=st.integers(1, 6))
def test_answers_are_exact(problem: Problem, decimals: int) -> None:
    assert problem.answer(decimals) == expected(problem.text, decimals)


@pytest.mark.parametrize(
    ("expression", "decimals", "answer"),
    [
        ("0.1+0.2", 2, "0.3"),
        ("57.84+13.64", 2, "71.48"),
        ("25.31+86.35", 2, "111.66"),
        ("92.68+38.52", 2, "131.2"),
        ("5-13", 2, "-8"),
        ("0.5-0.50", 2, "0"),
        ("2+3*4", 2, "14"),
        ("2*3-4*5", 2, "-14"),
        ("8/4/2", 2, "1"),
        ("8-4-2", 2, "2"),
        ("7/2", 2, "3.5"),
        ("1/3", 2, "0.33"),
        ("2/3", 2, "0.67"),
        ("1/8", 2, "0.13"),  # ties go away from zero
        ("1-9/8", 2, "-0.13"),
        ("3/8", 2, "0.38"),
        ("-1/8", 2, "-0.13"),
        ("1/200", 2, "0.01"),
        ("0-1/201", 2, "0"),  # no -0
        ("1.005/1", 2, "1.01"),  # 1.00 with floats
        ("2.675/1", 2, "2.68"),
        ("0.25/0.5", 1, "0.5"),
        ("1.005*1", 2, "1.005"),  # a product is not rounded
        ("99.99*99.99", 2, "9998.0001"),
        ("12345678901234567*98765432109876543", 2, "1219326311370217861743636654061881"),
        (f"0.{'0' * 40}1+1", 2, f"1.{'0' * 40}1"),
        ("5/0", 2, "undefined"),
        ("5/0.00+1", 2, "undefined"),
        ("0/5", 2, "0"),
    ],
)
def test_known_answers(expression: str, decimals: int, answer: str) -> None:
    problem = Problem.parse(expression)
    assert problem is not None and problem.text == expression
    assert problem.answer(decimals) == answer == expected(expression, decimals)


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
        answer = expected(problem.text, made.settings.decimals)
        assert example.target.endswith(answer) and "e" not in answer.replace("undefined", "").lower()
        assert made.score(example, example.target).verdict == made.score(example, answer).verdict == "exact"
        assert example.facts == problem.facts() == made.describe(example.prompt, example.target)
        assert not re.search(r"=.*\d", example.prompt, re.DOTALL)  # the prompt never tells the answer


def naive_carries(left: str, right: str, subtract: bool) -> int:
    """Carries or borrows with pencil and paper: numbers one below the other, from the last column to the first."""
    places = max(len(number.partition(".")[2]) for number in (left, right))
    rows = []
    for number in (left, right):
        whole, _, fraction = number.partition(".")
        rows.append((whole + fraction.ljust(places, "0")).rjust(60, "0"))
    if subtract:
        rows.sort(reverse=True)
    count = memory = 0
    for top, bottom in zip(reversed(rows[0]), reversed(rows[1]), strict=True):
        column = int(top) - int(bottom) - memory if subtract else int(top) + int(bottom) + memory
        memory = int(not 0 <= column <= 9)
        count += memory
    return count


@given(left=operands(), right=operands(), operator=st.sampled_from("+-"))
def test_carries(left: str, right: str, operator: str) -> None:
    assert chain((left, right), (operator,)).facts()["carries"] == naive_carries(left, right, operator == "-")


@pytest.mark.parametrize(
    ("expression", "carries"),
    [
        ("99+1", 2),
        ("13+75", 0),
        ("0.5+0.5", 1),
        ("100-1", 2),
        ("1-100", 2),
        ("-9+-1", 1),
        ("-9-1", 1),
        ("10+-1", 1),
        ("10--1", 0),
        ("5-5", 0),
    ],
)
def test_known_carries(expression: str, carries: int) -> None:
    problem = Problem.parse(expression)
    assert problem is not None and problem.facts()["carries"] == carries


def test_facts() -> None:
    assert chain(("5.50", "113"), ("-",)).facts() == {
        "operator": "-",
        "kind": "decimal",
        "digits": 3,
        "left_digits": 2,
        "right_digits": 3,
        "carries": 2,
    }
    mixed = {"operator": "mixed", "kind": "integer", "digits": 2, "operations": 2}
    assert chain(("5.0", "13", "2"), ("+", "*")).facts() == mixed


@pytest.mark.parametrize(
    ("given_operators", "weights"),
    [
        ("+-×", dict.fromkeys("+-*", 1)),
        ("÷", {"/": 1}),
        ("-", {"-": 1}),
        (["*", "+"], dict.fromkeys("*+", 1)),
        ({"－": 2, "×": 0.5}, {"-": 2, "*": 0.5}),
    ],
)
def test_operators(given_operators: Any, weights: dict[str, float]) -> None:
    assert task(operators=given_operators).settings.operators == weights
    counts = Counter(example.facts["operator"] for example in drawn(operators=given_operators))
    assert set(counts) == set(weights)
    for operator, weight in weights.items():
        assert counts[operator] / 300 == pytest.approx(weight / sum(weights.values()), abs=0.1)


def test_all_operators_and_kinds_by_default() -> None:
    examples = drawn()
    assert {example.facts["operator"] for example in examples} == set("+-*/")
    assert {example.facts["kind"] for example in examples} == {"integer", "decimal"}
    assert any(example.target.rpartition("|")[2].startswith("-") for example in examples)


@pytest.mark.parametrize("kind", ["integer", "decimal"])
def test_kinds(kind: str) -> None:
    assert all(("." in problem_of(example).text) == (kind == "decimal") for example in drawn(kinds=[kind]))


def test_maximum() -> None:
    seen = {int(o) for e in drawn(1500, maximum=12, kinds=["integer"]) for o in problem_of(e).numbers}
    assert seen == set(range(13))
    assert max(Fraction(o) for e in drawn(maximum=12) for o in problem_of(e).numbers) <= 12


def test_digits_come_in_all_lengths() -> None:
    made = drawn(600, digits=6, kinds=["integer"], operators="+")
    lengths = Counter(len(o) for e in made for o in problem_of(e).numbers)
    assert set(lengths) == set(range(1, 7))
    assert min(lengths.values()) > 0.6 * 1200 / 6


def test_decimals() -> None:
    made = drawn(kinds=["decimal"], decimals=4, operators="+/")
    assert max(len(o.partition(".")[2]) for e in made for o in problem_of(e).numbers) == 4
    assert max(len(e.target.rpartition("|")[2].partition(".")[2]) for e in made if e.facts["operator"] == "/") == 4


def test_trailing_zeros() -> None:
    def some(share: float) -> bool:
        made = drawn(kinds=["decimal"], operators="+", trailing_zeros=share)
        return any("." in o and o.endswith("0") for e in made for o in problem_of(e).numbers)

    assert some(1) and some(0.3) and not some(0)


def test_number_of_operands() -> None:
    made = drawn(num_operands=4)
    assert {len(problem_of(example).numbers) for example in made} == {4}
    assert any(example.facts["operator"] == "mixed" for example in made)


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
        answer = expected(text, 2)
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


def test_expressions_of_the_fields_breadth() -> None:
    """All that the settings name occurs, and nothing that they do not."""
    texts = [problem_of(example).text for example in drawn(400, **WIDE)]
    for sign in ("(", "[", "%", "^", "--", "*-", ".", "*-("):
        assert any(sign in text for text in texts), sign
    assert {len(problem_of(example).operators) for example in drawn(200, num_operands={3: 1, 6: 1})} == {2, 5}
    assert not any(set("()[]%^") & set(example.prompt) for example in drawn(400, num_operands=4))


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


@pytest.mark.parametrize("operator", ["+", "-"])
@pytest.mark.parametrize("kind", ["integer", "decimal"])
def test_carries_are_balanced(operator: str, kind: str) -> None:
    examples = drawn(900, balance_carries=True, operators=operator, kinds=[kind], digits=4, decimals=2)
    counts = Counter(example.facts["carries"] for example in examples)
    columns = 4 if kind == "integer" else 6
    assert set(counts) == set(range(columns))
    assert min(counts.values()) > 0.6 * 900 / columns


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
            assert [turn["role"] for turn in example.prompt] == ["user", "assistant", "observation"]
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
    turns = [("user", "12.5+3="), ("assistant", 'calculate("12.5+3")'), ("observation", "15.5")]
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


@pytest.mark.parametrize(("share", "same"), [(0.0, 0.2), (1.0, 0.82)])
def test_operands_of_the_same_length(share: float, same: float) -> None:
    """Leading zeros make one in ten shorter."""
    made, rng = task(operators="-", kinds=["integer"], digits=6, same_digits=share), random.Random(1)
    lengths = [{len(number) for number in problem_of(made.sample(rng)).numbers} for _ in range(400)]
    assert sum(len(one) == 1 for one in lengths) / 400 == pytest.approx(same, abs=0.06)

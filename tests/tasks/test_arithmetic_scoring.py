"""How `arithmetic` reads foreign text: answers of models, prompts of other people's records."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.arithmetic.expressions import round_half_up, shortest
from glmtune.arithmetic.problems import Problem
from glmtune.arithmetic.reading import read_answer
from glmtune.examples import Example
from glmtune.scoring import Score
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings

TASK = Arithmetic(ArithmeticSettings(name="arithmetic"))


def verdict(target: str, completion: str) -> str:
    return TASK.score(Example("", target), completion).verdict


@pytest.mark.parametrize(
    "completion",
    [
        "111.66",
        "25.31+86.35=111.66",
        "25.31+86.35=66.111|111.66",
        "66.111|111.66",
        " 25.31 + 86.35 = 111.66 ",
        "２５．３１＋８６．３５＝１１１．６６",
        "答案是111.66。",
        "解答：25.31＋86.35＝111.66。",
        "The answer is 111.66.",
        "25.31+86.35=111.66, as you can see.",
        "111.66\n\n",
        "111.66, so 111.66",
        "25.31+86.35 = 86.35+25.31 = 111.66",
        "**111.66**",
        "$111.66$",
        "\\boxed{111.66}",
        "`111.66`",
        "111.66元",
        "+111.66",
    ],
)
@pytest.mark.parametrize("target", ["111.66", "25.31+86.35=111.66", "25.31+86.35=66.111|111.66"])
def test_exact(target: str, completion: str) -> None:
    assert verdict(target, completion) == "exact"


@pytest.mark.parametrize(
    ("target", "completion"),
    [
        ("131.2", "131.20"),
        ("131.2", "131.200000"),
        ("92.68+38.52=131.2", "92.68+38.52=131.20"),
        ("0.5", ".5"),
        ("5", "5.0"),
        ("5", "005"),
        ("0", "-0"),
        ("0", "0.00"),
        ("1000", "1000.0"),
        ("1234567.5", "1,234,567.50"),
    ],
)
def test_equal(target: str, completion: str) -> None:
    assert verdict(target, completion) == verdict(completion, target) == "equal"


@pytest.mark.parametrize("completion", ["1,234,567", "1，234，567", "x=1,234,567.", "１，２３４，５６７"])
def test_thousands_separators(completion: str) -> None:
    assert verdict("1234567", completion) == "exact"


@pytest.mark.parametrize(
    ("target", "completion"),
    [
        ("25.31+86.35=111.66", "25.31+86.35=101.66"),
        ("98+83=181", "98+83=171"),
        ("5", "-5"),
        ("-5", "5"),
        ("42", "19+23=24|24"),
        ("42", "19+23=24"),  # the draft alone
        ("131.2", "1312"),
        ("0.1", "0.10000000000000000001"),
        ("9007199254740993", "9007199254740992"),  # one and the same float
        ("undefined", "0"),
        ("0", "undefined"),
        ("1000", "1,000,000"),
    ],
)
def test_wrong(target: str, completion: str) -> None:
    assert verdict(target, completion) == "wrong"


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " \n",
        "=",
        "|",
        "25.31+86.35=",
        "19+23=24|",
        "I do not know",
        "不知道",
        "88, or 90",
        "88 90",
        "88，90",
        "between 1 and 2",
        "13+75=88, but that's not the correct answer. The correct answer is 13+75=88, which is 90.",
        "1/2",
        "10/2",
        "½",
        "6 / 6",
        "1,000/1,000",
        "5e5",
        "1E5",
        "5e-5",
        "5^5",
        "2^3",
        "5%",
        "5 + 5",
        "0+0",
        "5*5",
        "5×5",
        "5-5",
        "5÷5",
        "12.5.3",
        "2024-05-05",
        "1,1",
        "12,34",
        "NaN",
        "inf",
        "Infinity",
        "-",
        ".",
        "五",
        "__import__('os')",
        "undefined 5 6",
    ],
)
def test_unparseable(completion: str) -> None:
    assert verdict("5", completion) == verdict("0", completion) == "unparseable"


@pytest.mark.parametrize("minus", "-−－﹣‐‑‒–—―➖⁻")
def test_minus_lookalikes(minus: str) -> None:
    assert verdict("-5", f"{minus}5") == verdict("-5", f"3{minus}8={minus}5") == "exact"
    assert verdict("-5", f"3-8={minus} 5") == verdict("-5", f"3-8={minus}5|{minus} 5.") == "exact"
    assert verdict("5", f"3-8={minus} 5") == "wrong"


@pytest.mark.parametrize("completion", ["undefined", "5/0=undefined", "Undefined.", "It is UNDEFINED"])
def test_undefined(completion: str) -> None:
    assert verdict("5/0=undefined", completion) == "exact"


def test_text_is_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for text in (f"__import__('os').mkdir({str(canary)!r})", f"open({str(canary)!r}, 'w') or 5", "(lambda: 5)()+0=5"):
        verdict("5", text)
        Problem.parse(f"1+1={text}")
    assert not canary.exists()
    assert verdict("5", "__import__('os').getpid() or 5") == "exact"  # a text with one number in it


@given(text=st.text(), target=st.text())
def test_any_text_has_a_score(text: str, target: str) -> None:
    assert TASK.score(Example(target, target), text).verdict in ("exact", "equal", "wrong", "unparseable")
    TASK.describe(text, target)


@given(value=st.fractions(), places=st.integers(0, 40))
def test_every_spelling_of_a_value_is_read(value: Fraction, places: int) -> None:
    text = shortest(round_half_up(value, places))
    assert verdict(text, f"2*x={text}.") == "exact"
    assert verdict(text, f"{text}{'00' if '.' in text else '.00'}") == "equal"


TWO_OF_TWO = {"digits": 2, "left_digits": 2, "right_digits": 2}


@pytest.mark.parametrize(
    ("prompt", "facts"),
    [
        ("Compute 19 + 23, please.", {"operator": "+", "kind": "integer", **TWO_OF_TWO, "carries": 1}),
        ("５．５－１３", {"operator": "-", "kind": "decimal", **TWO_OF_TWO, "carries": 2}),
        ("6×7×8", {"operator": "*", "kind": "integer", "digits": 1, "operations": 2}),
        ("6×7-8", {"operator": "mixed", "kind": "integer", "digits": 1, "operations": 2}),
    ],
)
def test_describe_foreign_prompts(prompt: str, facts: dict[str, Any]) -> None:
    assert TASK.describe(prompt, "whatever") == facts


def test_answer_that_was_read() -> None:
    assert TASK.score(Example("", "5"), "1,005.0 it is") == Score("wrong", "1005.0")
    assert read_answer("19+23=24|42") == "42" and read_answer("?") is None
    assert TASK.score(Example("", "5"), "5").correct and TASK.score(Example("", "5"), "5.0").correct
    assert not TASK.score(Example("", "5"), "6").correct and not TASK.score(Example("", "5"), "").correct


@given(st.integers(-999, 999), st.integers(-999, 999), st.sampled_from("+-*"))
def test_answers_are_marked_without_a_target(left: int, right: int, operator: str) -> None:
    value = {"+": left + right, "-": left - right, "*": left * right}[operator]
    question = f"{left}{operator}({right})="
    assert TASK.mark(question, f"The answer is {value}.") == {
        "correct": 1.0,
        "answer": str(value),
        "right": str(value),
    }
    told = TASK.mark([{"role": "user", "content": question}], f"{question}{value + 1}")
    assert told["correct"] == 0.0 and told["right"] == str(value)


@pytest.mark.parametrize(
    ("question", "completion", "correct", "right"),
    [
        ("10/3=", "10/3=3.33", 1.0, "3.33"),
        ("10/3=", "3.3333", 0.0, "3.33"),
        ("0.1+0.2", "0.30", 1.0, "0.3"),
        ("5/0=", "undefined", 1.0, "undefined"),
        ("5+3=", "I do not know.", 0.0, "8"),
        ("5+3=", "", 0.0, "8"),
    ],
)
def test_marks(question: str, completion: str, correct: float, right: str) -> None:
    told = TASK.mark(question, completion)
    assert (told["correct"], told["right"]) == (correct, right)


@pytest.mark.parametrize("question", ["", "Hello", "Tom had 3-4 apples.", "9.5" * 100 + "+1", "12345678901^9="])
def test_what_is_no_problem_is_not_marked(question: str) -> None:
    assert TASK.mark(question, "8") == {}


def test_marks_have_what_is_told_as_well() -> None:
    task = Arithmetic(ArithmeticSettings(name="arithmetic", check_steps=True))
    problem = Problem.exactly("5+3")
    assert problem is not None
    working = task.write_target("5+3=", task.solve(problem))
    assert task.mark("5+3=", working) == {"correct": 1.0, "answer": "8", "right": "8", "first_fault": None}
    assert task.mark("Hello", "8") == task.tell("Hello", "8")

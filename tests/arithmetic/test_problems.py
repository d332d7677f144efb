"""Problems are found in texts, told apart, and answered as a second evaluator does that shares no code with them."""

from __future__ import annotations

import ast
import re
import time
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.arithmetic.expressions import tokens_of
from glmtune.arithmetic.problems import Problem

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


NO_PROBLEMS = """5  5=  +5  5+  a+b  你好  1.2.3+4.  __import__('os')  5 加 3  5(3+4)  5[(3+4)*2]  (1+2)(3+4)  (3+4)5
(1+2)[(3)-4]"""


@pytest.mark.parametrize("text", ["", *re.split("  |\n", NO_PROBLEMS)])
def test_parse_finds_nothing(text: str) -> None:
    assert Problem.parse(text) is None


def test_parse_keeps_off_numbers_beyond_use() -> None:
    assert Problem.parse("1" * 1000 + "+1") is not None
    assert Problem.parse("1" * 5000 + "+1") is None


@pytest.mark.parametrize("text", ["1/0)", "(1/0", "1/0 5 7", "(((1/0", "0^-1)", "1/0+"])
def test_what_divides_by_zero_is_read_to_its_end(text: str) -> None:
    assert Problem.exactly(text) is None


def form_of(text: str) -> str:
    problem = Problem.parse(text)
    assert problem is not None
    return problem.normal_form


@settings(max_examples=50)
@given(
    numbers=st.lists(st.decimals(0, 10**9, places=3), min_size=2, max_size=4),
    operator=st.sampled_from("+-*/"),
    data=st.data(),
)
def test_equal_spellings_have_one_form(numbers: list[Decimal], operator: str, data: st.DataObject) -> None:
    def written(number: Decimal) -> str:
        zeros = "0" * data.draw(st.integers(0, 3))
        return f"{number.normalize():f}" if not zeros else f"0{number}{zeros}"

    spelled = list(map(written, numbers))
    if operator in "+*":
        spelled = data.draw(st.permutations(spelled))
    assert form_of(operator.join(spelled)) == form_of(operator.join(f"{number:f}" for number in numbers))


def test_order_counts_where_it_matters() -> None:
    assert len(set(map(form_of, ("((1+2))*3", "1+2*3", "(-2)^2+1", "-2^2+1", "(1+2)*(3+4)", "1+2*3+4")))) == 6
    assert len(set(map(form_of, ("8-4", "4-8", "8/4", "4/8", "8+4", "8*4", "1+2*3", "2+1*3")))) == 8


@pytest.mark.parametrize("number", ["0" * 20_000, "1,234" * 4000, "7.7" * 6000])
def test_a_long_number_in_brackets_takes_no_time(number: str) -> None:
    start = time.process_time()
    assert Problem.parse(f"({number})+1") is None
    assert time.process_time() - start < 1  # it took 8 s: from each of its digits anew

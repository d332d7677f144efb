"""Worked steps: each row is right by itself, rows of one operation are of one width, and the last holds the answer."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from glmtune.arithmetic.expressions import DividedByZero, ExpressionError, evaluate, round_half_up, tokens_of
from glmtune.arithmetic.working import (
    Cut,
    Value,
    expression_steps,
    items_of,
    next_operation,
    product_steps,
    quotient_steps,
    simplified,
    sum_steps,
)

MAGNITUDES = st.builds(Value, st.integers(0, 10**7), st.integers(0, 4))
VALUES = st.builds(Value, st.integers(-(10**7), 10**7), st.integers(0, 4))
OPERANDS = st.one_of(st.integers(0, 9999).map(str), st.decimals(0, 9999, places=3).map(str))
EXPRESSIONS = st.recursive(
    st.one_of(OPERANDS, st.builds("-{}".format, OPERANDS), st.builds("{}%".format, OPERANDS)),
    lambda inner: st.one_of(
        st.builds("({}{}{})".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("{}{}{}".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("-[{}-{}]".format, inner, inner),
        st.builds("({})%".format, inner),
        st.builds("({}^{})".format, OPERANDS, st.integers(0, 3)),
    ),
    max_leaves=6,
)


def exact(value: Value) -> Fraction:
    return Fraction(value.units, 10**value.places)


def read(row: str) -> Fraction:
    """A number that is written backwards, its sign first."""
    sign = -1 if row.startswith("-") else 1
    return sign * Fraction(row.lstrip("-")[::-1])


@pytest.mark.parametrize(
    ("expression", "written"),
    [
        ("19+23", "91+32:240;"),
        ("25.4-28.02", "04.52-20.82<26.20;"),
        ("77-1", "77-10>67;"),
        ("12*34", "21*43:4:8400;3:0630:8040;"),
        ("0.05*0.3", "5*3:3:510.0;"),
        ("7/3", "700/3:70:2:60>01:3:90>01:3:90>;"),
        ("59.4/60", "59400/006:4950:1:0060<0:0000>0495:9:0045>0045:9:0045>;"),
        ("879-(9544+3858)", "978-(4459+8583);4459+8583:20431;978-20431;97800-20431<32521;"),
        ("-(-5)*2", "5*2;5*2:2:01;"),
        ("(((1+2))%+3)", "(((1+2))%+3);1+2:30;(30.0+3);30.0+00.3:30.30;"),
        ("2^3-50%", "2^3-05.0;(2*2*2)-05.0;2*2:2:40;(4*2)-05.0;4*2:2:80;8-05.0;00.8-05.0>05.7;"),
    ],
)
def test_they_look_like_this(expression: str, written: str) -> None:
    assert expression_steps(items_of(tokens_of(expression)), Cut(2, None))[0] == written


@given(VALUES, st.sampled_from("+-"), VALUES)
def test_sums(left: Value, operator: str, right: Value) -> None:
    text, value = sum_steps(left, operator, right)
    assert exact(value) == (exact(left) + exact(right) if operator == "+" else exact(left) - exact(right))
    first, sign, second, mark, result = re.fullmatch(r"(-?[\d.]+)([-+])([\d.]+)([:<>])([\d.]+);", text).groups()  # type: ignore[union-attr]
    assert read(first) == exact(left) and read(second) == abs(exact(right))
    assert len(first.lstrip("-")) == len(second) == len(result) - (mark == ":")
    assert read(result) == abs(exact(value))
    assert mark == (":" if first.startswith("-") == (sign == "-") else "<" if abs(read(first)) < read(second) else ">")


@given(VALUES, VALUES)
def test_products(left: Value, right: Value) -> None:
    """Partial products at their places, and the sum of those so far."""
    text, value = product_steps(left, right)
    assert exact(value) == exact(left) * exact(right)
    header, _, rest = text.partition(":")
    negative, first, second = re.fullmatch(r"(-?)(\d+)\*(\d+)", header).groups()  # type: ignore[union-attr]
    assert bool(negative) == ((left.units < 0) != (right.units < 0))
    assert {int(first[::-1]), int(second[::-1])} == {abs(left.units), abs(right.units)}
    assert len(second) <= len(first)
    total = Fraction(0)
    *steps, nothing = rest.split(";")
    assert nothing == "" and len(steps) == len(second)
    for place, (step, digit) in enumerate(zip(steps, second, strict=True)):
        shown, partial, *so_far = step.split(":")
        assert shown == digit
        assert read(partial) == Fraction(int(first[::-1]) * int(digit) * 10**place, 10**value.places)
        total += read(partial)
        assert [read(row) for row in so_far] == ([total] if place else [])
        assert len({len(row) for row in (partial, *so_far)}) == 1
    assert total == abs(exact(value))


@given(VALUES, VALUES.filter(lambda value: value.units != 0), st.integers(0, 4))
def test_quotients(left: Value, right: Value, places: int) -> None:
    """What is left, how often the divisor goes into it, that many times the divisor; a guess too large is mended."""
    text, value = quotient_steps(left, right, places)
    wanted = exact(left) / exact(right)
    assert value.places == places and abs(exact(value)) <= abs(wanted) < abs(exact(value)) + Fraction(1, 10**places)
    assert value.units == 0 or (value.units < 0) == (wanted < 0)
    header, _, rest = text.partition(":")
    dividend, divisor = re.fullmatch(r"-?(\d+)/(\d+)", header).groups()  # type: ignore[union-attr]
    number, width, quotient = int(divisor[::-1]), len(divisor) + 1, 0
    *steps, nothing = rest.split(">")
    assert nothing == ";" and len(steps) == len(dividend) - len(divisor) + 1
    remains = int(dividend[: len(divisor) - 1] or 0)
    for step, digit in zip(steps, dividend[len(divisor) - 1 :], strict=True):
        remains = 10 * remains + int(digit)
        shown, *tries = re.split("[:<]", step)
        assert int(shown[::-1]) == remains and len(shown) == width
        *wrong, times, product = tries
        assert int(product[::-1]) == int(times) * number <= remains < int(product[::-1]) + number
        if wrong:
            assert int(wrong[0]) == int(times) + 1 and int(wrong[1][::-1]) == int(wrong[0]) * number > remains
            assert 8 * remains >= number * (8 * int(times) + 7)  # it was close
        remains -= int(product[::-1])
        quotient = 10 * quotient + int(times)
    assert quotient == abs(value.units)


@settings(max_examples=200)
@given(EXPRESSIONS, st.booleans())
def test_expressions(text: str, cut: bool) -> None:
    """Each state has the value of the one before it, and the last that of the expression, up to what is cut."""
    tokens = tokens_of(text)
    try:
        wanted = evaluate(tokens)
        written, value = expression_steps(items_of(tokens), Cut(40, 40 if cut else None))
    except DividedByZero:
        assume(False)
    except ExpressionError:
        return
    if "/" not in text and not cut:
        assert exact(value) == wanted
    elif "/" not in text or "*" not in text:
        assert abs(exact(value) - wanted) <= Fraction(1, 10**12) * max(1, abs(wanted))
    for step in written.split(";"):
        if "[" in step or "(" in step:  # a state
            forward = re.sub(r"[\d.]+", lambda number: number[0][::-1], step)
            state = evaluate(forward)
            assert round_half_up(state, 2) == round_half_up(wanted, 2) or "/" in text or "*" in text


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("1/3", "/"),
        ("5+1/3-2", "/"),
        ("(1/3)+2", ""),  # within brackets, though what stands beside them adds
        ("1/3*2", "*"),  # the product of the two
        ("2-(1/3)*4", "*"),
        ("2-1/3+4*5", "/*"),
    ],
)
def test_results_that_are_terms(expression: str, terms: str) -> None:
    """Terms keep one decimal here, what is multiplied further four; each `/` and `*` of `terms` is a term."""
    items = items_of(tokens_of(expression))
    found = ""
    while len(items := simplified(items)) > 1:
        place = next_operation(items)
        operator = items[place]
        if operator in ("*", "/"):
            is_a_term = Cut(1, 1, 4).at(items, place) == (1, 1)
            assert Cut(1, None, 4).at(items, place) == ((1, None) if is_a_term else (4, None))
            assert Cut(1, 2).at(items, place) == (1, 2)
            found += str(operator) * is_a_term
        items[place - 1 : place + 2] = [Value(1, 0)]
    assert found == terms


def test_few_decimals_are_enough_where_results_are_only_added() -> None:
    """`1/7*7000-1/7` is 999.857: four decimals of the first quotient are not enough, four of the second are."""
    items = items_of(tokens_of("1/7*7000-1/7"))
    wanted = evaluate(tokens_of("1/7*7000-1/7"))
    assert round_half_up(exact(expression_steps(items, Cut(4, 4))[1]), 2) != round_half_up(wanted, 2)
    assert round_half_up(exact(expression_steps(items, Cut(4, 4, 12))[1]), 2) == round_half_up(wanted, 2)
    long, short = expression_steps(items, Cut(12, 12))[0], expression_steps(items, Cut(4, 4, 12))[0]
    assert len(short) < len(long)


@given(VALUES, st.integers(0, 3))
def test_cut_and_rounded(value: Value, places: int) -> None:
    assert exact(value.rounded(places)) == round_half_up(exact(value), places) or value.places <= places
    rest = abs(exact(value)) - abs(exact(value.cut(places)))
    assert 0 <= rest < Fraction(1, 10**places)


@given(MAGNITUDES)
def test_backwards(value: Value) -> None:
    assert read(value.backwards) == exact(value)
    assert Value.of(value.backwards[::-1]) == value


def test_division_by_zero() -> None:
    with pytest.raises(DividedByZero):
        quotient_steps(Value(5, 0), Value(0, 2), 2)
    with pytest.raises(DividedByZero):  # after cutting
        expression_steps(items_of(tokens_of("5/(1/1000)")), Cut(2, 2))


def test_powers_without_steps() -> None:
    with pytest.raises(ExpressionError, match="whole numbers"):
        expression_steps(items_of(tokens_of("2^2.0")), Cut(2, 2))

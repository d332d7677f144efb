"""Expressions have the values that another evaluator finds, and what is none is said in words and at once."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.arithmetic.expressions import (
    MOST_BITS,
    MOST_CHARACTERS,
    DividedByZero,
    ExpressionError,
    evaluate,
    round_half_up,
    shortest,
    tokens_of,
)

NUMBERS = st.one_of(st.integers(0, 9999).map(str), st.decimals(0, 9999, places=3).map(str), st.just(".5"))


def nodes(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({}{}{})".format, children, st.sampled_from("+-*/"), children),
        st.builds("[{}{}{}]".format, children, st.sampled_from("+-*/"), children),
        st.builds("{}{}{}".format, children, st.sampled_from("+-*/"), children),
        st.builds("-{}".format, children),
        st.builds("({})%".format, children),
        st.builds("({})^{}".format, children, st.integers(0, 4)),
    )


EXPRESSIONS = st.recursive(NUMBERS, nodes, max_leaves=8)


def by_two_stacks(text: str) -> Fraction | None:
    """Dijkstra's way: a stack of values and one of operators. None where it divides by zero."""
    binding = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "^": 4}
    values: list[Fraction] = []
    operators: list[str] = []

    def apply() -> None:
        operator = operators.pop()
        right = values.pop()
        if operator == "neg":
            values.append(-right)
            return
        left = values.pop()
        values.append(
            left + right
            if operator == "+"
            else left - right
            if operator == "-"
            else left * right
            if operator == "*"
            else left / right
            if operator == "/"
            else left ** int(right)
        )

    place, operand = 0, False
    try:
        while place < len(text):
            sign = text[place]
            end = place + 1
            if sign.isdigit() or sign == ".":
                while end < len(text) and (text[end].isdigit() or text[end] == "."):
                    end += 1
                values.append(Fraction(text[place:end]))
                operand = True
            elif sign in "([":
                operators.append(sign)
                operand = False
            elif sign in ")]":
                while operators[-1] not in "([":
                    apply()
                operators.pop()
            elif sign == "%":
                values.append(values.pop() / 100)
            elif sign in "+-" and not operand:
                operators.append("neg")
            else:
                while operators and operators[-1] not in "([" and binding[operators[-1]] >= binding[sign]:
                    apply()
                operators.append(sign)
                operand = False
            place = end
        while operators:
            apply()
    except ZeroDivisionError:
        return None
    [value] = values
    return value


@settings(max_examples=300)
@given(EXPRESSIONS)
def test_another_evaluator_finds_the_same(text: str) -> None:
    try:
        value = evaluate(text)
    except DividedByZero:
        assert by_two_stacks(text) is None
    except ExpressionError as error:
        assert "too large" in str(error)
    else:
        assert value == by_two_stacks(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-2^2", "-4"),
        ("2^3^2", "512"),
        ("2**3", "8"),
        ("2^-1", "1/2"),
        ("50%^2", "1/4"),
        ("5%%", "1/2000"),
        ("8/4/2", "1"),
        ("5--+-3", "2"),
        (" { [ (1 + 2) * 3 ] } ", "9"),
        ("0^0", "1"),
        ("1" * 999 + "-" + "1" * 999, "0"),
    ],
)
def test_known_values(text: str, value: str) -> None:
    assert evaluate(text) == Fraction(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("5+", "ends where a number"),
        ("*5", r"'\*' stands where a number"),
        ("5 5", "'5' stands where an operator"),
        ("(5+3", "ends where a number|not closed"),
        ("(5+3]", "not closed by"),
        ("5+3)", "stands where an operator"),
        ("2^2.5", "exponents are whole numbers"),
        ("2^101", "up to 100"),
        ("9^99^9", "exponents are whole numbers"),
        ("__import__('os')", "'_' in"),
        ("1.2.3", "stands where an operator"),
        ("1e5", "'e' in"),
        ("５+3", "'５' in"),  # the caller makes it plain
        ("5/0", "divides by zero"),
        ("0^-1", "divides by zero"),
        ("5/(3-3)%", "divides by zero"),
        ("(" * 40 + "5" + ")" * 40, "nested more than"),
        ("((9^99)^99)^99", "too large"),
        ("1+" * MOST_CHARACTERS + "1", f"at most {MOST_CHARACTERS}"),
    ],
)
def test_what_has_no_value_is_said(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        evaluate(text)


@pytest.mark.parametrize("sign", ["(", "-", "2^", "((9^99)^99)*", "9" * 50 + "/7*", "%", "1/3+", "[-"])
def test_work_is_bounded(sign: str) -> None:
    start = time.process_time()
    for count in (10, 100, 500, 10_000):
        for end in ("", "1"):
            try:
                value = evaluate(sign * count + end)
            except ExpressionError:
                continue
            assert max(value.numerator.bit_length(), value.denominator.bit_length()) <= MOST_BITS
    assert time.process_time() - start < 2


def test_tokens() -> None:
    assert tokens_of("-(2.5 + 3)%**2") == ("-", "(", "2.5", "+", "3", ")", "%", "^", "2")


@given(st.fractions(max_denominator=1000), st.integers(0, 4))
def test_rounding(value: Fraction, places: int) -> None:
    rounded = round_half_up(value, places)
    assert rounded == -round_half_up(-value, places)
    assert 10**places % rounded.denominator == 0
    assert abs(rounded - value) * 2 * 10**places <= 1


@pytest.mark.parametrize("value", ["0", "146.4", "-0.05", "1" * 60, "0." + "0" * 500 + "1", "-" + "9" * 40 + ".5"])
def test_shortest(value: str) -> None:
    assert shortest(Fraction(value)) == shortest(Fraction(value + ("00" if "." in value else ".00"))) == value


def test_shortest_refuses_what_never_ends() -> None:
    with pytest.raises(ValueError, match="1/3 has no finite decimal notation"):
        shortest(Fraction(1, 3))

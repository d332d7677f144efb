"""Worked steps: each is right by itself, and the last holds the answer."""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.steps import digits_of, product_steps, quotient_steps

OPERANDS = st.builds(
    lambda units, places: f"{units // 10**places}.{units % 10**places:0{places}}" if places else str(units),
    st.integers(0, 10**6),
    st.integers(0, 3),
)


def number(text: str) -> int:
    return int(text[::-1])


@pytest.mark.parametrize(
    ("steps", "written"),
    [
        (product_steps("12", "34"), "840;0630:8040;"),
        (product_steps("57.84", "13.64"), "63132;040743:671073;0025371:6735012;00048750:67398870;"),
        (product_steps("5", "7"), "53;"),
        (product_steps("0", "0.5"), "00;000:000;"),
        (quotient_steps("7", "3", 2), "70:2:60;01:3:90;01:3:90;01:3:90;"),
        (quotient_steps("57.84", "13.64", 2), "48750:4:65450;08230:2:82720;02550:4:65450;04600:0:00000;"),
        (quotient_steps("1", "0.5", 1), "10:0:00;01:2:01;00:0:00;00:0:00;"),
    ],
)
def test_they_look_like_this(steps: str, written: str) -> None:
    assert steps == written


@given(OPERANDS, OPERANDS)
def test_products(left: str, right: str) -> None:
    """Partial products, and the sum of those so far; digits of one value at one distance."""
    a, digits = number(digits_of(left)), digits_of(right)
    *steps, rest = product_steps(left, right).split(";")
    assert rest == "" and len(steps) == len(digits)
    total = 0
    for place, (step, digit) in enumerate(zip(steps, digits, strict=True)):
        partial, _, so_far = step.partition(":")
        assert number(partial) == a * int(digit) * 10**place
        total += number(partial)
        assert number(so_far or partial) == total
        assert len(partial) == len(digits_of(left)) + 1 + place and len(so_far) in (0, len(partial))
    assert total == a * number(digits)


@given(OPERANDS, OPERANDS.filter(lambda text: Decimal(text) != 0), st.integers(1, 3))
def test_quotients(left: str, right: str, places: int) -> None:
    """What is left, how often the divisor goes into it, and that many times the divisor."""
    *steps, rest = quotient_steps(left, right, places).split(";")
    assert rest == ""
    parts = [step.split(":") for step in steps]
    common = max(len(text.partition(".")[2]) for text in (left, right))
    divisor = int(Decimal(right) * 10**common)
    for (remains, times, product), following in zip(parts, [*parts[1:], None], strict=True):
        assert number(product) == int(times) * divisor and 0 <= number(remains) - number(product) < divisor
        assert len(remains) == len(product) == len(str(divisor)) + 1
        if following is not None:
            assert number(following[0]) // 10 == number(remains) - number(product)
    with localcontext() as context:
        context.prec = 40
        wanted = (Decimal(left) / Decimal(right)).quantize(Decimal(1).scaleb(-places - 1), ROUND_DOWN)
    assert int("".join(times for _, times, _ in parts)) == int(wanted * 10 ** (places + 1))

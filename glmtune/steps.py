"""Worked steps of column arithmetic, as a small model can write them: every sign needs only signs that stand nearby.

Numbers within steps are written from the last digit to the first, without points, and as wide as they can become, so
that digits of one value stand at one distance and there is no exception. Products are made by place value, quotients by
long division.
"""

from __future__ import annotations

STEP = ";"  # ends a step


def digits_of(operand: str) -> str:
    """A non-negative operand as written, without its point, from the last digit to the first: `13.64` -> `4631`."""
    return operand.replace(".", "")[::-1]


def places_of(operand: str) -> int:
    """Decimals of an operand as written."""
    return len(operand.partition(".")[2])


def backwards(value: int, width: int) -> str:
    """A value from its last digit to its first, with zeros up to a width."""
    return str(value).rjust(width, "0")[::-1]


def product_steps(left: str, right: str) -> str:
    """The left number times each digit of the right one, and the sum so far: `12*34` -> `840;0630:8040;`.

    Each partial product is as wide as it can be and stands at its place, behind as many zeros; the first is itself the
    sum. The last sum has the digits of the product.

    Args:
        left, right: non-negative numbers, points allowed.
    """
    number = int(digits_of(left)[::-1])
    width, total, steps = len(digits_of(left)) + 1, 0, []
    for place, digit in enumerate(digits_of(right)):
        partial = number * int(digit)
        total += partial * 10**place
        written = "0" * place + backwards(partial, width)
        steps.append(f"{written}:{backwards(total, width + place)}" if place else written)
    return "".join(step + STEP for step in steps)


def quotient_steps(left: str, right: str, places: int) -> str:
    """Long division with a decimal more than is asked for: `7/3`, 2 places -> `70:2:60;01:3:90;01:3:90;01:3:90;`.

    Each step has what is left with the next digit brought down, how often the divisor goes into it, and that many times
    the divisor. The figures in the middle are the quotient's digits; the last of them says how it is rounded.

    Args:
        left, right: non-negative numbers, points allowed; the right one is not zero.
        places: decimals of the rounded quotient.
    """
    common = max(places_of(left), places_of(right))
    dividend, divisor = (digits_of(text)[::-1] + "0" * (common - places_of(text)) for text in (left, right))
    divisor = divisor.lstrip("0")
    dividend = dividend.rjust(len(divisor), "0") + "0" * (places + 1)
    number, width = int(divisor), len(divisor) + 1
    rest, steps = int(dividend[: len(divisor) - 1] or 0), []
    for digit in dividend[len(divisor) - 1 :]:
        rest = 10 * rest + int(digit)
        times = rest // number
        steps.append(f"{backwards(rest, width)}:{times}:{backwards(times * number, width)}")
        rest -= times * number
    return "".join(step + STEP for step in steps)

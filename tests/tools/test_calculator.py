"""The calculator is exact, and answers whatever it is asked."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.tools.calculator import MOST_CHARACTERS, Calculator, CalculatorSettings


@pytest.mark.parametrize(
    ("expression", "result"),
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
        ("", "error: expression: .*"),
        ("1.5^30", r"191751\.\d+"),
        ("9^99", r"\d{95}"),
        ("9^99*9^99", "error: .*too many digits"),
        ("(0.5^99)^100", "error: .*"),
        ("1" * 900, "error: .*too many digits"),
        ("1+" * MOST_CHARACTERS, "error: expression: .*"),
    ],
)
def test_it_never_fails(expression: str, result: str) -> None:
    assert re.fullmatch(result, Calculator().answer({"expression": expression}))


def test_it_rounds_as_its_settings_say() -> None:
    assert Calculator(CalculatorSettings(decimals=4)).answer({"expression": "2/3"}) == "0.6667"
    assert Calculator(CalculatorSettings(decimals=1)).answer({"expression": "1.25+0"}) == "1.25"
    assert Calculator(CalculatorSettings(decimals=1, round_all=True)).answer({"expression": "1.25+0"}) == "1.3"


@given(st.text(alphabet="0123456789.+-*/^%()[] x", max_size=60))
def test_any_text_has_an_answer(expression: str) -> None:
    assert Calculator().answer({"expression": expression})

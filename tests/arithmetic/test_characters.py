"""One table of characters serves problems and answers."""

import pytest

from glmtune.arithmetic.characters import (
    FULL_WIDTH,
    OPERATORS,
    PUNCTUATION,
    TYPOGRAPHIC,
    normalize_answer,
    normalize_problem,
    without_commas,
)


@pytest.mark.parametrize("normalize", [normalize_problem, normalize_answer])
def test_signs_of_arithmetic_are_the_same_in_problems_and_answers(normalize):
    for ascii, signs in OPERATORS.items():
        assert normalize(signs) == ascii * len(signs)
    wide = "".join(chr(code) for code in FULL_WIDTH if chr(code) != "，")
    assert normalize(wide) == "".join(chr(code) for code in range(33, 127) if chr(code) != ",") + " "


def test_no_character_stands_in_two_rows():
    signs = "".join([*map(chr, FULL_WIDTH), *OPERATORS.values(), *PUNCTUATION.values(), *TYPOGRAPHIC])
    assert [sign for sign in set(signs) if signs.count(sign) > 1] == ["，"]  # within a number, or between two


@pytest.mark.parametrize(
    ("text", "problem", "answer"),
    [
        ("５７．８×２", "57.8*2", "57.8*2"),
        ("１，２３４，５６７", "1,234,567", "1,234,567"),
        ("甲，乙", "甲,乙", "甲;乙"),
        ("3。5", "3.5", "3.5"),
        ("3。", "3.", "3。"),
        ("5²", "5²", "5^2"),
        ("2½", "2½", "2 1/2"),
        ("\\frac{3}{4}\\times\\left(2\\right)", "\\frac{3}{4}\\times\\left(2\\right)", " 3/4*(2)"),
        ("<<1+1=2>>2", "<<1+1=2>>2", "2"),
    ],
)
def test_normal_forms(text, problem, answer):
    assert (normalize_problem(text), normalize_answer(text)) == (problem, answer)


def test_commas_between_thousands():
    assert without_commas("1,234+5,678,901.5") == "1234+5678901.5"
    assert without_commas("1, 2,34") == "1, 2,34"

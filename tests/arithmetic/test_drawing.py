"""Problems are drawn as the settings say, and the same everywhere."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from glmtune.arithmetic.drawing import DrawingSettings, draw_problem
from glmtune.arithmetic.problems import Problem

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


def drawn(count: int = 300, seed: int = 0, **values: Any) -> list[Problem]:
    """So many problems; what is not wanted is drawn again."""
    settings, rng, problems = DrawingSettings(**values), random.Random(seed), []
    while len(problems) < count:
        problem = draw_problem(rng, settings)
        if problem is not None:
            problems.append(problem)
    return problems


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
    assert DrawingSettings(operators=given_operators).operators == weights
    counts = Counter(problem.facts()["operator"] for problem in drawn(operators=given_operators))
    assert set(counts) == set(weights)
    for operator, weight in weights.items():
        assert counts[operator] / 300 == pytest.approx(weight / sum(weights.values()), abs=0.1)


@pytest.mark.parametrize("kind", ["integer", "decimal"])
def test_kinds(kind: str) -> None:
    assert all(("." in problem.text) == (kind == "decimal") for problem in drawn(kinds=[kind]))


def test_maximum() -> None:
    seen = {int(o) for p in drawn(1500, maximum=12, kinds=["integer"]) for o in p.numbers}
    assert seen == set(range(13))
    assert max(Fraction(o) for p in drawn(maximum=12) for o in p.numbers) <= 12


def test_digits_come_in_all_lengths() -> None:
    made = drawn(600, digits=6, kinds=["integer"], operators="+")
    lengths = Counter(len(o) for p in made for o in p.numbers)
    assert set(lengths) == set(range(1, 7))
    assert min(lengths.values()) > 0.6 * 1200 / 6


def test_trailing_zeros() -> None:
    def some(share: float) -> bool:
        made = drawn(kinds=["decimal"], operators="+", trailing_zeros=share)
        return any("." in o and o.endswith("0") for p in made for o in p.numbers)

    assert some(1) and some(0.3) and not some(0)


def test_number_of_operands() -> None:
    made = drawn(num_operands=4)
    assert {len(problem.numbers) for problem in made} == {4}
    assert any(problem.facts()["operator"] == "mixed" for problem in made)


def test_expressions_of_the_fields_breadth() -> None:
    """All that the settings name occurs, and nothing that they do not."""
    texts = [problem.text for problem in drawn(400, **WIDE)]
    for sign in ("(", "[", "%", "^", "--", "*-", ".", "*-("):
        assert any(sign in text for text in texts), sign
    assert {len(problem.operators) for problem in drawn(200, num_operands={3: 1, 6: 1})} == {2, 5}
    assert not any(set("()[]%^") & set(problem.text) for problem in drawn(400, num_operands=4))


@pytest.mark.parametrize("operator", ["+", "-"])
@pytest.mark.parametrize("kind", ["integer", "decimal"])
def test_carries_are_balanced(operator: str, kind: str) -> None:
    examples = drawn(900, balance_carries=True, operators=operator, kinds=[kind], digits=4, decimals=2)
    counts = Counter(problem.facts()["carries"] for problem in examples)
    columns = 4 if kind == "integer" else 6
    assert set(counts) == set(range(columns))
    assert min(counts.values()) > 0.6 * 900 / columns


@pytest.mark.parametrize(("share", "same"), [(0.0, 0.2), (1.0, 0.82)])
def test_operands_of_the_same_length(share: float, same: float) -> None:
    """Leading zeros make one in ten shorter."""
    problems = drawn(400, 1, operators="-", kinds=["integer"], digits=6, same_digits=share)
    lengths = [{len(number) for number in problem.numbers} for problem in problems]
    assert sum(len(one) == 1 for one in lengths) / 400 == pytest.approx(same, abs=0.06)


def test_what_is_not_wanted_is_none() -> None:
    zeros = DrawingSettings(operators="/", maximum=1, kinds=["integer"])
    assert None in [draw_problem(random.Random(seed), zeros) for seed in range(20)]
    allowed = zeros.model_copy(update={"zero_divisors": True})
    values = [problem and problem.value() for problem in (draw_problem(random.Random(s), allowed) for s in range(20))]
    assert None in values and all(problem is not None for problem in drawn(20, **allowed.model_dump()))
    huge = DrawingSettings(digits=90, powers=1.0, most_exponent=100, num_operands=3)
    assert None in [draw_problem(random.Random(seed), huge) for seed in range(60)]
    decimals = DrawingSettings(kinds=["decimal"], decimals=1, maximum=1)
    assert None in [draw_problem(random.Random(seed), decimals) for seed in range(40)]


@pytest.mark.parametrize("operators", ["", {}, {"^": 1}, {"+": 0}])
def test_operators_that_there_are_not(operators: Any) -> None:
    with pytest.raises(ValueError, match="operator"):
        DrawingSettings(operators=operators)

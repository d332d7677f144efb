"""A problem has one answer, and a working that leads there or says that it does not; each is made once."""

from __future__ import annotations

import random

import pytest

from glmtune.arithmetic import solutions
from glmtune.arithmetic.problems import Problem
from glmtune.arithmetic.solutions import Solution
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings


def solve(text: str, *settings: object) -> Solution:
    problem = Problem.exactly(text)
    assert problem is not None
    return Solution(problem, *settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "answer", "draft", "working"),
    [
        ("19+23", "42", "24|", "91+32:240;24|"),
        ("57.80+13.2", "71", "00.17|", "08.75+02.31:00.170;00.17|"),
        ("5-13", "-8", "-8|", "50-31<80;-8|"),
        ("5/0", "undefined", "", ""),
    ],
)
def test_the_parts_of_a_solution(text: str, answer: str, draft: str, working: str) -> None:
    solution = solve(text, 2)
    assert (solution.answer, solution.draft, solution.working) == (answer, draft, working)
    assert solution.is_consistent


def test_a_working_that_cuts_decimals_may_miss_the_answer() -> None:
    assert not solve("2/3*3", 2, True, 2).is_consistent
    assert solve("2/3*3", 2, True, 6).is_consistent
    without_steps = solve("2^-1+1", 2)
    assert without_steps.working == "" and not without_steps.is_consistent and without_steps.answer == "1.5"


def test_the_working_is_built_once_for_each_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    build = solutions.expression_steps

    def count(items: object, *settings: object) -> object:
        built.append(tuple(items))  # type: ignore[arg-type]
        return build(items, *settings)  # type: ignore[arg-type]

    monkeypatch.setattr(solutions, "expression_steps", count)
    task, rng = Arithmetic(ArithmeticSettings(name="arithmetic")), random.Random(0)
    for _ in range(50):
        task.sample(rng)
    assert len(built) == 50

"""How many held-out examples are asked follows from what a few of them cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from glmtune.config import EvaluationSettings
from glmtune.evaluation import pace
from glmtune.evaluation.pace import Pace, measure_seconds
from glmtune.examples import Example

EXAMPLES = [Example(str(number), "") for number in range(100)]


@pytest.mark.parametrize(
    ("seconds", "asked"),
    [
        (0.01, (500, 200)),  # nano: all that are wanted
        (0.2, (500, 150)),
        (1.5, (200, 20)),
        (60.0, (10, 10)),  # some are asked in any case
    ],
)
def test_as_many_are_asked_as_the_time_allows(seconds: float, asked: tuple[int, int]) -> None:
    found = Pace(seconds, (500, 200), 10, EvaluationSettings(max_seconds=300))
    assert found.asked == asked
    assert f"{asked[0]} and {asked[1]} are asked (evaluation.max_seconds=300)" in str(found)


def test_never_more_during_than_before() -> None:
    assert Pace(0.001, (20, 200), 1, EvaluationSettings(max_seconds=300)).asked == (20, 20)


@pytest.mark.parametrize(("cost", "tried"), [(0.1, [2]), (10.0, [2, 15])])
def test_a_few_are_timed_and_more_where_it_matters(
    cost: float, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, counts = [0.0], []
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])

    def answer(examples: Sequence[Example]) -> Any:
        counts.append(len(examples))
        now[0] += cost * len(examples)

    assert measure_seconds(answer, EXAMPLES, 64, 300) == pytest.approx(cost)
    assert counts == tried

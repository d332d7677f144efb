"""How many held-out examples a model is asked, by the time that its answers take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from glmtune.config import EvaluationSettings
from glmtune.distributed import gather
from glmtune.examples import Example
from glmtune.reporting.numbers import duration

TRIED = (2, 16)  # examples that are timed: many are quicker for each, but a few show where time does not matter
LEAST = 10  # that are asked, however long they take


@dataclass(frozen=True)
class Pace:
    """What answers cost, and how many are asked for.

    Attributes:
        seconds: that an answer takes.
        wanted: examples before and after a training, and at each evaluation during it.
        evaluations: during it.
        settings: how long the answers may take.
    """

    seconds: float
    wanted: tuple[int, int]
    evaluations: int
    settings: EvaluationSettings

    @property
    def asked(self) -> tuple[int, int]:
        """How many examples are asked before and after, and at each evaluation."""
        fitting = self.settings.max_seconds / self.seconds
        before = min(self.wanted[0], max(LEAST, int(fitting)))
        return before, min(self.wanted[1], before, max(LEAST, int(fitting / max(1, self.evaluations))))

    def __str__(self) -> str:
        before, during = self.wanted
        whole = self.seconds * (2 * before + self.evaluations * during)
        return (
            f"To answer {before:,} held-out problems before and after, and {during:,} at each of {self.evaluations} "
            f"evaluations, would take about {duration(whole)}; {self.asked[0]:,} and {self.asked[1]:,} are asked "
            f"(evaluation.max_seconds={self.settings.max_seconds:g})."
        )


def measure_seconds(
    answer: Callable[[Sequence[Example]], Any], examples: Sequence[Example], batch_size: int, max_seconds: float
) -> float:
    """Return the seconds that an answer takes, the same on all processes.

    Args:
        answer: has the model answer examples.
        examples: of which some are answered, evenly chosen.
        batch_size: examples that are answered together.
        max_seconds: where all would take less, nothing more is tried.
    """
    seconds = 0.0
    for count in TRIED:
        some = examples[:: ceil(len(examples) / min(count, batch_size))]
        start = time.perf_counter()
        answer(some)
        seconds = max(gather([time.perf_counter() - start])) / len(some)
        if seconds * len(examples) <= max_seconds:
            break
    return seconds

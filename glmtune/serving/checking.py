"""Whether a run answers, in this process, as its report says: looked at before anybody else may ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.examples import Example
from glmtune.runtime import RunFolder
from glmtune.scoring import Score
from glmtune.serving.questions import Served

MOST_PROBLEMS = 20  # held-out problems, of those whose answers a report holds
NEEDED = {"prompt", "target", "completion", "verdict"}  # of a sample


@dataclass(frozen=True)
class Check:
    """How a run answers held-out problems anew.

    Attributes:
        asked: how many problems.
        same: how many are answered with the text that the report has.
        right_then, right_now: how many of the answers are right.
    """

    asked: int
    same: int
    right_then: int
    right_now: int

    @property
    def holds(self) -> bool:
        """Whether as many answers are right, or one less, which another order of rounding explains."""
        return self.right_now >= self.right_then - (self.same < self.asked)

    def __str__(self) -> str:
        """What was found, in a line."""
        found = f"{self.same} of {self.asked} held-out problems are answered as the report says"
        return found if self.same == self.asked else f"{found}; {self.right_then} were right, now {self.right_now}"


def check_answers(served: Served) -> Check | None:
    """Ask a run the held-out problems whose answers its report holds; None where there is no such report."""
    samples = samples_of(served.resolved.run)
    if not samples:
        return None
    settings = served.resolved.recipe.generation.model_copy(update={"do_sample": False})
    conversation, task = served.conversation, served.resolved.task
    questions = [conversation.ask(one["prompt"], settings, one.get("tools", ())) for one in samples]
    served.host.activate(served.adapter)
    now = dict(conversation.answer(questions))
    answered = [(sample, now[index]) for index, sample in enumerate(samples)]
    return Check(
        len(samples),
        sum(sample["completion"] == exchange.text for sample, exchange in answered),
        sum(Score(sample["verdict"]).correct for sample in samples),
        sum(
            task.score(Example(sample["prompt"], sample["target"]), exchange.text, exchange.tool_calls).correct
            for sample, exchange in answered
        ),
    )


def samples_of(run: RunFolder | None) -> Sequence[dict[str, Any]]:
    """Return what a run's report holds of its answers to held-out problems; nothing where it is damaged."""
    try:
        values = json.loads(run.report.read_bytes()) if run is not None else {}
        samples = values["after"]["samples"][:MOST_PROBLEMS]
        return [sample for sample in samples if sample.keys() >= NEEDED]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []

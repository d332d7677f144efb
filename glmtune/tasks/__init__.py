"""What is to be learned. A task draws examples and scores answers; it knows no model and imports no torch."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from glmtune.config import DataSettings, GenerationSettings, NamedSettings
from glmtune.examples import Example, Split
from glmtune.messages import Message, Prompt, ToolCall
from glmtune.runtime import UserError
from glmtune.scoring import Score
from glmtune.tools import Tool


@dataclass(frozen=True)
class Axis:
    """A fact of the examples, along which a report breaks the scores down.

    Attributes:
        name: of the fact, and of the breakdown in a report: `operator`.
        title: what the groups are, for people; empty: the name.
        labels: what people read of a group, in the order in which groups are shown; others follow. Where there is
            little room, the first word of a label stands alone.
        across: name of the axis that makes the columns of a table whose rows this one makes; None: no such table.
        group: tells the group of a fact's value, such as a range of numbers.
    """

    name: str
    title: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    across: str | None = None
    group: Callable[[Any], str] = str

    def group_of(self, facts: Mapping[str, Any]) -> str | None:
        """Return the group of an example with some facts; None where it has none."""
        return self.group(facts[self.name]) if self.name in facts else None


def up_to(most: int) -> Callable[[int], str]:
    """Return a grouping of whole numbers: each by itself up to `most`, and all larger ones together, as `9+`."""
    return lambda number: str(number) if number <= most else f"{most + 1}+"


class Task(ABC):
    """Base of all tasks. One file in this folder, or one of the user's, defines one subclass.

    Attributes:
        Settings: the task's settings; they become the fields of the recipe's `task` section.
        axes: of the facts of its examples, the most telling first: reports, tables and pages break scores down by them.
            Other facts count as well, as they are.
    """

    Settings: ClassVar[type[NamedSettings]] = NamedSettings
    axes: ClassVar[Sequence[Axis]] = ()

    def __init__(self, settings: NamedSettings, data: DataSettings | None = None):
        """A task by its settings, and by those that say how files of records are read."""
        self.settings, self.data = settings, data or DataSettings()

    @abstractmethod
    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """Draw one example of a split. The same `rng` state gives the same example on every machine."""

    def pose(self, rng: random.Random, split: Split = "train") -> Example:
        """Draw one example as it is asked, with the target of the whole answer, where `sample` gives parts to learn."""
        return self.sample(rng, split)

    def records(self, split: Split) -> Sequence[Example] | None:
        """Return all examples of a split, for a task that has records; None for one that draws without end."""
        return None

    @abstractmethod
    def score(self, example: Example, completion: str, calls: Sequence[ToolCall] = ()) -> Score:
        """Compare a model's answer with the example's target.

        Args:
            example: what was asked.
            completion: the answer; empty where it was refused, or where the last turn calls tools. The text is data:
                it is parsed, never run.
            calls: all that the model made on the way.
        """

    @property
    def tools(self) -> Sequence[Tool]:
        """Return the tools that a model is offered."""
        return ()

    @property
    def final_marker(self) -> str | None:
        """Return the text behind which the final answer stands, of a task that shows its working; None: all is answer.

        Where an answer must be of a form, such as JSON, only what follows the first such text must be.
        """
        return None

    def refuses(self, prompt: Prompt, turn: Message) -> str | None:
        """Return why a turn of the model is not accepted, which ends the conversation; None where it is.

        Args:
            prompt: what was asked, with the calls and their results since.
            turn: the assistant's message, with the `tool_calls` that it makes, which are not run yet.
        """
        return None

    def measure(self, prompt: Prompt, completion: str, calls: Sequence[ToolCall] = ()) -> dict[str, float]:
        """Return what can be measured of an answer without a target, by name; as `Score.metrics` has it."""
        return {}

    def remarks(self, prompt: Prompt, completion: str) -> dict[str, str | None]:
        """Return what can be said of an answer without a target, by name; None where there is nothing to say."""
        return {}

    @property
    def checks_working(self) -> bool:
        """Whether `holds` can tell of a working, as the task is set."""
        return False

    def holds(self, prompt: Prompt, completion: str, calls: Sequence[ToolCall] = ()) -> bool | None:
        """Return whether the working of an answer holds, by itself and without a target; None where nobody can tell."""
        return None

    def answer_in(self, prompt: Prompt, completion: str, calls: Sequence[ToolCall] = ()) -> str | None:
        """Return what an answer says, in one form for all that say the same; None where it says nothing."""
        return self.score(Example(prompt, completion), completion, calls).answer

    def tell(self, prompt: Prompt, completion: str, calls: Sequence[ToolCall] = ()) -> dict[str, float | str | None]:
        """Return what a prediction has beside an answer: what is measured, and what can be said of it."""
        return {**self.measure(prompt, completion, calls), **self.remarks(prompt, completion)}

    def answer_to(self, prompt: Prompt) -> str | None:
        """Return the right answer, where the task can work it out from the question alone."""
        return None

    def mark(self, prompt: Prompt, completion: str, calls: Sequence[ToolCall] = ()) -> dict[str, float | str | None]:
        """Return what is told of an answer to anybody's question.

        Where the task knows the right answer, these are also `correct` (1 or 0), the `answer` that was read off the
        completion (None where there is none), and the `right` one.
        """
        told = self.tell(prompt, completion, calls)
        right = self.answer_to(prompt)
        if right is None:
            return told
        score = self.score(Example(prompt, right), completion, calls)
        return {"correct": float(score.correct), "answer": score.answer, "right": right, **told}

    def holds_out(self, prompt: Prompt) -> bool:
        """Whether the model is judged by this, so that it must not be learned from anywhere."""
        return False

    def describe(self, prompt: Prompt, target: str) -> dict[str, Any]:
        """Return facts about a record that this task did not draw; empty where the task can tell nothing."""
        return {}


def check_choice(task: Task, settings: GenerationSettings) -> None:
    """See whether a task's answers can be chosen from as the settings say.

    Raises:
        UserError: it checks no workings.
    """
    if settings.num_samples > 1 and settings.choose == "checked" and not task.checks_working:
        raise UserError(
            "generation.choose=checked: this task, as it is set, checks no workings. Set generation.choose=majority; "
            "of arithmetic, task.check_steps=true checks those of style=steps."
        )


BASE = Task

"""What is to be learned. A task draws examples and scores answers; it knows no model and imports no torch."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from glmtune.config import DataSettings, NamedSettings
from glmtune.examples import Example, Split
from glmtune.messages import Prompt
from glmtune.scoring import Score


@dataclass(frozen=True)
class Reply:
    """What a tool says to a completion that calls it.

    Attributes:
        text: the result, or why there is none.
        ends: the model is not asked again.
    """

    text: str
    ends: bool = False


class Task(ABC):
    """Base of all tasks. One file in this folder, or one of the user's, defines one subclass.

    Attributes:
        Settings: the task's settings; they become the fields of the recipe's `task` section.
    """

    Settings: ClassVar[type[NamedSettings]] = NamedSettings

    def __init__(self, settings: NamedSettings, data: DataSettings | None = None):
        """A task by its settings, and by those that say how files of records are read."""
        self.settings, self.data = settings, data or DataSettings()

    @abstractmethod
    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """Draw one example of a split. The same `rng` state gives the same example on every machine."""

    def records(self, split: Split) -> Sequence[Example] | None:
        """All examples of a split, for a task that has records; None for one that draws without end."""
        return None

    @abstractmethod
    def score(self, example: Example, completion: str) -> Score:
        """Compare a model's text with the example's target. The text is data: it is parsed, never run."""

    def reply(self, prompt: Prompt, completion: str) -> Reply | None:
        """What a tool says to a completion; None where none is called, and the completion is the answer.

        Args:
            prompt: what was asked, with the calls and observations since.
            completion: the model's next words.
        """
        return None

    def remarks(self, prompt: Prompt, completion: str) -> dict[str, Any]:
        """What is to be known of an answer for which there is no target: fields beside it in a file of predictions."""
        return {}

    def holds_out(self, prompt: Prompt) -> bool:
        """Whether the model is judged by this, so that it must not be learned from anywhere."""
        return False

    def describe(self, prompt: Prompt, target: str) -> dict[str, Any]:
        """Facts about a record that this task did not draw; empty where the task can tell nothing."""
        return {}


BASE = Task

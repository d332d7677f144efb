"""What is to be learned. A task draws examples and scores answers; it knows no model and imports no torch."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from glmtune.config import DataSettings, NamedSettings
from glmtune.records import Prompt

Split = Literal["train", "held_out"]
Verdict = Literal["exact", "equal", "wrong", "unparseable"]


@dataclass(frozen=True)
class Example:
    """One thing to learn, or to ask.

    Attributes:
        prompt: what the model is asked.
        target: what it should answer.
        facts: what is known of the example (operator, digits, ...); evaluation breaks its scores down by them.
        every_turn: the assistant's turns in the prompt are to be learned, too.
    """

    prompt: Prompt
    target: str
    facts: dict[str, Any] = field(default_factory=dict)
    every_turn: bool = False


@dataclass(frozen=True)
class Score:
    """How good an answer is.

    Attributes:
        verdict: `exact` as the target has it; `equal` the same value, written otherwise; `wrong`; `unparseable` no
            answer, or several.
        answer: the answer that was read off the completion.
        faithful: where a tool was to be called: whether it was called with what was asked.
    """

    verdict: Verdict
    answer: str | None = None
    faithful: bool | None = None

    @property
    def correct(self) -> bool:
        """The value is right: `exact` or `equal`."""
        return self.verdict in ("exact", "equal")


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


def split_of(problem: str, held_out: float) -> Split:
    """The split that a normalised problem belongs to, decided by its hash: on any machine, in any order.

    Args:
        problem: the problem in its normal form, so that two spellings of it fall into one split.
        held_out: share of all problems that is held out, 0 to 1.
    """
    digest = hashlib.sha256(problem.encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < held_out * 2**64 else "train"

"""What is learned or asked, with where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from glmtune.messages import Message, Prompt

Split = Literal["train", "held_out"]


class Source(NamedTuple):
    """Where a record stands, and the format that it was read by. Rows of tables without lines are counted from 1."""

    file: str
    line: int
    format: str = ""

    def __str__(self) -> str:
        return f"line {self.line} of {self.file}"


def name_sources(sources: Iterable[Source]) -> str:
    """Return what messages call some records: `lines 3, 30 of a.jsonl and line 7 of b.jsonl`."""
    lines: dict[str, set[int]] = {}
    for source in sources:
        lines.setdefault(source.file, set()).add(source.line)
    return " and ".join(
        f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))} of {file}"
        for file, numbers in lines.items()
    )


@dataclass(frozen=True)
class Example:
    """One thing to learn, or to ask.

    Attributes:
        prompt: what the model is asked: a text, or messages.
        target: what it should answer; beside calls of tools, what is said with them, which may be nothing.
        tool_calls: the calls that the answer makes, as messages have them.
        reasoning_content: what is thought before the answer, where that has a field of its own.
        facts: what is known of the example (operator, digits, ...); evaluation breaks its scores down by them.
        train_on_all_turns: the assistant's turns in the prompt are to be learned, too.
        tools: definitions of the tools that may be called, as chat templates take them.
        rejected: an answer that is worse than the target.
        text: plain text to learn from, in place of prompt and target.
        images: files of the images that parts of the prompt refer to, in order.
        source: file and line of the record; None for what was drawn.
        notes: what of the record was left out to make it usable.
    """

    prompt: Prompt
    target: str
    facts: dict[str, Any] = field(default_factory=dict)
    train_on_all_turns: bool = False
    tool_calls: Sequence[dict[str, Any]] = ()
    reasoning_content: str = ""
    tools: Sequence[dict[str, Any]] = ()
    rejected: str | None = None
    text: str | None = None
    images: Sequence[str] = ()
    # Where it stands and what is noted about it is no part of what it says.
    source: Source | None = field(default=None, compare=False)
    notes: Sequence[str] = field(default=(), compare=False)

    @property
    def question(self) -> Prompt:
        """The prompt; of plain text, the text: by this examples are told apart, and split."""
        return self.prompt if self.text is None else self.text

    @property
    def answer(self) -> Message:
        """The target as the assistant's message."""
        thoughts = {"reasoning_content": self.reasoning_content} if self.reasoning_content else {}
        calls = {"tool_calls": list(self.tool_calls)} if self.tool_calls else {}
        return {"role": "assistant", "content": self.target, **thoughts, **calls}


def split_of(problem: str, held_out: float) -> Split:
    """Return the split that a normalised problem belongs to, decided by its hash: on any machine, in any order.

    Args:
        problem: the problem in its normal form, so that two spellings of it fall into one split.
        held_out: share of all problems that is held out, 0 to 1.
    """
    return "held_out" if threshold_of(problem) < held_out * 2**64 else "train"


def threshold_of(problem: str) -> int:
    """Return above which share, times 2**64, a normalised problem is held out."""
    return int.from_bytes(hashlib.sha256(problem.encode()).digest()[:8], "big")

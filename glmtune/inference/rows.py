"""A request on its way to its answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event

import torch

from glmtune.inference.completion import Completion, FinishReason, Likeliest, Matcher, Request
from glmtune.inference.reading import AnswerReader


@dataclass(eq=False)
class Row:
    """A request while it is answered.

    Attributes:
        request: what is asked.
        reader: of the answer; knows what ends it.
        token_ids, logprobs, top_logprobs: what the model wrote so far, and what is told of it.
        has_ended: nothing follows.
        is_abandoned: set where nobody listens any more.
        error: why there is no answer; None where there is one.
        generator: of what is sampled; on the CPU, so that a seed means the same everywhere.
        matcher: how far the answer has come in what it must be; None where it may be anything.
    """

    request: Request
    reader: AnswerReader
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[Likeliest] = field(default_factory=list)
    has_ended: bool = False
    is_abandoned: Event = field(default_factory=Event)
    error: Exception | None = None
    generator: torch.Generator | None = None
    matcher: Matcher | None = None

    def __post_init__(self) -> None:
        request = self.request
        self.generator = None if request.seed is None else torch.Generator().manual_seed(request.seed)
        self.matcher = None if request.constraint is None else request.constraint.matcher()

    @property
    def is_cancelled(self) -> bool:
        """Whether its answer is not wanted any more."""
        return self.request.cancellation.is_set() or self.is_abandoned.is_set()

    @property
    def most(self) -> int:
        """How many tokens prompt and answer may come to."""
        return len(self.request.input_ids) + self.request.settings.longest

    @property
    def is_whole(self) -> bool:
        """Whether the answer ended by itself."""
        ids = self.token_ids
        return bool(ids) and (ids[-1] in self.reader.stops or self.reader.ends_stopped(ids, self.request.stop))

    def take(self, token_id: int) -> None:
        """Go on with the next token."""
        self.token_ids.append(token_id)
        if self.matcher is not None:
            self.matcher.advance(token_id)
        self.has_ended = len(self.token_ids) >= self.request.settings.longest or self.is_whole

    def complete(self) -> Completion | None:
        """Return the answer; None where it has not ended, or was cancelled before.

        Raises:
            Exception: what the model answered instead.
        """
        request = self.request
        if self.error is not None:
            raise self.error
        if not self.has_ended:
            return None
        is_broken_off = self.matcher is not None and self.matcher.fault is not None
        reason: FinishReason = "stop" if self.is_whole and not is_broken_off else "length"
        return Completion(
            self.reader.read(self.token_ids, request.stop),
            self.token_ids,
            len(request.input_ids),
            reason,
            self.logprobs if request.logprobs else None,
            self.top_logprobs if request.logprobs and request.top_logprobs else None,
        )

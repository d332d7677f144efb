"""What is known of the answers to one request, and the form of whatever says them in a dialect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from time import time
from typing import Any, ClassVar

from glmtune.inference.completion import Likeliest
from glmtune.messages import Message
from glmtune.serving.asking import Accepted, Asked, Ended, Event, Piece, RefusedError, Said, Service


@dataclass
class Answer:
    """One answer, so far."""

    index: int
    pieces: list[Piece] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def end(self) -> Ended:
        """How it ended, once it has."""
        assert self.ended is not None
        return self.ended

    @property
    def token_ids(self) -> list[int]:
        """All its tokens."""
        return list(chain.from_iterable(piece.token_ids for piece in self.pieces))

    @property
    def logprobs(self) -> list[float]:
        """Of all its tokens, where they were asked for."""
        return list(chain.from_iterable(piece.logprobs or () for piece in self.pieces))

    @property
    def top_logprobs(self) -> list[Likeliest]:
        """Of the places of all its tokens, where they were asked for."""
        return list(chain.from_iterable(piece.top_logprobs or () for piece in self.pieces))


class Reply(ABC):
    """The answers to one request, in one dialect.

    Attributes:
        names: what the dialect calls a field of what is asked, where the name is another.
        asked, service: what is asked, and whoever answers.
        accepted: the first event, once it is there.
        answers: those that have begun, or all that were asked for.
        created: seconds since 1970.
    """

    names: ClassVar[Mapping[str, str]] = {}
    accepted: Accepted

    def __init__(self, asked: Asked, service: Service) -> None:
        self.asked, self.service, self.created = asked, service, int(time())
        self.answers = [Answer(index) for index in range(asked.n)]

    def take(self, event: Event) -> None:
        """Keep an event."""
        if isinstance(event, Accepted):
            self.accepted = event
        elif isinstance(event, Piece):
            self.answers[event.index].pieces.append(event)
        elif isinstance(event, Said):
            self.answers[event.index].said.append(event.message)
        else:
            self.answers[event.index].ended = event

    @property
    def completion_tokens(self) -> int:
        """How many tokens the model has written, in all answers."""
        return sum(
            sum(len(piece.token_ids) for piece in answer.pieces)
            if answer.ended is None
            else answer.ended.completion_tokens
            for answer in self.answers
        )

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """Return the body of a response, once all answers have ended."""

    @abstractmethod
    def events(self, event: Event) -> Iterator[str]:
        """Yield what a stream says of an event that was taken."""

    @abstractmethod
    def last_events(self) -> Iterator[str]:
        """Yield what a stream says once all answers have ended."""

    @abstractmethod
    def fault_events(self, error: RefusedError) -> Iterator[str]:
        """Yield what a stream says where it must end early."""

    def rename(self, error: RefusedError) -> RefusedError:
        """Return an error with the dialect's own name of the field."""
        head = (error.field or "").partition(".")[0]
        if head in self.names:
            error.field = self.names[head]
        return error


def as_number(logprob: float) -> float:
    """Return a log-probability that JSON has a number for; what is impossible has OpenAI's -9999."""
    return max(logprob, -9999.0)


def entries_of(answer: Answer, service: Service, model: str) -> list[dict[str, Any]]:
    """Return the tokens of an answer with their log-probabilities, as OpenAI's chat dialect has them.

    Args:
        answer: or a piece of one.
        service: knows the tokens' texts.
        model: that answered.
    """
    texts = service.token_texts(model, answer.token_ids)
    entries = [{**_entry(*pair), "top_logprobs": []} for pair in zip(texts, answer.logprobs, strict=True)]
    for entry, likely in zip(entries, answer.top_logprobs, strict=False):
        likely_texts = service.token_texts(model, [token for token, _ in likely])
        pairs = zip(likely_texts, (logprob for _, logprob in likely), strict=True)
        entry["top_logprobs"] = [_entry(*pair) for pair in pairs]
    return entries


def _entry(text: str, logprob: float) -> dict[str, Any]:
    is_whole = "\ufffd" not in text
    return {"token": text, "logprob": as_number(logprob), "bytes": list(text.encode()) if is_whole else None}

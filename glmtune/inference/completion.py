"""What an engine is asked, and what it gives: requests of token ids, and the model's answers to them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Literal, Protocol

from glmtune.config import GenerationSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length", "tool_calls"]
Likeliest = Sequence[tuple[int, float]]  # tokens with their log-probabilities, the likeliest first


class Matcher(Protocol):
    """How far an answer has come in what it must be. One answer has one matcher."""

    @property
    def fault(self) -> str | None:
        """Why the answer ends before it is that; None where it does not."""

    def allowed(self) -> Tensor:
        """Return (V,) bool on the CPU: which tokens may be next; at least one, if only one that ends the answer."""

    def advance(self, token_id: int) -> None:
        """Go on with the next token of the answer, an allowed one."""


class Constraint(Protocol):
    """What an answer must be: JSON of a schema, a text of a pattern, a text of a grammar."""

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of an answer."""


@dataclass(frozen=True)
class Request:
    """One prompt, and how it is to be answered. Requests of one batch may differ in everything.

    Attributes:
        input_ids: the prompt, encoded with the template.
        settings: how to decode; `batch_size` bounds the batch that the request is answered in.
        seed: of what is sampled, which then depends on nothing else in the batch; None: torch's own generator.
        stop: texts that end the answer, of which they are no part.
        logprobs: whether the log-probabilities of the tokens are asked for.
        top_logprobs: how many of the likeliest tokens are told beside each, where `logprobs` are asked for.
        constraint: what the answer must be; None: anything.
        cancellation: once set, the request leaves its batch without an answer; from any thread.
    """

    input_ids: Sequence[int]
    settings: GenerationSettings
    seed: int | None = None
    stop: Sequence[str] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    constraint: Constraint | None = None
    cancellation: Event = field(default_factory=Event, compare=False, repr=False)


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: the answer, without control tokens and without what the template puts before answers.
        token_ids: all that the model wrote, with the token that ends the answer, if it wrote one.
        prompt_tokens: how many tokens it was asked.
        finish_reason: `stop` where the answer ended by itself; `length` where it was cut off at `max_new_tokens`;
            `tool_calls` where it ended with calls of tools.
        logprobs: natural logarithm of the probability that the model gave each token, before temperature and `top_p`;
            as many as `token_ids`. None where nobody asked for them.
        top_logprobs: for each token, the likeliest ones at its place with theirs, the likeliest first; None where
            nobody asked for them.
    """

    text: str
    token_ids: Sequence[int]
    prompt_tokens: int
    finish_reason: FinishReason
    logprobs: Sequence[float] | None = None
    top_logprobs: Sequence[Likeliest] | None = None


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer that is streamed.

    Attributes:
        text: may be empty, while it is open what the tokens will mean.
        token_ids: the tokens that came with it.
        logprobs: theirs; None where nobody asked for them.
        top_logprobs: the likeliest tokens at their places; None where nobody asked for them.
    """

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[float] | None = None
    top_logprobs: Sequence[Likeliest] | None = None


class Answering(Protocol):
    """Whoever answers requests: `Engine`, or `LlamaCppEngine`.

    Attributes:
        tokenizer: with the template.
        limit: longest sequence in tokens that the model takes; None where it states none.
    """

    tokenizer: PreTrainedTokenizerBase
    limit: int | None

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield (index of a request, its answer) in any order; those that are cancelled get none.

        Requests may be appended in the meantime, which are answered as well.
        """

    def stream(self, request: Request) -> Generator[Delta, None, Completion | None]:
        """Yield one answer piece by piece; return it whole, or None if the request was cancelled."""

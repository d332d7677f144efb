"""OpenAI's `/v1/completions`: a text is gone on with, and no template is put around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Annotated, Any

from pydantic import Field

from glmtune.serving.answers import Answer, Reply, as_number
from glmtune.serving.asking import Asked, Ended, Event, Limits, Piece, RefusedError, Service
from glmtune.serving.dialects.bodies import as_event, new_id
from glmtune.serving.dialects.openai import DONE, said_in, usage_of
from glmtune.serving.dialects.sampling import SamplingBody, only_one
from glmtune.serving.dialects.unsupported import COMPLETIONS
from glmtune.serving.errors import openai_error

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class CompletionBody(SamplingBody):
    """The body of `/v1/completions`. Without `max_tokens`, an answer is as long as the model's run says."""

    unsupported = COMPLETIONS
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    def asked(self, limits: Limits) -> Asked:
        """Return what is asked.

        Raises:
            RefusedError: it is beyond the limits, or its fields do not go together.
        """
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RefusedError("must be `n`: all answers are given. Leave it out", field="best_of")
        return Asked(
            prompt=self._only_prompt(),
            is_raw=True,
            logprobs=self.logprobs is not None,
            top_logprobs=self.logprobs or 0,
            format=only_one(self.formats()),
            **self.sampling(limits),
        )

    def _only_prompt(self) -> str | list[int]:
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise RefusedError(f"holds {len(prompt)} prompts. Send a request for each", field="prompt")
            prompt = prompt[0]
        if not prompt:
            raise RefusedError("is empty, so that there is nothing to go on with", field="prompt")
        return prompt  # type: ignore[no-any-return]


class CompletionReply(Reply):
    """Answers as `text_completion`, whole or as a stream; `messages` as in `ChatReply`."""

    names = {"messages": "prompt", "format": "structured_outputs"}

    def __init__(self, asked: Asked, service: Service, tells_usage: bool = False) -> None:
        super().__init__(asked, service)
        self.tells_usage, self.id = tells_usage, new_id("cmpl-")
        self._offsets = [0] * asked.n

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(answer.index, answer.end.message["content"] or "", answer.end, self._logprobs(answer))
            for answer in self.answers
        ]
        return {**self._head(), "choices": choices, "usage": usage_of(self)}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.accepted.model}

    def _choice(self, index: int, text: str, ended: Ended | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        more = said_in(self.answers[index]) if ended else {}
        reason = ended.finish_reason if ended else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, **more}

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        if not self.asked.logprobs:
            return None
        texts = self.service.token_texts(self.accepted.model, answer.token_ids)
        *offsets, self._offsets[answer.index] = accumulate(map(len, texts), initial=self._offsets[answer.index])
        return {
            "tokens": texts,
            "token_logprobs": [as_number(logprob) for logprob in answer.logprobs],
            "top_logprobs": [self._by_text(likely) for likely in answer.top_logprobs] or None,
            "text_offset": offsets,
        }

    def _by_text(self, likely: Sequence[tuple[int, float]]) -> dict[str, float]:
        texts = self.service.token_texts(self.accepted.model, [token for token, _ in likely])
        return {text: as_number(logprob) for text, (_, logprob) in zip(texts, likely, strict=True)}

    def events(self, event: Event) -> Iterator[str]:
        if isinstance(event, Piece) and (event.text or (event.token_ids and self.asked.logprobs)):
            logprobs = self._logprobs(Answer(event.index, [event]))
            yield self._chunk([self._choice(event.index, event.text, None, logprobs)])
        elif isinstance(event, Ended):
            yield self._chunk([self._choice(event.index, "", event, None)])

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
        return as_event({**self._head(), "choices": choices, **({"usage": usage} if self.tells_usage else {})})

    def last_events(self) -> Iterator[str]:
        if self.tells_usage:
            yield self._chunk([], usage_of(self))
        yield DONE

    def fault_events(self, error: RefusedError) -> Iterator[str]:
        yield as_event(openai_error(error))
        yield DONE

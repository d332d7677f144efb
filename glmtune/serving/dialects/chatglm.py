"""The original ChatGLM-6B `api.py`: `POST /` with a prompt and the history of the conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from glmtune.messages import Message
from glmtune.serving.answers import Reply
from glmtune.serving.asking import Asked, Event, Limits, RefusedError, Service
from glmtune.serving.dialects.bodies import RequestBody, as_event, check_count
from glmtune.serving.dialects.openai import said_in
from glmtune.serving.dialects.sampling import Positive, Share, Temperature
from glmtune.serving.errors import openai_error

Turn = Annotated[list[str], Field(min_length=2, max_length=2)]  # a question, and the answer to it


class ChatGLMBody(RequestBody):
    """The body of `POST /`. What is left out is as the model's run says, not as the original server had it.

    Attributes:
        max_length: tokens that prompt and answer may have together.
    """

    prompt: str
    history: list[Turn] | None = None
    max_length: Positive | None = None
    top_p: Share | None = None
    temperature: Temperature | None = None

    def asked(self, limits: Limits, service: Service) -> Asked:
        """Return what is asked.

        Raises:
            RefusedError: it is beyond the limits, or leaves no room for an answer.
        """
        history = self.history or []
        check_count(history, limits.messages // 2, "history")
        turns = [
            {"role": role, "content": text}
            for turn in history
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        messages: list[Message] = [*turns, {"role": "user", "content": self.prompt}]
        asked = Asked(None, messages, temperature=self.temperature, top_p=self.top_p)
        if self.max_length is None:
            return asked
        prompt_tokens = len(service.encode(asked))
        if self.max_length <= prompt_tokens:
            raise RefusedError(
                f"leaves no room for an answer: the prompt has {prompt_tokens} tokens", field="max_length"
            )
        return replace(asked, max_tokens=self.max_length - prompt_tokens)


class ChatGLMReply(Reply):
    """An answer with the history that it makes; `messages` as in `ChatReply`. It is not streamed."""

    names = {"messages": "prompt", "max_tokens": "max_length"}

    def __init__(self, asked: Asked, service: Service, body: ChatGLMBody) -> None:
        super().__init__(asked, service)
        self._body = body

    def whole(self) -> dict[str, Any]:
        answer = self.answers[0]
        response = answer.end.message["content"] or ""
        return {
            "response": response,
            "history": [*(self._body.history or []), [self._body.prompt, response]],
            "status": 200,
            "time": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            **said_in(answer),
        }

    def events(self, event: Event) -> Iterator[str]:
        yield from ()

    def last_events(self) -> Iterator[str]:
        yield from ()

    def fault_events(self, error: RefusedError) -> Iterator[str]:
        yield as_event(openai_error(error))

"""Anthropic's `/v1/messages`: what is answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glmtune.messages import Message
from glmtune.serving.answers import Reply
from glmtune.serving.asking import Accepted, Asked, Ended, Event, Piece, RefusedError, Service
from glmtune.serving.dialects.bodies import as_event, as_json, new_id
from glmtune.serving.errors import anthropic_error

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class AnthropicReply(Reply):
    """An answer as `message`, or as a stream of Anthropic's events.

    Beyond Anthropic's fields, the message, or the last `message_delta`, has `messages` where the server ran tools of
    its own, each with the blocks that a client would have sent or been sent; and `refusal` where the task refuses it.
    """

    names = {
        "prompt": "messages",
        "stop": "stop_sequences",
        "format": "output_config",
        "response_format": "output_config",
    }

    def __init__(self, asked: Asked, service: Service) -> None:
        super().__init__(asked, service)
        self.id = new_id("msg_")
        self._open = -1  # the block that is being streamed; they are numbered from 0
        self._kind: str | None = None  # of the block that is open

    def whole(self) -> dict[str, Any]:
        ended = self.answers[0].end
        return {**self._message(_blocks(ended.message), ended.completion_tokens), **_end(ended), **self._more(ended)}

    def _message(self, content: Sequence[Any], written: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.accepted.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(written),
        }

    def _usage(self, written: int) -> dict[str, int]:
        return {"input_tokens": self.accepted.prompt_tokens, "output_tokens": written}

    def _more(self, ended: Ended) -> dict[str, Any]:
        said = [_as_anthropic(message) for message in self.answers[0].said]
        return {
            **({"messages": said} if said else {}),
            **({"refusal": ended.refusal} if ended.refusal is not None else {}),
        }

    def events(self, event: Event) -> Iterator[str]:
        if isinstance(event, Accepted):
            yield _event("message_start", message=self._message([], 0))
            yield _event("ping")
        elif isinstance(event, Piece):
            if event.reasoning:
                yield from self._more_of("thinking", event.reasoning, signature="")
            if event.text:
                yield from self._more_of("text", event.text)
        elif isinstance(event, Ended):
            yield from self._last_blocks(event)
            usage = self._usage(event.completion_tokens)
            yield _event("message_delta", delta=_end(event), usage=usage, **self._more(event))

    def _last_blocks(self, ended: Ended) -> Iterator[str]:
        if self._kind is not None:
            yield self._stop()
        for block in _blocks({**ended.message, "content": None, "reasoning_content": None}):
            yield self._start({**block, "input": {}})
            yield self._delta({"type": "input_json_delta", "partial_json": as_json(block["input"])})
            yield self._stop()

    def _more_of(self, kind: str, text: str, **begun: str) -> Iterator[str]:
        if self._kind not in (None, kind):
            yield self._stop()
        if self._kind is None:
            yield self._start({"type": kind, kind: "", **begun})
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _start(self, block: Mapping[str, Any]) -> str:
        self._open, self._kind = self._open + 1, block["type"]
        return _event("content_block_start", index=self._open, content_block=block)

    def _delta(self, delta: Mapping[str, Any]) -> str:
        return _event("content_block_delta", index=self._open, delta=delta)

    def _stop(self) -> str:
        self._kind = None
        return _event("content_block_stop", index=self._open)

    def last_events(self) -> Iterator[str]:
        yield _event("message_stop")

    def fault_events(self, error: RefusedError) -> Iterator[str]:
        yield as_event(anthropic_error(error), "error")


def _event(name: str, **data: Any) -> str:
    return as_event({"type": name, **data}, name)


def _end(ended: Ended) -> dict[str, Any]:
    reason = "stop_sequence" if ended.stop is not None else _REASONS[ended.finish_reason]
    return {"stop_reason": reason, "stop_sequence": ended.stop}


def _blocks(message: Message) -> list[dict[str, Any]]:
    """The blocks of an assistant's message."""
    reasoning, text, calls = message.get("reasoning_content"), message["content"], message.get("tool_calls", ())
    return [
        *([{"type": "thinking", "thinking": reasoning, "signature": ""}] if reasoning else []),
        *([{"type": "text", "text": text}] if text else []),
        *({"type": "tool_use", "id": call.get("id", ""), **_called(call["function"])} for call in calls),
    ]


def _called(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "input": function["arguments"]}


def _as_anthropic(message: Message) -> dict[str, Any]:
    if message["role"] == "assistant":
        return {"role": "assistant", "content": _blocks(message)}
    result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id", ""), "content": message["content"]}
    return {"role": "user", "content": [result]}

"""OpenAI's `/v1/responses`: what is answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glmtune.serving.answers import Answer, Reply, entries_of
from glmtune.serving.asking import Accepted, Asked, Ended, Event, Piece, RefusedError, Service
from glmtune.serving.dialects.bodies import as_event, as_json, new_id
from glmtune.serving.dialects.openai import said_in
from glmtune.serving.errors import openai_error

Object = dict[str, Any]


class ResponsesReply(Reply):
    """An answer as `response`, or as a stream of its events.

    Beyond OpenAI's fields, the response has `messages` where the server ran tools of its own, and `refusal` where the
    task refuses the answer.
    """

    names = {
        "messages": "input",
        "prompt": "input",
        "max_tokens": "max_output_tokens",
        "format": "text",
        "response_format": "text",
    }

    def __init__(self, asked: Asked, service: Service, told: Mapping[str, Any]) -> None:
        """Answer a request.

        Args:
            asked, service: as of any reply.
            told: fields of the body that the response repeats.
        """
        super().__init__(asked, service)
        self.id, self._told = new_id("resp_"), told
        self._message_id, self._number = new_id("msg_"), -1
        self._output: list[Object] = []  # items that have been streamed
        self._text_at: int | None = None  # where among them the message is
        self._thoughts = ""  # that are to be streamed

    def whole(self) -> Object:
        answer, ended = self.answers[0], self.answers[0].end
        message = [self._message(answer)] * bool(ended.message["content"])
        return self._ended(ended, [*_thoughts(ended.message.get("reasoning_content")), *message, *_calls(ended)])

    def _response(self, status: str, output: list[Object], **more: Any) -> Object:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.accepted.model,
            "output": output,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self._told,
            **more,
        }

    def _ended(self, ended: Ended, output: list[Object]) -> Object:
        prompt, written = self.accepted.prompt_tokens, ended.completion_tokens
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + written,
        }
        is_cut = ended.finish_reason == "length"
        more = {
            "usage": usage,
            **({"incomplete_details": {"reason": "max_output_tokens"}} if is_cut else {}),
            **({"refusal": ended.refusal} if ended.refusal is not None else {}),
            **said_in(self.answers[0]),
        }
        return self._response("incomplete" if is_cut else "completed", output, **more)

    def _message(self, answer: Answer) -> Object:
        text = answer.end.message["content"] or ""
        content = [_text_part(text, self._logprobs(answer))]
        status = "incomplete" if answer.end.finish_reason == "length" else "completed"
        same = {"type": "message", "role": "assistant", "phase": None}
        return {"id": self._message_id, **same, "status": status, "content": content}

    def _logprobs(self, answer: Answer) -> list[Object]:
        if not self.asked.logprobs:
            return []
        return [
            {**entry, "bytes": entry["bytes"] or []} for entry in entries_of(answer, self.service, self.accepted.model)
        ]

    def events(self, event: Event) -> Iterator[str]:
        if isinstance(event, Accepted):
            for name in ("response.created", "response.in_progress"):
                yield self._event(name, response=self._response("in_progress", []))
        elif isinstance(event, Piece):
            self._thoughts += event.reasoning
            if event.text:
                yield from self._think()
                yield from self._text(event)
        elif isinstance(event, Ended):
            yield from self._think()
            if self._text_at is not None:
                yield from self._end_text()
            for item in _calls(event):
                yield from self._other(item)
            name = "response.incomplete" if event.finish_reason == "length" else "response.completed"
            yield self._event(name, response=self._ended(event, self._output))

    def _think(self) -> Iterator[str]:
        for item in _thoughts(self._thoughts):
            yield from self._other(item)
        self._thoughts = ""

    def _text(self, piece: Piece) -> Iterator[str]:
        if self._text_at is None:
            self._text_at = len(self._output)
            item = {"id": self._message_id, "type": "message", "role": "assistant", "phase": None}
            self._output.append({**item, "status": "in_progress", "content": []})
            yield self._item("response.output_item.added", self._output[-1])
            yield self._part("response.content_part.added", part=_text_part("", []))
        logprobs = self._logprobs(Answer(0, [piece]))
        yield self._part("response.output_text.delta", delta=piece.text, logprobs=logprobs)

    def _end_text(self) -> Iterator[str]:
        assert self._text_at is not None
        item = self._output[self._text_at] = self._message(self.answers[0])
        (part,) = item["content"]
        yield self._part("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
        yield self._part("response.content_part.done", part=part)
        yield self._item("response.output_item.done", item)

    def _other(self, item: Object) -> Iterator[str]:
        self._output.append(item)
        is_call = item["type"] == "function_call"
        begun = {**item, "status": "in_progress", **({"arguments": ""} if is_call else {})}
        yield self._item("response.output_item.added", begun)
        if is_call:
            place, arguments = self._place(item), item["arguments"]
            yield self._event("response.function_call_arguments.delta", **place, delta=arguments)
            name = "response.function_call_arguments.done"
            yield self._event(name, **place, arguments=arguments, name=item["name"])
        yield self._item("response.output_item.done", item)

    def _place(self, item: Object) -> Object:
        return {"item_id": item["id"], "output_index": len(self._output) - 1}

    def _item(self, name: str, item: Object) -> str:
        return self._event(name, output_index=len(self._output) - 1, item=item)

    def _part(self, name: str, **more: Any) -> str:
        return self._event(name, item_id=self._message_id, output_index=self._text_at, content_index=0, **more)

    def _event(self, kind: str, /, **data: Any) -> str:
        self._number += 1
        return as_event({"type": kind, "sequence_number": self._number, **data}, kind)

    def last_events(self) -> Iterator[str]:
        yield from ()

    def fault_events(self, error: RefusedError) -> Iterator[str]:
        fault = openai_error(error)["error"]
        yield self._event("error", error=fault, message=fault["message"], code=error.code, param=error.field)


def _text_part(text: str, logprobs: list[Object]) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _thoughts(reasoning: str | None) -> list[Object]:
    """The item of what the model thought, if it did."""
    thought = {
        "id": new_id("rs_"),
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": reasoning}],
        "status": "completed",
    }
    return [thought] if reasoning else []


def _calls(ended: Ended) -> list[Object]:
    """The items of the model's calls."""
    return [
        {
            "id": new_id("fc_"),
            "type": "function_call",
            "call_id": call.get("id", ""),
            "name": call["function"]["name"],
            "arguments": as_json(call["function"]["arguments"]),
            "status": "completed",
        }
        for call in ended.message.get("tool_calls", ())
    ]

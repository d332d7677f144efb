"""OpenAI's `/v1/chat/completions`, with what vLLM adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from glmtune.messages import Message, text_in
from glmtune.serving.answers import Answer, Reply, entries_of
from glmtune.serving.asking import Accepted, Asked, Ended, Event, Format, Limits, Piece, RefusedError, Service
from glmtune.serving.dialects.bodies import Body, as_event, as_json, check_conversation, new_id
from glmtune.serving.dialects.sampling import Positive, SamplingBody, only_one
from glmtune.serving.dialects.unsupported import CHAT, MESSAGE, PART
from glmtune.serving.errors import openai_error

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
WORDS = ("auto", "none", "required")  # of `tool_choice`
DONE = "data: [DONE]\n\n"


class TextPart(Body):
    """A part of a message's content. Images, sounds and files are refused."""

    unsupported = PART
    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """The function that was called; its arguments are a JSON text."""

    name: str
    arguments: str


class Call(Body):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    """A message of the conversation. `developer` is another word for `system`."""

    unsupported = MESSAGE
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def plain(self) -> Message:
        """Return the message with its parts joined, and without what is not there."""
        message = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            message["content"] = text_in(message["content"])
        return {**message, "role": "system" if self.role == "developer" else self.role}


class Function(Body):
    """A function that the client runs; `parameters` are a JSON schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    """A tool that the client runs."""

    type: Literal["function"]
    function: Function

    def definition(self) -> dict[str, Any]:
        """Return it as templates take it."""
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class ChosenFunction(Body):
    """Which function."""

    name: str


class ChosenTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class NamedSchema(Body):
    """A JSON schema. It is always kept to, whether `strict` says so or not."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    def formats(self) -> list[Format]:
        """Return it, unless it is any text.

        Raises:
            RefusedError: the schema is missing, or there is one too many.
        """
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise RefusedError(
                f"goes with the type 'json_schema', not {self.type!r}", field="response_format.json_schema"
            )
        if self.json_schema is not None:
            return [Format("json_schema", self.json_schema.schema_, "response_format.json_schema.schema")]
        return [] if self.type == "text" else [Format("json_object")]


class ChatBody(SamplingBody):
    """The body of `/v1/chat/completions`."""

    unsupported = CHAT
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    def asked(self, limits: Limits) -> Asked:
        """Return what is asked.

        Raises:
            RefusedError: it is beyond the limits, or its fields do not go together.
        """
        if self.top_logprobs and not self.logprobs:
            raise RefusedError("needs `logprobs` to be true", field="top_logprobs")
        messages = check_conversation([message.plain() for message in self.messages], limits)
        tools = [tool.definition() for tool in self.tools or ()]
        chosen = self.tool_choice.function.name if isinstance(self.tool_choice, ChosenTool) else self.tool_choice
        check_choice(chosen, isinstance(self.tool_choice, ChosenTool), tools)
        strict = {f"tools.{index}.function.strict": tool.function.strict for index, tool in enumerate(self.tools or ())}
        check_promises(chosen, tools, {"parallel_tool_calls": self.parallel_tool_calls is False, **strict})
        formats = [*(self.response_format.formats() if self.response_format else ()), *self.formats()]
        return Asked(
            prompt=messages,
            logprobs=bool(self.logprobs),
            top_logprobs=self.top_logprobs or 0,
            tools=tools,
            tool_choice=chosen or "auto",
            format=only_one(formats),
            **{**self.sampling(limits), "max_tokens": self._max_tokens()},
        )

    def _max_tokens(self) -> int | None:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise RefusedError("differs from `max_completion_tokens`: leave one out", field="max_tokens")
        return both.pop() if both else None


def check_choice(chosen: str | None, is_name: bool, tools: list[dict[str, Any]]) -> None:
    """See whether a tool can be chosen.

    Raises:
        RefusedError: there is none to be called, or none of this name, or two of one name.
    """
    names = [tool["function"]["name"] for tool in tools]
    twice = next((index for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise RefusedError(f"{names[twice]!r} is the name of another tool, too", field=f"tools.{twice}")
    if is_name and (chosen not in names or chosen in WORDS):
        raise RefusedError(
            f"{chosen!r} is none of `tools`: {', '.join(names) or 'there are none'}", field="tool_choice"
        )
    if chosen == "required" and not tools:
        raise RefusedError("'required' needs `tools`, and there are none", field="tool_choice")


def check_promises(chosen: str | None, tools: Sequence[Any], promises: Mapping[str, bool | None]) -> None:
    """See whether calls can be promised to be as they should: one alone, with arguments of its schema.

    Args:
        chosen: what `tool_choice` says.
        tools: that may be called.
        promises: whether each field asks for one.

    Raises:
        RefusedError: no call is demanded, so that what is written is up to the model.
    """
    field = next((field for field, is_asked in promises.items() if is_asked), None)
    if field is not None and tools and chosen in (None, "auto"):
        raise RefusedError("is promised only where `tool_choice` demands a call. Leave it out", field=field)


def as_openai(message: Mapping[str, Any]) -> Message:
    """Return a message with the arguments of its calls as JSON texts."""
    calls = [as_openai_call(call) for call in message.get("tool_calls", ())]
    return {**message, **({"tool_calls": calls} if calls else {})}


def as_openai_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments as JSON text."""
    function = call["function"]
    return {**call, "function": {"name": function["name"], "arguments": as_json(function["arguments"])}}


def usage_of(reply: Reply) -> dict[str, Any]:
    """Return how many tokens there were, as OpenAI has it."""
    prompt, written = reply.accepted.prompt_tokens, reply.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


class ChatReply(Reply):
    """Answers as `chat.completion`, or as a stream of `chat.completion.chunk`.

    Beyond OpenAI's fields, the last choice of an answer has `messages` where the server ran tools of its own: the calls
    that the model made, and what the tools said to them.
    """

    names = {"prompt": "messages", "format": "response_format"}

    def __init__(self, asked: Asked, service: Service, tells_usage: bool = False) -> None:
        super().__init__(asked, service)
        self.tells_usage, self.id = tells_usage, new_id("chatcmpl-")

    def whole(self) -> dict[str, Any]:
        choices = [self._choice(answer) for answer in self.answers]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage_of(self)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.accepted.model}

    def _choice(self, answer: Answer) -> dict[str, Any]:
        message = {"refusal": answer.end.refusal, **as_openai(answer.end.message)}
        if message.get("tool_calls"):
            message["content"] = message["content"] or None
        return {
            "index": answer.index,
            "message": message,
            "logprobs": self._logprobs(answer),
            "finish_reason": answer.end.finish_reason,
            **said_in(answer),
        }

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        if not self.asked.logprobs:
            return None
        return {"content": entries_of(answer, self.service, self.accepted.model), "refusal": None}

    def events(self, event: Event) -> Iterator[str]:
        if isinstance(event, Accepted):
            for answer in self.answers:
                yield self._chunk(answer.index, {"role": "assistant", "content": ""})
        elif isinstance(event, Piece):
            if event.reasoning:
                yield self._chunk(event.index, {"reasoning_content": event.reasoning})
            if event.text or (event.token_ids and self.asked.logprobs):
                logprobs = self._logprobs(Answer(event.index, [event]))
                yield self._chunk(event.index, {"content": event.text}, logprobs=logprobs)
        elif isinstance(event, Ended):
            for place, call in enumerate(event.message.get("tool_calls", ())):
                yield self._chunk(event.index, {"tool_calls": [{"index": place, **as_openai_call(call)}]})
            delta = {"refusal": event.refusal} if event.refusal else {}
            more = {"finish_reason": event.finish_reason, **said_in(self.answers[event.index])}
            yield self._chunk(event.index, delta, **more)

    def _chunk(self, index: int, delta: dict[str, Any], **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        usage = {"usage": None} if self.tells_usage else {}
        return as_event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def last_events(self) -> Iterator[str]:
        if self.tells_usage:
            yield as_event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(self)})
        yield DONE

    def fault_events(self, error: RefusedError) -> Iterator[str]:
        yield as_event(openai_error(error))
        yield DONE


def said_in(answer: Answer) -> dict[str, Any]:
    """Return the field `messages` of an answer for which the server ran tools of its own; else none."""
    return {"messages": [as_openai(message) for message in answer.said]} if answer.said else {}

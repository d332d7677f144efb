"""OpenAI's `/v1/responses`, without state: what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from glmtune.messages import Message, MessageError, check_message
from glmtune.serving.asking import Asked, Format, Limits, RefusedError
from glmtune.serving.dialects.bodies import Body, RequestBody, check_count
from glmtune.serving.dialects.openai import ToolName, check_choice, check_promises
from glmtune.serving.dialects.sampling import Positive, Share, StreamOptions, Temperature
from glmtune.serving.dialects.unsupported import RESPONSES, RESPONSES_ITEM, RESPONSES_TEXT, RESPONSES_TOOL


class TextPart(Body):
    """A text that was put in or out."""

    unsupported = RESPONSES_ITEM
    type: Literal["input_text", "output_text", "reasoning_text"]
    text: str


class Item(Body):
    """A message, a call, or what was said to one; which fields it has depends on its type."""

    unsupported = RESPONSES_ITEM
    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[TextPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[TextPart] | None = None
    summary: list[Any] | None = Field(None, max_length=0)

    def plain(self) -> Message:
        """Return it in the one form.

        Raises:
            RefusedError: it has not the fields of its type, or others.
        """
        needed = _FIELDS[self.type]
        given = self.model_dump(exclude_none=True).keys() - {"type", "id", "summary"}
        for name in sorted(needed - given):
            raise RefusedError(f"an item of type {self.type!r} needs it", field=name)
        for name in sorted(given - needed):
            raise RefusedError(f"an item of type {self.type!r} has no such field", field=name)
        if self.type == "function_call":
            function = {"name": self.name, "arguments": self.arguments}
            return {"role": "assistant", "tool_calls": [{"id": self.call_id, "type": "function", "function": function}]}
        if self.type == "function_call_output":
            return {"role": "tool", "content": _text_of(self.output), "tool_call_id": self.call_id}
        if self.type == "reasoning":
            return {"role": "assistant", "content": "", "reasoning_content": _text_of(self.content)}
        return {"role": "system" if self.role == "developer" else self.role, "content": _text_of(self.content)}


_FIELDS = {
    "message": {"role", "content"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
    "reasoning": {"content"},
}

_NAMES = {"tool_calls": "arguments", "tool_call_id": "call_id"}  # what the one form calls otherwise


def _text_of(content: str | Sequence[TextPart] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


class ResponsesTool(Body):
    """A function that the client runs."""

    unsupported = RESPONSES_TOOL
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def definition(self) -> dict[str, Any]:
        """Return it as templates take it."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type", "strict"})}


class ChosenTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    name: str


class TextFormat(Body):
    """What an answer must be. A schema is always kept to, whether `strict` says so or not."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def format(self) -> Format | None:
        """Return it, unless it is any text.

        Raises:
            RefusedError: the schema is missing, or there is one too many.
        """
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise RefusedError(f"goes with the type 'json_schema', not {self.type!r}", field="text.format.schema")
        if self.schema_ is not None:
            return Format("json_schema", self.schema_, "text.format.schema")
        return None if self.type == "text" else Format("json_object", field="text.format")


class TextConfig(Body):
    """How an answer is written."""

    unsupported = RESPONSES_TEXT
    format: TextFormat | None = None


class ResponsesBody(RequestBody):
    """The body of `/v1/responses`. Nothing is stored."""

    unsupported = RESPONSES
    model: str | None = None
    input: str | list[Item] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None

    def asked(self, limits: Limits) -> Asked:
        """Return what is asked.

        Raises:
            RefusedError: it is beyond the limits, or its fields do not go together.
        """
        tools = [tool.definition() for tool in self.tools or ()]
        chosen = self.tool_choice.name if isinstance(self.tool_choice, ChosenTool) else self.tool_choice
        check_choice(chosen, isinstance(self.tool_choice, ChosenTool), tools)
        strict = {f"tools.{index}.strict": tool.strict for index, tool in enumerate(self.tools or ())}
        check_promises(chosen, tools, {"parallel_tool_calls": self.parallel_tool_calls is False, **strict})
        tells = "message.output_text.logprobs" in (self.include or ())
        if self.top_logprobs and not tells:
            raise RefusedError("needs `include` to name 'message.output_text.logprobs'", field="top_logprobs")
        return Asked(
            model=self.model,
            prompt=self._messages(limits),
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=tells,
            top_logprobs=self.top_logprobs or 0,
            tools=tools,
            tool_choice=chosen or "auto",
            format=self.text.format.format() if self.text and self.text.format else None,
        )

    def told(self) -> dict[str, Any]:
        """Return the fields that the response repeats."""
        names = {"instructions", "max_output_tokens", "temperature", "top_p", "top_logprobs", "tools", "tool_choice"}
        told = self.model_dump(include=names, by_alias=True)
        is_parallel = self.parallel_tool_calls is not False
        choice = told["tool_choice"] or "auto"
        return {**told, "tools": told["tools"] or [], "tool_choice": choice, "parallel_tool_calls": is_parallel}

    def _messages(self, limits: Limits) -> list[Message]:
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        check_count(items, limits.messages, "input")
        messages: list[Message] = [{"role": "system", "content": self.instructions}] if self.instructions else []
        for index, item in enumerate(items):
            try:
                _add(messages, check_message(item.plain()))
            except (RefusedError, MessageError) as error:
                fault = error.fault if isinstance(error, MessageError) else str(error)
                name = _NAMES.get(error.field or "", error.field)
                raise RefusedError(fault, field=f"input.{index}.{name}") from None
        return messages


def _add(messages: list[Message], message: Message) -> None:
    """Add a message; what one turn of the assistant thought, said and called stands in items of their own."""
    last: Message = messages[-1] if messages else {"role": None}
    is_same_turn = last["role"] == message["role"] == "assistant" and not ("tool_calls" in last and message["content"])
    if not is_same_turn or (last["content"] and message["content"]):
        messages.append(message)
        return
    last["content"] = last["content"] or message["content"]
    for name in ("tool_calls", "reasoning_content"):
        if name in message:
            last[name] = [*last.get(name, ()), *message[name]] if name == "tool_calls" else message[name]

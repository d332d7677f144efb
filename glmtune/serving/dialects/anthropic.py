"""Anthropic's `/v1/messages`: what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from glmtune.messages import Message, MessageError, check_message
from glmtune.serving.asking import Asked, Format, Limits, RefusedError
from glmtune.serving.dialects.bodies import Body, RequestBody, check_count
from glmtune.serving.dialects.openai import ToolName, check_choice, check_promises
from glmtune.serving.dialects.sampling import Positive, Share, StopText
from glmtune.serving.dialects.unsupported import ANTHROPIC, ANTHROPIC_BLOCK, ANTHROPIC_OUTPUT, ANTHROPIC_TOOL


class TextBlock(Body):
    """A text."""

    unsupported = ANTHROPIC_BLOCK
    type: Literal["text"]
    text: str


class Block(Body):
    """A part of a message; which fields it has depends on its type. Images and documents are refused."""

    unsupported = ANTHROPIC_BLOCK
    type: Literal["text", "thinking", "tool_use", "tool_result"]
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None

    def check(self) -> None:
        """See whether it has the fields of its type, and no other.

        Raises:
            RefusedError: it has not.
        """
        needed, possible = _FIELDS[self.type]
        given = self.model_dump(exclude_none=True).keys() - {"type"}
        for name in sorted(needed - given):
            raise RefusedError(f"a block of type {self.type!r} needs it", field=name)
        for name in sorted(given - needed - possible):
            raise RefusedError(f"a block of type {self.type!r} has no such field", field=name)


_FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "text": ({"text"}, set()),
    "thinking": ({"thinking"}, set()),
    "tool_use": ({"id", "name", "input"}, set()),
    "tool_result": ({"tool_use_id"}, {"content", "is_error"}),
}


class AnthropicMessage(Body):
    """A message of the conversation."""

    role: Literal["user", "assistant"]
    content: str | list[Block]

    def plain(self) -> list[Message]:
        """Return it in the one form: results of tools are messages of their own.

        Raises:
            RefusedError: a block is not as its type, or not of this role.
        """
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        for index, block in enumerate(self.content):
            try:
                block.check()
                if block.type in ("thinking", "tool_use") and self.role == "user":
                    raise RefusedError("is said by the assistant alone", field="type")
                if block.type == "tool_result" and self.role == "assistant":
                    raise RefusedError("is told by the user", field="type")
            except RefusedError as error:
                raise RefusedError(str(error), field=f"content.{index}.{error.field}") from None
        return self._answer(self.content) if self.role == "assistant" else self._question(self.content)

    def _question(self, blocks: Sequence[Block]) -> list[Message]:
        results: list[Message] = [
            {"role": "tool", "content": _result_of(block), "tool_call_id": block.tool_use_id}
            for block in blocks
            if block.type == "tool_result"
        ]
        texts = [block.text or "" for block in blocks if block.type == "text"]
        return [*results, *([{"role": "user", "content": "".join(texts)}] if texts or not results else [])]

    def _answer(self, blocks: Sequence[Block]) -> list[Message]:
        text = "".join(block.text or "" for block in blocks)
        thinking = "".join(block.thinking or "" for block in blocks)
        calls = [
            {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
            for block in blocks
            if block.type == "tool_use"
        ]
        message = {"role": "assistant", "content": text, "tool_calls": calls, "reasoning_content": thinking or None}
        return [message]


def _result_of(block: Block) -> str:
    text = _text_of(block.content)
    return f"error: {text}" if block.is_error and not text.startswith("error") else text


def _text_of(content: str | Sequence[TextBlock] | None) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content or ())


class AnthropicTool(Body):
    """A tool that the client runs."""

    unsupported = ANTHROPIC_TOOL
    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    def definition(self) -> dict[str, Any]:
        """Return it as templates take it."""
        told = {"description": self.description} if self.description is not None else {}
        return {"type": "function", "function": {"name": self.name, **told, "parameters": self.input_schema}}


class ToolChoice(Body):
    """Whether tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """What an answer must be."""

    unsupported = ANTHROPIC_OUTPUT
    format: OutputFormat | None = None


class CountBody(RequestBody):
    """The body of `/v1/messages/count_tokens`."""

    unsupported = ANTHROPIC
    model: str | None = None
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None

    def asked(self, limits: Limits) -> Asked:
        """Return what is asked.

        Raises:
            RefusedError: it is beyond the limits, or its fields do not go together.
        """
        check_count(self.messages, limits.messages, "messages")
        messages: list[Message] = []
        for index, message in enumerate(self.messages):
            try:
                messages += [check_message(plain) for plain in message.plain()]
            except (RefusedError, MessageError) as error:
                fault = error.fault if isinstance(error, MessageError) else str(error)
                raise RefusedError(fault, field=f"messages.{index}.{error.field}") from None
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": _text_of(self.system)})
        tools = [tool.definition() for tool in self.tools or ()]
        form = self.output_config.format if self.output_config else None
        return Asked(
            model=self.model,
            prompt=messages,
            tools=tools,
            tool_choice=self._choice(tools),
            format=Format("json_schema", form.schema_, "output_config.format.schema") if form else None,
        )

    def _choice(self, tools: list[dict[str, Any]]) -> str:
        choice = self.tool_choice or ToolChoice(type="auto")
        if (choice.type == "tool") != (choice.name is not None):
            raise RefusedError("goes with the type 'tool'", field="tool_choice.name")
        chosen = choice.name or {"any": "required"}.get(choice.type, choice.type)
        check_choice(chosen, choice.name is not None, tools)
        strict = {f"tools.{index}.strict": tool.strict for index, tool in enumerate(self.tools or ())}
        one = {"tool_choice.disable_parallel_tool_use": choice.disable_parallel_tool_use}
        check_promises(chosen, tools, {**one, **strict})
        return chosen


class MessagesBody(CountBody):
    """The body of `/v1/messages`."""

    max_tokens: Positive
    stop_sequences: list[StopText] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Share | None = None
    top_k: Positive | None = None

    def asked(self, limits: Limits) -> Asked:
        """Return what is asked.

        Raises:
            RefusedError: it is beyond the limits, or its fields do not go together.
        """
        stop = tuple(self.stop_sequences or ())
        check_count(stop, limits.stop, "stop_sequences")
        same = {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
        return replace(super().asked(limits), stop=stop, **same)

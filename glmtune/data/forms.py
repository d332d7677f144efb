"""What a chat template has a form for. What it has none for is refused, and never left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune import registry
from glmtune.data.control_tokens import name_tokens
from glmtune.data.rendering import render_template
from glmtune.data.sandbox import TooMuchError
from glmtune.messages import Message, MessageError, check_messages, has_half_character, make_tool_call, text_in
from glmtune.models import templates
from glmtune.runtime import UserError

_KNOWN_TOOLS = re.compile(r"{#- known tools: (.*) -#}")
# A conversation to try templates with. Numbers that no template writes by itself show what of it arrives.
_QUESTION: Message = {"role": "user", "content": "7901?"}
_CALLS = [{"id": f"call0000{n}", **make_tool_call("calculate", {"expression": f"79{n}*7"})} for n in (1, 2)]
_RESULT: Message = {"content": "7919.", "name": "calculate", "tool_call_id": "call00001"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "tool_7927",
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "A text."}}},
    },
}


@dataclass(frozen=True)
class Forms:
    """What a template writes beside the texts of system, user and assistant.

    Attributes:
        tool_role: the role under which it writes what a tool said; None where it has none.
        tool_calls: how many calls of one message it writes: 0, 1, or 2 for any number.
        content_beside_calls: what it wants for a content that calls have not: an empty text, or None.
        tools: whether it writes definitions of tools.
        known_tools: tools that it calls without a definition.
    """

    tool_role: str | None = None
    tool_calls: int = 0
    content_beside_calls: str | None = ""
    tools: bool = False
    known_tools: frozenset[str] = frozenset()


@lru_cache(maxsize=64)
def find_forms(template: str, named: tuple[tuple[str, str], ...] = (("eos_token", "</s>"),)) -> Forms:
    """Find out what a template has a form for, by rendering it.

    Args:
        template: of a tokenizer.
        named: the tokenizer's named tokens.
    """

    def writes(messages: list[Message], expected: Sequence[str], tools: Sequence[Any] = ()) -> bool:
        try:
            text = render_template(template, messages, tools, True, dict(named)).text
        except TooMuchError:
            raise
        except Exception:  # a template is a stranger's program, and may raise anything
            return False
        return all(part in text for part in expected)

    def call(count: int, content: str | None) -> Message:
        return {"role": "assistant", "content": content, "tool_calls": _CALLS[:count]}

    expected = ["791*7", "792*7"]
    calls, beside = next(
        (
            (count, content)
            for count in (2, 1)
            for content in ("", None)
            if writes([_QUESTION, call(count, content)], expected[:count])
        ),
        (0, ""),
    )
    # The older templates of GLM say `observation`. Some write whatever role they are given; what they name comes first.
    roles = sorted(("tool", "observation"), key=lambda role: role not in template)
    answer = call(1, beside) if calls else {"role": "assistant", "content": "7907."}
    role = next(
        (role for role in roles if writes([_QUESTION, answer, {"role": role, **_RESULT}], [_RESULT["content"]])), None
    )
    return Forms(role, calls, beside, writes([_QUESTION], ["tool_7927"], [_TOOL]), find_known_tools(template))


def find_known_tools(template: str) -> frozenset[str]:
    """Return the tools that a template calls without a definition."""
    return frozenset(" ".join(_KNOWN_TOOLS.findall(template)).split())


def fit_to_template(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message], tools: Sequence[Any] = ()
) -> tuple[list[Message], list[Any]]:
    """Return messages and definitions of tools as the tokenizer's template takes them.

    Raises:
        UserError: a message is not in the one form, or the template has no form for something in it.
    """
    try:
        messages = [_flatten(message) for message in check_messages(prompt)]
        if has_half_character(tools):
            raise MessageError("tools", "hold half of a character, which is no text. Write them again")
    except MessageError as error:
        raise UserError(f"A message cannot be used. {error}") from None
    if not tools and all(message["role"] != "tool" and "tool_calls" not in message for message in messages):
        return messages, []
    forms = Forms()
    if tokenizer.chat_template is not None:
        template = tokenizer.get_chat_template(tools=list(tools) or None)
        forms = find_forms(template, tuple(name_tokens(tokenizer).items()))
    unknown = [tool for tool in tools if not _is_known(tool, forms.known_tools)]
    if unknown and not forms.tools:
        raise _refuse("definitions of tools (`tools`)", lambda other: other.tools)
    return [_fit(message, forms) for message in messages], unknown


def _is_known(tool: Mapping[str, Any], known: Collection[str]) -> bool:
    """Whether a template calls a tool without its definition, which says no more than our own tool's of this name."""
    function = tool.get("function", tool)
    own = (definition["function"].items() for definition in _own_definitions())
    return function.get("name") in known and any(all(part in items for part in function.items()) for items in own)


@cache
def _own_definitions() -> list[dict[str, Any]]:
    return [registry.find("glmtune.tools", name)().definition() for name in registry.names("glmtune.tools")]


def _fit(message: Message, forms: Forms) -> Message:
    calls = len(message.get("tool_calls", ()))
    if message["role"] == "tool":
        if forms.tool_role is None:
            raise _refuse("what a tool says (role 'tool')", lambda other: other.tool_role is not None)
        return {**message, "role": forms.tool_role}
    if calls and not forms.tool_calls:
        raise _refuse("calls of tools (`tool_calls`)", lambda other: other.tool_calls > 0)
    if calls > 1 and forms.tool_calls == 1:
        raise _refuse("several calls in one message (`tool_calls`)", lambda other: other.tool_calls > 1)
    if calls and not message["content"]:
        return {**message, "content": forms.content_beside_calls}
    return message


def _flatten(message: Message) -> Message:
    """Return a message whose content is a text, or None."""
    content = message["content"]
    if not isinstance(content, list):
        return message
    if other := next((part["type"] for part in content if part["type"] != "text"), None):
        raise MessageError("content", f"a part of type {other!r} cannot be read by this model; leave it out")
    return {**message, "content": text_in(content)}


def _refuse(what: str, has: Callable[[Forms], bool]) -> UserError:
    suited = [name for name in templates.list_presets() if has(find_forms(templates.read_preset(name)))]
    return UserError(
        f"The model's chat template has no form for {what}. These have one: data.template={', '.join(suited)}. "
        "Choose one of them, or leave that out."
    )

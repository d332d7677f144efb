"""One form of message: that of OpenAI's API and of transformers' chat templates.

`{"role": "user", "content": "1+1="}`. Roles are `system`, `user`, `assistant` and `tool`. `content` is a text, a list
of parts (`{"type": "text", "text": ...}`, `{"type": "image", ...}`), or None beside calls. An assistant's message may
have `tool_calls`; a `tool` message answers one of them. How calls are written as text belongs to the chat template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

_HALF = re.compile("[\ud800-\udfff]")  # of a character: a lone escape of JSON, or a byte that is no text

Message: TypeAlias = dict[str, Any]
ToolCall: TypeAlias = dict[str, Any]  # an entry of `tool_calls`
Prompt: TypeAlias = str | list[Message]  # a text is one user message

ROLES = ("system", "user", "assistant", "tool")
# What a message may hold beside its role. Alpaca's question has its two parts as well as the whole as `content`.
FIELDS = ("content", "tool_calls", "tool_call_id", "name", "reasoning_content", "instruction", "input")


class MessageError(ValueError):
    """A message that is not in the one form. It says which field of it is wrong, and the remedy.

    Attributes:
        field: `role`, `content`, `tool_calls`, ...
        fault: what is wrong with it, and the remedy.
    """

    def __init__(self, field: str, fault: str) -> None:
        super().__init__(f"{field}: {fault}.")
        self.field, self.fault = field, fault


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """Return messages; a text becomes one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def text_in(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Return the text of a message's content: of parts, those of type `text`, joined."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(str(part["text"]) for part in content if part.get("type") == "text")


def make_tool_call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of `tool_calls`; `arguments` are a mapping, not JSON, as transformers' templates take them."""
    return {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def check_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """Return messages in the one form.

    Raises:
        MessageError: one of them is not; it says which.
    """
    messages = []
    for number, message in enumerate(as_messages(prompt), start=1):
        try:
            messages.append(check_message(message))
        except MessageError as error:
            raise MessageError(error.field, f"{error.fault} (message {number})") from None
    return messages


def check_message(message: Any) -> Message:
    """Return a message in the one form: arguments of calls that are JSON become mappings, fields that are None go.

    Raises:
        MessageError: it cannot be brought into the form.
    """
    if not isinstance(message, Mapping):
        raise MessageError("role", f"a message is a mapping with 'role' and 'content', not {_describe(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise MessageError("role", f"{role!r} is none of {', '.join(ROLES)}{_suggest(role, ROLES)}")
    given = {field: value for field, value in message.items() if value is not None and field != "role"}
    for field in given:
        if field not in FIELDS:
            raise MessageError(str(field), f"a message has no such field; leave it out{_suggest(field, FIELDS)}")
        if field not in ("content", "tool_calls") and not isinstance(given[field], str):
            raise MessageError(field, f"must be a text, not {_describe(given[field])}")
    for field, value in given.items():
        if has_half_character(value):
            raise MessageError(field, "holds half of a character, which is no text. Write it again")
    calls = _check_calls(role, given.pop("tool_calls", []))
    content = _check_content(given.pop("content", None), needed=not calls)
    return {"role": role, "content": content, **given, **({"tool_calls": calls} if calls else {})}


def has_half_character(value: Any) -> bool:
    """Return whether a text, or one within a value of JSON, has half of a character, which no tokenizer takes."""
    if isinstance(value, str):
        return not value.isascii() and _HALF.search(value) is not None
    if isinstance(value, Mapping):
        return any(has_half_character(key) or has_half_character(inner) for key, inner in value.items())
    return isinstance(value, list | tuple) and any(map(has_half_character, value))


def check_tool_call(call: Any) -> dict[str, Any]:
    """Return an entry of `tool_calls` in the one form; its `id` stays.

    Args:
        call: `{"type": "function", "function": {"name", "arguments"}}`, or the inner mapping alone; arguments may be
            a JSON text, as OpenAI's API has them.

    Raises:
        MessageError: no name, or arguments that are no JSON object.
    """
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise MessageError("tool_calls", f"a call needs the function's 'name': {_shorten(call)}")
    name, arguments = function["name"], function.get("arguments") or {}
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        json.dumps(arguments, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        arguments = None
    if not isinstance(arguments, Mapping):
        given = _shorten(function["arguments"])
        raise MessageError("tool_calls", f"the arguments of {name!r} must be a mapping, or a JSON object: {given}")
    if has_half_character(arguments):
        raise MessageError("tool_calls", f"the arguments of {name!r} hold half of a character. Write them again")
    identity = {"id": str(call["id"])} if call.get("id") else {}
    return {**identity, **make_tool_call(name, arguments)}


def _check_calls(role: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise MessageError("tool_calls", f"must be a list of calls, not {_describe(calls)}")
    if calls and role != "assistant":
        raise MessageError("tool_calls", f"a message of role {role!r} makes no calls; only the assistant's does")
    return [check_tool_call(call) for call in calls]


def _check_content(content: Any, needed: bool) -> str | list[dict[str, Any]] | None:
    if content is None and needed:
        raise MessageError("content", "is missing. Give a text, which may be empty")
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise MessageError("content", f"must be a text or a list of parts, not {_describe(content)}")
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise MessageError("content", f'a part is a mapping such as {{"type": "text", ...}}, not {_shorten(part)}')
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise MessageError("content", f"a part of type 'text' needs a 'text': {_shorten(part)}")
    return [dict(part) for part in content]


def _describe(value: Any) -> str:
    kinds = {
        dict: "a mapping",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    return "nothing" if value is None else kinds.get(type(value), type(value).__name__)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _suggest(wrong: Any, known: Sequence[str]) -> str:
    close = get_close_matches(str(wrong), known, n=1)
    return f". Perhaps {close[0]!r} is meant" if close else ""

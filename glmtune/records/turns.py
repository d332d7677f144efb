"""Turns of conversations, whatever their roles and fields are called, as messages in the one form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from glmtune.messages import Message, MessageError, check_message, text_in
from glmtune.records.fields import FieldError, Row, kind_of, list_of, sound

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function", "function_response", "tool_response"), "tool"),
    "function_call": "call",
}
# Fields that a message has beside its role and content.
_MORE = {"user": ("instruction", "input"), "tool": ("name", "tool_call_id")}


def role_of(turn: Any) -> str | None:
    """Return the role of a turn as we call it; None where it has none that is known."""
    said = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    return _ROLES.get(said.lower()) if isinstance(said, str) else None


def turns_of(row: Row, name: str) -> list[Message]:
    """Return the turns of a field as messages.

    Raises:
        FieldError: a turn without a known role, or without a text.
    """
    turns = enumerate(list_of(row, name), start=1)
    return [message for number, turn in turns for message in messages_of(turn, name, number)]


def messages_of(turn: Any, name: str, number: int) -> list[Message]:
    """Return one turn of a field as a message; a call with its result, as ChatGLM3 has them in one turn, as two.

    Raises:
        FieldError: no known role, or no text.
    """
    where = f"'{name}', turn {number}"
    if not isinstance(turn, dict):
        raise FieldError(name, f"{where}: {kind_of(turn)}, not a message")
    role = role_of(turn)
    if role is None:
        said = turn.get("from", turn.get("role"))
        close = get_close_matches(str(said), list(_ROLES), n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise FieldError(name, f"{where}: unknown role {said!r}.{hint} Known: {', '.join(_ROLES)}.")
    if role == "tool" and "parameters" in turn:
        call = {"name": turn.get("name"), "arguments": turn["parameters"]}
        result = {"role": "tool", "content": turn.get("observation")}
        return [_message(None, [call], name, where), *messages_of(result, name, number)]
    content = content_of(turn, name, where)
    if role == "call":
        return [_call(text_in(content), name, where)]
    calls = [call for call in [*calls_of(turn, where), turn.get("function_call")] if call]
    if calls:
        return [_message(None if turn.get("value", turn.get("content")) is None else content, calls, name, where)]
    if role in ("user", "assistant") and isinstance(content, str) and not content.strip():
        raise FieldError(name, f"{where}: the {role}'s text is empty")
    more = {field: turn[field] for field in _MORE.get(role, ()) if isinstance(turn.get(field), str)}
    return [{"role": role, "content": content, **more}]


def calls_of(turn: Row, where: str) -> list[Any]:
    """Return the calls of a turn, which may be JSON of a list.

    Raises:
        FieldError: they are neither.
    """
    try:
        return list_of(turn, "tool_calls")
    except FieldError as error:
        raise FieldError("tool_calls", f"{where}: {error}") from None


def content_of(turn: Mapping[str, Any], name: str, where: str) -> str | list[dict[str, Any]]:
    """Return what a turn says: a text, or parts where some of them are images.

    Raises:
        FieldError: neither, or a part that is something else.
    """
    content = turn.get("value", turn.get("content"))
    if content is None and (turn.get("tool_calls") or turn.get("function_call")):
        return ""
    if isinstance(content, list):
        parts = [_part(part, name, where) for part in content]
        return parts if any(part["type"] == "image" for part in parts) else "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise FieldError(name, f"{where}: its content is {kind_of(content) if content is not None else 'missing'}")
    return sound(name, content)


def _part(part: Any, name: str, where: str) -> dict[str, Any]:
    """A part of a content; an image may name its file, as `image`, `path`, `url`, or as OpenAI writes it."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {"type": "text", "text": sound(name, part["text"])}
    if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
        url = part.get("image_url")
        given = [part.get("image"), part.get("path"), part.get("url"), url.get("url") if isinstance(url, dict) else url]
        file = next((sound(name, value) for value in given if isinstance(value, str) and value), None)
        return {"type": "image", **({"image": file} if file else {})}
    kind = part.get("type") if isinstance(part, dict) else kind_of(part)
    raise FieldError(name, f"{where}: a part that is neither text nor an image ({kind}). Leave it out")


def _message(content: Any, calls: Sequence[Any], name: str, where: str) -> Message:
    """An assistant's message with calls as OpenAI writes them: `{"function": {"name", "arguments"}}`."""
    try:
        sound(name, json.dumps(calls, ensure_ascii=False))
        return check_message({"role": "assistant", "content": content, "tool_calls": calls})
    except MessageError as error:
        raise FieldError(name, f"{where}: {error.fault}") from None


def _call(text: str, name: str, where: str) -> Message:
    """A call as ShareGPT writes it: JSON with `name` and `arguments`; what is none stays a text."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        call = None
    if isinstance(call, dict) and isinstance(call.get("name"), str):
        return _message(None, [call], name, where)
    return {"role": "assistant", "content": text}


def answer_of(text: str, calls: Sequence[Any], name: str) -> Message:
    """Return an assistant's message of a text, calls of tools, or both.

    Raises:
        FieldError: a call cannot be used.
    """
    return _message(text or None, calls, name, f"'{name}'") if calls else {"role": "assistant", "content": text}


def images_in(turns: Sequence[Message]) -> tuple[str, ...]:
    """Return the files of the images in some messages, in order."""
    parts = [part for turn in turns if isinstance(turn["content"], list) for part in turn["content"]]
    return tuple(part["image"] for part in parts if "image" in part)

"""Turns of conversations, whatever their roles and fields are called, as messages in the one form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from glmtune.messages import Message, MessageError, check_message, text_in
from glmtune.records.fields import FieldError, Row, as_text, kind_of, list_of, sound

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function", "function_response", "tool_response"), "tool"),
    "function_call": "call",
}
# Fields that a message has beside its role and content, and what of them is called otherwise.
_MORE = {"user": ("instruction", "input"), "tool": ("tool_call_id",), "assistant": ("reasoning_content",)}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Fields by which others say that a turn is not to be learned.
_LEARNED = ("loss", "weight", "train")
_NAMED_CALL = re.compile(r"(?P<name>[\w.-]+)\n(?P<arguments>\{.*\})", re.DOTALL)


def role_of(turn: Any) -> str | None:
    """Return the role of a turn as we call it; None where it has none that is known."""
    said = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    return _ROLES.get(said.lower()) if isinstance(said, str) else None


def turns_of(row: Row, name: str) -> list[Message]:
    """Return the turns of a field as messages.

    Raises:
        FieldError: a turn without a known role, or without a text.
    """
    messages: list[Message] = []
    for number, turn in enumerate(list_of(row, name), start=1):
        new = messages_of(turn, name, number)
        if _answers(turn):
            _read_call(messages, name, number - 1)
        if new and _calls_alone(turn) and messages and messages[-1].keys() == {"role", "content"}:
            before = messages[-1]
            if before["role"] == "assistant":  # what is said before a call is one message with it
                new[0] = {**new[0], "content": messages.pop()["content"]}
        messages += new
    return messages


def _answers(turn: Any) -> bool:
    """Whether a turn is what a tool says, without the call that it answers."""
    return role_of(turn) == "tool" and "parameters" not in turn


def _calls_alone(turn: Any) -> bool:
    """Whether a turn is a call, or one with its result, whose words stand in the turn before."""
    return role_of(turn) == "call" or (role_of(turn) == "tool" and "parameters" in turn)


def _read_call(messages: list[Message], name: str, number: int) -> None:
    """Read the last message, which a tool answers, as a call where it is one in text, as GLM-4 has them."""
    last = messages[-1] if messages else {}
    text = last.get("content")
    if last.get("role") != "assistant" or "tool_calls" in last or not isinstance(text, str):
        return
    found = _NAMED_CALL.fullmatch(text.strip())
    call = found.groupdict() if found else _as_call(text)
    if call is not None:
        messages[-1] = _message(None, [call], name, f"'{name}', turn {number}")


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
        said = turn.get("observation")
        said = json.dumps(said, ensure_ascii=False) if isinstance(said, dict | list) else as_text(said)
        result = {"role": "tool", "content": said}
        return [_message(None, [call], name, where), *messages_of(result, name, number)]
    _check_learned(turn, role, name, where)
    content = content_of(turn, name, where)
    if role == "call":
        return [_call(text_in(content), name, where)]
    if role == "system" and not content and turn.get("tools"):  # a turn for these alone
        return []
    more = _more_of(turn, role, name, where)
    calls = [call for call in [*calls_of(turn, where), turn.get("function_call")] if call]
    if calls:
        said = None if turn.get("value", turn.get("content")) is None else content
        return [{**_message(said, calls, name, where), **more}]
    if role in ("user", "assistant") and isinstance(content, str) and not content.strip():
        raise FieldError(name, f"{where}: the {role}'s text is empty")
    return [{"role": role, "content": content, **more}]


def _more_of(turn: Row, role: str, name: str, where: str) -> Row:
    """Return what a turn has beside its role and content, as messages call it; blanks are nothing.

    Raises:
        FieldError: it is no text.
    """
    thoughts = next((turn[field] for field in _THOUGHTS if turn.get(field) is not None), None)
    given = {**turn, "reasoning_content": thoughts}
    more: Row = {}
    for field in ("name", *_MORE.get(role, ())):
        value = as_text(given.get(field))
        if value is not None and not isinstance(value, str):
            raise FieldError(name, f"{where}: '{field}' is {kind_of(value)}, not a text")
        if value:
            more[field] = sound(field, value)
    return more


def _check_learned(turn: Row, role: str, name: str, where: str) -> None:
    """See that a turn of the assistant is to be learned.

    Raises:
        FieldError: it says that it is not.
    """
    field = next((field for field in _LEARNED if field in turn and turn[field] in (0, False)), None)
    if field is not None and role in ("assistant", "call"):
        raise FieldError(
            name,
            f"{where}: '{field}' says that this answer is not learned, which single answers cannot say here. Leave the "
            "field out; data.turns=last learns the last answer alone",
        )


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
    content = as_text(content) if role_of(turn) == "assistant" else content
    if content is None and any(turn.get(field) for field in ("tool_calls", "function_call", "tools")):
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
    call = _as_call(text)
    return {"role": "assistant", "content": text} if call is None else _message(None, [call], name, where)


def _as_call(text: str) -> Row | None:
    """Return JSON of a call with its `name` and `arguments`, or `parameters`; None of any other text."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    return {"arguments": call.get("parameters"), **call}


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


def join_turns(row: Row) -> Row:
    """Return a row whose turns of one role in a row are one turn, with a line break between their texts.

    Only texts are joined: turns that call tools, and what tools say, stay as they are.
    """
    for name, turns in row.items():
        if isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns):
            row = {**row, name: _joined(turns)}
    return row


def _joined(turns: Sequence[Row]) -> list[Row]:
    joined: list[Row] = []
    for turn in turns:
        field = "value" if "value" in turn else "content"
        before = joined[-1] if joined else {}
        texts = [before.get(field), turn.get(field)]
        if (
            role_of(turn) in ("system", "user", "assistant")
            and role_of(turn) == role_of(before)
            and before.keys() == turn.keys() <= {"from", "role", "value", "content"}
            and all(isinstance(text, str) for text in texts)
        ):
            joined[-1] = {**before, field: "\n".join(map(str, texts))}
        else:
            joined.append(turn)
    return joined

"""Turns of conversations, whatever they are called, as messages; and conversations as examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from glmtune.examples import Example
from glmtune.messages import Message, MessageError, Prompt, check_message
from glmtune.records.fields import FieldError, Row, facts_of, kind_of, list_of, optional_text, sound

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function", "function_response", "tool_response"), "tool"),
    "function_call": "call",
}
# Which turn may follow which; None is the start.
_FOLLOWS = {
    None: ("user",),
    "user": ("assistant", "call"),
    "assistant": ("user", "call", "tool"),  # its text may be a call
    "call": ("tool", "call"),
    "tool": ("assistant", "call", "tool"),
}


def role_of(turn: Any) -> str | None:
    """Return the role of a turn as we call it; None where it has none that is known."""
    said = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    return _ROLES.get(said.lower()) if isinstance(said, str) else None


def messages_of(turn: Any, name: str, number: int) -> list[Message]:
    """Return one entry of `conversations` or `messages` as messages: a text, its calls, or both.

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
    text = content_of(turn, name, where)
    if role == "call":
        return [_call(text, name, where)]
    calls = [call for call in [*(turn.get("tool_calls") or []), turn.get("function_call")] if call]
    if calls:
        return [_called(calls, text or None, name, where)]
    if not text.strip() and role in ("user", "assistant"):
        raise FieldError(name, f"{where}: the {role}'s text is empty")
    return [{"role": role, "content": text}]


def content_of(turn: Message, name: str, where: str) -> str:
    """Return what a turn says.

    Raises:
        FieldError: no text, or more than text.
    """
    content = turn.get("value", turn.get("content"))
    if content is None and (turn.get("tool_calls") or turn.get("function_call")):
        return ""
    if isinstance(content, list):  # parts
        if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in content):
            raise FieldError(name, f"{where}: has parts that are no text (images are not learned)")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise FieldError(name, f"{where}: its content is {kind_of(content) if content is not None else 'missing'}")
    return sound(name, content)


def _called(calls: Sequence[Any], text: str | None, name: str, where: str) -> Message:
    """An assistant's message with calls as OpenAI writes them: `{"function": {"name", "arguments"}}`."""
    sound(name, json.dumps(calls, ensure_ascii=False))
    try:
        return check_message({"role": "assistant", "content": text, "tool_calls": calls})
    except MessageError as error:
        raise FieldError(name, f"{where}: {error.fault}") from None


def _call(text: str, name: str, where: str) -> Message:
    """A call as ShareGPT writes it: JSON with `name` and `arguments`."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        call = None
    if isinstance(call, dict) and isinstance(call.get("name"), str):
        return _called([call], None, name, where)
    return {"role": "assistant", "content": text}


def _kind(turn: Message) -> str:
    """The role of a turn; `call` for an assistant's that calls a tool."""
    return "call" if "tool_calls" in turn else str(turn["role"])


def _some(count: int, role: str) -> str:
    return f"{count} turns" if count > 1 else f"a turn of the {role}"


def check_order(turns: Sequence[Message], name: str) -> None:
    """See whether questions and answers take turns.

    Raises:
        FieldError: they do not; the turn is told.
    """
    if not turns:
        raise FieldError(name, f"'{name}' is missing or has no turns")
    before: str | None = None
    for number, turn in enumerate(turns, start=1):
        kind = _kind(turn)
        if kind not in _FOLLOWS[before]:
            place = f"follows {before}" if before else "comes first"
            expected = " or ".join(_FOLLOWS[before])
            raise FieldError(name, f"'{name}', turn {number}: wrong order of roles: {kind} {place}, not {expected}")
        before = kind


def prompt_of(turns: list[Message]) -> Prompt:
    """Return what stands before an answer; a single question is a text."""
    is_plain = len(turns) == 1 and turns[0].keys() == {"role", "content"} and turns[0]["role"] == "user"
    return turns[0]["content"] if is_plain else turns


def example_of(row: Row, turns: list[Message], name: str, odd: bool = False) -> Example:
    """Return a conversation as an example: everything up to its last answer is the prompt.

    Args:
        row: for its facts.
        turns: messages.
        name: the field they come from.
        odd: leave out an answer at the start and a question at the end instead of refusing them.

    Raises:
        FieldError: turns in a wrong order, or no answer.
    """
    system = [turn for turn in turns[:1] if turn["role"] == "system"]
    turns = turns[len(system) :]
    notes: list[str] = []
    if odd:
        first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), 0)
        last = max((place for place, turn in enumerate(turns) if _kind(turn) == "assistant"), default=-1)
        if first:
            notes.append(f"began with {_some(first, turns[0]['role'])}, which is left out")
        if 0 <= last < len(turns) - 1:
            notes.append(f"ended with {_some(len(turns) - 1 - last, turns[-1]['role'])}, which is left out")
        turns = turns[first : last + 1] if last >= first else turns[first:]
    check_order(turns, name)
    if _kind(turns[-1]) != "assistant":
        raise FieldError(name, f"'{name}' ends with {_kind(turns[-1])}: it has no answer to learn")
    return Example(prompt_of([*system, *turns[:-1]]), turns[-1]["content"], facts_of(row), notes=tuple(notes))


def with_history(
    row: Row,
    prompt: str,
    target: str,
    history: str = "history",
    system: str = "system",
    parts: Mapping[str, str] | None = None,
) -> Example:
    """Return a question with the rounds before it: `[[question, answer], ...]`, or messages.

    Args:
        row, prompt, target: what is learned.
        history, system: names of the fields.
        parts: of the prompt, for templates that write them by themselves.

    Raises:
        FieldError: rounds that are neither.
    """
    said = optional_text(row, system)
    turns: list[Message] = [{"role": "system", "content": said}] if said else []
    for number, entry in enumerate(list_of(row, history), start=1):
        if isinstance(entry, dict):
            turns += messages_of(entry, history, number)
        elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(t, str) and t.strip() for t in entry):
            pair = zip(("user", "assistant"), entry, strict=True)
            turns += [{"role": role, "content": sound(history, text)} for role, text in pair]
        else:
            raise FieldError(history, f"'{history}', round {number}: must be [question, answer], two texts")
    turns += [{"role": "user", "content": prompt, **(parts or {})}, {"role": "assistant", "content": target}]
    return example_of(row, turns, history)


def earlier_questions(prompt: Prompt) -> list[Prompt]:
    """Return what was asked before each answer in a conversation."""
    turns = [] if isinstance(prompt, str) else prompt
    return [prompt_of(turns[:place]) for place, turn in enumerate(turns) if turn["role"] == "assistant"]


def each_answer(example: Example) -> list[Example]:
    """Return a conversation as one example for each of its answers, each with what stands before it."""
    turns = example.prompt
    if isinstance(turns, str):
        return [example]
    answers = [place for place, turn in enumerate(turns) if _kind(turn) == "assistant"]
    earlier = [replace(example, prompt=prompt_of(turns[:place]), target=turns[place]["content"]) for place in answers]
    return [*earlier, example]

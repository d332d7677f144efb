"""Conversations as examples: in the right order, everything up to the last answer is the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glmtune.examples import Example
from glmtune.messages import Message, Prompt, text_in
from glmtune.records.fields import FieldError, Row, facts_of, kind_of, list_of, optional_text, sound
from glmtune.records.turns import images_in, messages_of

# Which turn may follow which; None is the start.
_FOLLOWS = {
    None: ("user",),
    "user": ("assistant", "call"),
    "assistant": ("user", "call", "tool"),  # its text may be a call
    "call": ("tool", "call"),
    "tool": ("assistant", "call", "tool"),
}


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
            remedy = ". data.join_turns=true joins the two" if kind == before else ""
            fault = f"wrong order of roles: {kind} {place}, not {expected}{remedy}"
            raise FieldError(name, f"'{name}', turn {number}: {fault}")
        before = kind


def prompt_of(turns: list[Message]) -> Prompt:
    """Return what stands before an answer; a single question is a text."""
    is_plain = len(turns) == 1 and turns[0].keys() == {"role", "content"} and turns[0]["role"] == "user"
    content = turns[0]["content"] if is_plain else None
    return content if isinstance(content, str) else turns


def with_system(row: Row, turns: list[Message]) -> list[Message]:
    """Return turns behind the system message that a row has in a field of its own, unless they begin with one."""
    said = optional_text(row, "system")
    return (
        [{"role": "system", "content": said}, *turns]
        if said and [t["role"] for t in turns[:1]] != ["system"]
        else turns
    )


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
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
        if first:
            notes.append(f"began with {_some(first, turns[0]['role'])}, which is left out")
        if 0 <= last < len(turns) - 1:
            notes.append(f"ended with {_some(len(turns) - 1 - last, turns[-1]['role'])}, which is left out")
        turns = turns[first : last + 1] if last >= first else turns[first:]
    check_order(turns, name)
    *before, answer = turns
    if answer["role"] != "assistant":
        raise FieldError(name, f"'{name}' ends with {answer['role']}: it has no answer to learn")
    if "name" in answer:
        raise FieldError(name, f"'{name}': the answer to learn has a 'name', which no model writes. Leave it out")
    return Example(
        prompt_of([*system, *before]),
        text_in(answer["content"]),
        facts_of(row),
        tool_calls=tuple(answer.get("tool_calls", ())),
        reasoning_content=str(answer.get("reasoning_content", "")),
        images=images_in(turns),
        notes=tuple(notes),
    )


def tools_of(row: Row) -> tuple[Row, ...]:
    """Return the definitions of tools that a row has: in a field of their own, or as GLM-4 in its system message.

    Raises:
        FieldError: they are no list of definitions, or stand in several places.
    """
    turns = [turn for value in row.values() if isinstance(value, list) for turn in value if isinstance(turn, dict)]
    names = [name for name in ("tools", "functions") if turns or _looks_like_json(row.get(name))]
    given = [found for place in (row, *turns) for name in names if (found := list_of(place, name))]
    if any(other != given[0] for other in given[1:]):
        raise FieldError("tools", "'tools' stand in several places and differ. Write all of them in one")
    return tuple(_definition(tool, number) for found in given[:1] for number, tool in enumerate(found, start=1))


def _looks_like_json(value: Any) -> bool:
    """Whether a field of a plain question may hold definitions, and is not a text about something else."""
    return not isinstance(value, str) or value.lstrip()[:1] in ("[", "{")


def _definition(tool: Any, number: int) -> Row:
    """A definition as OpenAI writes it, or its function alone."""
    if not isinstance(tool, dict) or not isinstance(tool.get("function", tool), dict):
        raise FieldError("tools", f"'tools', entry {number}: {kind_of(tool)}, not the definition of a tool")
    return tool


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
    turns = [] if isinstance(example.prompt, str) else example.prompt
    earlier = [
        replace(
            example,
            prompt=prompt_of(turns[:place]),
            target=text_in(turn["content"]),
            tool_calls=tuple(turn.get("tool_calls", ())),
            reasoning_content=str(turn.get("reasoning_content", "")),
            rejected=None,
        )
        for place, turn in enumerate(turns)
        if turn["role"] == "assistant"
    ]
    return [*earlier, example]

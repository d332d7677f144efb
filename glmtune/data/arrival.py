"""What of a conversation a template writes, and how: as it is, stripped of blanks, with its reasoning apart, or not.

What is learned and asked is what the template makes of the texts themselves. It is rendered twice: with signs, which
tell where each text stands, and with the texts. Where the two do not agree but for blanks around a text, the template
treats a message by what is in it, and the conversation is refused. So is one of which something is left out.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune.data.forms import find_known_tools
from glmtune.data.rendering import render, render_text, writes_time
from glmtune.data.signs import Signed, cut_at_signs, fill_in, find_signs, sign_texts
from glmtune.messages import Message, as_messages
from glmtune.runtime import UserError

# What templates do to the ends of a text.
_CHANGES = (
    lambda text: text,
    lambda text: text.rstrip("\n"),
    lambda text: text.lstrip("\n"),
    lambda text: text.strip("\n"),
    str.rstrip,
    str.lstrip,
    str.strip,
)
_THOUGHTS = re.compile(r"\s*<think>(?P<thoughts>.*?)</think>(?P<content>.*)", re.DOTALL)
# Words of JSON schemas that templates say in their own way, or leave to the reader.
_SCHEMA_WORDS = ("type", "format", "$schema")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def sign_conversation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    tools: Sequence[Any] = (),
    for_answer: bool = False,
) -> tuple[Signed, list[str]]:
    """Return a conversation with signs, and for each sign what the template writes in its place.

    Args:
        tokenizer: with a template.
        prompt: a text, which is one user message, or messages.
        tools: definitions of tools.
        for_answer: let the assistant's answer follow.

    Raises:
        UserError: a message is not in the one form, or the template has no form for something in it.
    """
    given = sign_texts(tokenizer, prompt, tools)
    whole = render_text(tokenizer, given.given_messages, given.given_tools, for_answer)
    apart = [_with_thoughts_apart(message) for message in as_messages(prompt)]
    for signed in (given, *([sign_texts(tokenizer, apart, tools)] if apart != as_messages(prompt) else [])):
        rendered = render(tokenizer, signed.messages, signed.tools, for_answer).text
        texts = find_written(rendered, whole, signed.texts)
        if texts is None and writes_time(str(tokenizer.chat_template)):  # a minute may have passed
            whole = render_text(tokenizer, given.given_messages, given.given_tools, for_answer)
            texts = find_written(rendered, whole, signed.texts)
        if texts is not None:
            check_arrival(signed, rendered, whole, find_known_tools(str(tokenizer.chat_template)))
            return signed, texts
    raise UserError(
        "The model's chat template treats messages by what is in them (it takes reasoning out of earlier answers, for "
        "instance), and would not write what they say. Take that out of the messages, or choose another data.template."
    )


def find_written(rendered: str, whole: str, texts: Sequence[str]) -> list[str] | None:
    """Return the texts as a template writes them: as they are, or without blanks at their ends.

    Args:
        rendered: by the template, with signs.
        whole: the same with the texts themselves.
        texts: what each sign stands for.

    Returns:
        None where the template does something else with them.
    """
    before, parts = cut_at_signs(rendered)
    if not whole.startswith(before):
        return None
    written: dict[int, str] = {}
    end = len(before)
    for sign, following in parts:
        changes = [written[sign]] if sign in written else (change(texts[sign]) for change in _CHANGES)
        found = next((text for text in changes if whole.startswith(text + following, end)), None)
        if found is None:
            return None
        written[sign] = found
        end += len(found) + len(following)
    filled = [written.get(sign, text) for sign, text in enumerate(texts)]
    return filled if fill_in(rendered, filled) == whole else None


def check_arrival(signed: Signed, rendered: str, whole: str, known_tools: Collection[str] = ()) -> None:
    """See that all of a conversation stands in a rendered template.

    Args:
        signed: the conversation.
        rendered: by the template, with signs.
        whole: the same with the texts themselves.
        known_tools: those whose calls the template writes without the names of their arguments.

    Raises:
        UserError: the template leaves something out.
    """
    missing = _missing_texts(signed, rendered)
    words = [*_names_and_ids(signed.given_messages), *_calls(signed.given_messages, known_tools)]
    definitions = [*_leaves([tool.get("function", tool) for tool in signed.given_tools], is_schema=True)]
    plain = _unescape(whole) if words or definitions else whole
    for number, field, word in words:
        if word.strip() not in whole and word.strip() not in plain:
            missing[number].add(field)
    remedy = "Leave it out of the record, mend chat_template.jinja, or choose another data.template."
    for number, fields in sorted(missing.items()):
        if fields:
            role = signed.given_messages[number]["role"]
            raise UserError(
                f"The model's chat template leaves out {' and '.join(sorted(fields))} of a message of role {role!r} "
                f"(message {number + 1}). {remedy}"
            )
    for word in definitions:
        if word.strip() not in whole and word.strip() not in plain:
            raise UserError(
                f"The model's chat template leaves out {word[:60]!r} of the definitions of tools (`tools`). {remedy}"
            )


def _missing_texts(signed: Signed, rendered: str) -> dict[int, set[str]]:
    """Return the fields whose texts a template leaves out, by the number of the message; blanks are nothing."""
    present = find_signs(rendered)
    missing: dict[int, set[str]] = defaultdict(set)
    for index, owner in enumerate(signed.owners):
        if owner is not None and index not in present and signed.texts[index].strip():
            missing[owner.message].add(owner.field)
    for number, fields in missing.items():
        # Alpaca's question stands there as a whole, or in its two parts.
        if "content" not in fields or (signed.messages[number].get("instruction") and fields == {"content"}):
            fields -= {"content", "instruction", "input"}
    return missing


def _names_and_ids(messages: Sequence[Message]) -> Iterator[tuple[int, str, str]]:
    """Yield (number of a message, field, text) of names and ids that say more than the order of the messages does."""
    waiting: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        told: dict[str, Any] = {}
        if "tool_calls" in message or message["role"] in ("user", "assistant"):
            waiting = list(message.get("tool_calls", ()))
        elif waiting:  # what a tool says answers the first call that nothing has answered yet
            call = waiting.pop(0)
            told = {"name": call["function"]["name"], "tool_call_id": call.get("id", message.get("tool_call_id"))}
        for field in ("name", "tool_call_id"):
            if message.get(field) and message[field] != told.get(field):
                yield number, field, message[field]


def _calls(messages: Sequence[Message], known_tools: Collection[str]) -> Iterator[tuple[int, str, str]]:
    """Yield (number of a message, field, text) of what calls say: whom they call, and with what."""
    for number, message in enumerate(messages):
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            said = _leaves([*arguments.values()] if name in known_tools else arguments)
            yield from ((number, "tool_calls", word) for word in (name, *said))


def _leaves(value: Any, is_schema: bool = False, key: str = "") -> Iterator[str]:
    """Yield the texts and numbers in calls, or in definitions of tools: of the keys in these, those that users name."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            is_named = not is_schema or key == "properties"
            yield from [str(name)] if is_named else []
            yield from _leaves(inner, is_schema, "" if is_named else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, is_schema, key)
    elif isinstance(value, str | int | float) and not isinstance(value, bool) and key not in _SCHEMA_WORDS:
        yield value if isinstance(value, str) else json.dumps(value)


def _unescape(text: str) -> str:
    """Return a text with what JSON and Python write for the signs of strings in it taken back."""

    def sign(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES.get(code, code)

    plain = _ESCAPE.sub(sign, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of characters become whole


def _with_thoughts_apart(message: Message) -> Message:
    """Return an assistant's message with the thoughts that its content begins with in a field of their own."""
    content = message.get("content")
    if message.get("role") != "assistant" or message.get("reasoning_content") or not isinstance(content, str):
        return message
    found = _THOUGHTS.fullmatch(content)
    parts = {} if found is None else {"content": found["content"], "reasoning_content": found["thoughts"]}
    return {**message, **parts}

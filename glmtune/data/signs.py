"""Signs in place of texts, so that no text can become a control token of the template that it is rendered by.

A sign stands for the whole content of a message. Texts within calls and definitions of tools stay, since templates look
at them and write them as JSON; in these, a guard stands before what looks like a control token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from glmtune.data.control_tokens import GUARD, guard, unguard
from glmtune.data.forms import fit_to_template
from glmtune.messages import Message
from glmtune.runtime import UserError

# The first of the characters that stand for texts. They are for private use, so that no template writes them and no
# tokenizer has tokens for them.
_FIRST = 0xF0000
_SIGN = re.compile("[\U000f0000-\U000ffffd]")
_RESERVED = re.compile(f"[\U000f0000-\U000ffffd{GUARD}]")
_MOST = 0xFFFE
# Of a message, what templates look at as it is: they compare roles and names, and count the letters of ids.
_KEPT = ("name", "tool_call_id")


class Owner(NamedTuple):
    """Whose text a sign stands for: the field of a message, by its number."""

    message: int
    field: str


@dataclass(frozen=True)
class Signed:
    """A conversation with signs, as a template gets it.

    Attributes:
        messages: with signs and guards.
        tools: definitions of tools, with guards.
        texts: what each sign stands for.
        owners: of each text; None where it is a character within a call, a tool, a name or an id.
        given_messages, given_tools: the same without signs and guards.
    """

    messages: list[Message]
    tools: list[Any]
    texts: list[str]
    owners: list[Owner | None]
    given_messages: list[Message]
    given_tools: list[Any]


def sign_texts(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message], tools: Sequence[Any] = ()
) -> Signed:
    """Put a sign in place of every content; an empty one stays empty.

    Raises:
        UserError: a message is not in the one form, or the template has no form for something in it.
    """
    messages, tools = fit_to_template(tokenizer, prompt, tools)
    texts: list[str] = []
    owners: list[Owner | None] = []

    def sign(text: str, owner: Owner | None = None) -> str:
        texts.append(text)
        owners.append(owner)
        if len(texts) > _MOST:
            raise UserError(f"A conversation has more than {_MOST:,} texts. Split it.")
        return chr(_FIRST + len(texts) - 1)

    def guard_texts(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {guard_texts(key): guard_texts(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [guard_texts(inner) for inner in value]
        if isinstance(value, str):
            return guard(tokenizer, _RESERVED.sub(lambda found: sign(found[0]), value))
        return value

    signed = [
        {
            field: value
            if field == "role" or not value
            else sign(value, Owner(number, field))
            if isinstance(value, str) and field not in _KEPT
            else guard_texts(value)
            for field, value in message.items()
        }
        for number, message in enumerate(messages)
    ]
    return Signed(signed, guard_texts(tools), texts, owners, messages, tools)


def find_signs(text: str) -> set[int]:
    """Return the numbers of the signs in a text."""
    return {ord(sign) - _FIRST for sign in _SIGN.findall(text)}


def fill_in(piece: str, texts: Sequence[str]) -> str:
    """Return a piece of a rendered template with the texts in place of their signs, and without guards."""
    return _SIGN.sub(lambda found: texts[ord(found[0]) - _FIRST], unguard(piece))


def cut_at_signs(rendered: str) -> tuple[str, list[tuple[int, str]]]:
    """Return what stands before the first sign of a rendered template, and each sign's number with what follows it."""
    first, *rest = re.split(f"({_SIGN.pattern})", unguard(rendered))
    return first, [(ord(sign) - _FIRST, text) for sign, text in zip(rest[::2], rest[1::2], strict=True)]

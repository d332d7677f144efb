"""Signs in place of texts, so that no text can become a control token of the template that it is rendered by.

A sign stands for the whole content of a message. Texts within calls and definitions of tools stay, since templates look
at them and write them as JSON; in these, a guard stands before what looks like a control token.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from glmtune.data.control_tokens import GUARD, guard, unguard
from glmtune.data.forms import fit_to_template
from glmtune.data.rendering import render
from glmtune.messages import Message
from glmtune.runtime import UserError

# The first of the characters that stand for texts. They are for private use, so that no template writes them and no
# tokenizer has tokens for them.
_FIRST = 0xF0000
_SIGN = re.compile("[\U000f0000-\U000ffffd]")
_RESERVED = re.compile(f"[\U000f0000-\U000ffffd{GUARD}]")
_MOST = 0xFFFE
_NOT_WRITTEN = ("role", "name", "tool_call_id")  # what a template need not write
# Where a template does more with a content than to write it.
_LOOKS = re.compile(r"\|\s*trim|\bstrip\(|\.(split|replace|startswith|endswith)\(|\bin\s+\w+(\.content|\[.content.\])")


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
        owners: of each text; None where it is a character within a call or a tool.
    """

    messages: list[Message]
    tools: list[Any]
    texts: list[str]
    owners: list[Owner | None]


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
            if isinstance(value, str)
            else guard_texts(value)
            for field, value in message.items()
        }
        for number, message in enumerate(messages)
    ]
    return Signed(signed, guard_texts(tools), texts, owners)


def fill_in(piece: str, texts: Sequence[str]) -> str:
    """Return a piece of a rendered template with the texts in place of their signs, and without guards."""
    return _replace_signs(unguard(piece), texts)


def check_arrival(signed: Signed, rendered: str) -> None:
    """See that every text stands in a rendered template.

    Raises:
        UserError: the template leaves one out.
    """
    present = set(_SIGN.findall(rendered))
    missing: dict[int, set[str]] = defaultdict(set)
    for index, owner in enumerate(signed.owners):
        if owner is not None and owner.field not in _NOT_WRITTEN and chr(_FIRST + index) not in present:
            missing[owner.message].add(owner.field)
    for number, fields in missing.items():
        message = signed.messages[number]
        # Alpaca's question stands there as a whole, or in its two parts.
        if "content" not in fields or (message.get("instruction") and fields == {"content"}):
            fields -= {"content", "instruction", "input"}
        if fields:
            raise UserError(
                f"The model's chat template leaves out {' and '.join(sorted(fields))} of a message of role "
                f"{message['role']!r}. Mend chat_template.jinja, or choose another data.template."
            )


def find_rendered_texts(tokenizer: PreTrainedTokenizerBase, signed: Signed) -> list[str]:
    """Return the texts as the template itself writes them: as they are, or stripped of the blanks around them.

    Args:
        tokenizer: with a template.
        signed: a prompt with signs; texts of an answer behind it stay as they are.

    Raises:
        UserError: the template looks at what is in the texts, e.g. for a word that ends reasoning.
    """
    if not _looks_at_contents(tokenizer.get_chat_template(tools=signed.tools or None)):
        return signed.texts
    rendered = render(tokenizer, signed.messages, signed.tools, for_answer=True).text
    # The characters within calls and tools that have signs keep them: the template sees these in either case.
    contents = [
        chr(_FIRST + index) if owner is None else signed.texts[index] for index, owner in enumerate(signed.owners)
    ]
    messages = [
        {
            field: _replace_signs(value, contents) if isinstance(value, str) else value
            for field, value in message.items()
        }
        for message in signed.messages
    ]
    whole = render(tokenizer, messages, signed.tools, for_answer=True).text
    for change in (str, str.strip):
        if _replace_signs(rendered, [change(text) for text in contents]) == whole:
            asked = len(signed.messages)
            return [
                change(text) if owner is None or owner.message < asked else text
                for text, owner in zip(signed.texts, signed.owners, strict=True)
            ]
    raise UserError(
        "The model's chat template treats messages by what is in them (it takes reasoning out of earlier answers, for "
        "instance), which is not supported. Take that out of the messages, or choose another data.template."
    )


@lru_cache(maxsize=64)
def _looks_at_contents(template: str) -> bool:
    return _LOOKS.search(template) is not None


def _replace_signs(text: str, texts: Sequence[str]) -> str:
    return _SIGN.sub(lambda found: texts[ord(found[0]) - _FIRST], text)

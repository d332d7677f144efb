"""Chat templates rendered: messages in, text out, and which of it is learned."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from glmtune.data.control_tokens import name_tokens
from glmtune.data.sandbox import TooMuchError, render_bounded
from glmtune.messages import Message
from glmtune.runtime import UserError

_MARK = re.compile(r"{%-?\s*generation\s*-?%}")
_SHOWN = 300  # characters of what a template says


@dataclass(frozen=True)
class Rendered:
    """The text of a template, and where in it stand the answers, if the template marks them."""

    text: str
    spans: Sequence[tuple[int, int]]


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Sequence[Any] = (), for_answer: bool = False
) -> Rendered:
    """Render messages by the tokenizer's template.

    Args:
        tokenizer: with a template.
        messages: with signs for contents, by which what was rendered once is known again.
        tools: definitions of tools.
        for_answer: let the assistant's answer follow (`add_generation_prompt`).

    Raises:
        UserError: the template does not take them.
    """
    template = tokenizer.get_chat_template(tools=list(tools) or None)
    conversation = json.dumps([messages, tools], ensure_ascii=False)
    # A template that writes the time would be remembered with that of its first use.
    minute = datetime.now().strftime("%Y-%m-%d %H:%M") if writes_time(template) else ""
    with refusals():
        return _render_known(template, conversation, for_answer, tuple(name_tokens(tokenizer).items()), minute)


def render_text(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Sequence[Any] = (), for_answer: bool = False
) -> str:
    """Render messages as `render` does, with their contents as they are, and remember nothing.

    Raises:
        UserError: the template does not take them.
    """
    template = tokenizer.get_chat_template(tools=list(tools) or None)
    with refusals():
        return render_template(template, messages, tools, for_answer, name_tokens(tokenizer), marked=False).text


def writes_time(template: str) -> bool:
    """Return whether a template writes what time it is."""
    return "strftime_now" in template


@contextmanager
def refusals() -> Iterator[None]:
    """Tell what a template does not take as a user's error: its own refusals, and whatever else goes wrong in it.

    Raises:
        UserError: the template does not take a conversation.
    """
    try:
        yield
    except TooMuchError:
        raise
    except Exception as error:  # a template is a stranger's program, and may raise anything
        kind = "" if type(error) is TemplateError else f"{type(error).__name__}: "
        reason = textwrap.shorten(f"{kind}{error}", _SHOWN, placeholder=" ...").rstrip(".")
        raise UserError(
            f"The model's chat template does not take this conversation: {reason}. Mend chat_template.jinja "
            "or the record, or choose another data.template."
        ) from None


def render_template(
    template: str,
    messages: list[Message],
    tools: Sequence[Any],
    for_answer: bool,
    named: Mapping[str, str],
    marked: bool = True,
) -> Rendered:
    """Render messages by a template; where it marks answers is found out unless `marked` says not to.

    Raises:
        TemplateError: of Jinja; the template's own refusals, too.
        TooMuchError: the template works for too long, or makes too much.
    """
    size = len(json.dumps([messages, tools], ensure_ascii=False))
    chat = [
        {"thinking": turn["reasoning_content"], **turn} if "reasoning_content" in turn else turn for turn in messages
    ]
    text, spans = render_bounded(
        template, size, messages=chat, tools=list(tools) or None, add_generation_prompt=for_answer, **named
    )
    return Rendered(text, spans if marked and _MARK.search(template) else [])


@lru_cache(maxsize=256)
def _render_known(
    template: str, conversation: str, for_answer: bool, named: tuple[tuple[str, str], ...], minute: str
) -> Rendered:
    messages, tools = json.loads(conversation)
    return render_template(template, messages, tools, for_answer, dict(named))

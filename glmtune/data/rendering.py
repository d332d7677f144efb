"""Chat templates rendered: messages in, text out, and which of it is learned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from glmtune.data.control_tokens import name_tokens
from glmtune.messages import Message
from glmtune.runtime import UserError

_MARK = re.compile(r"{%-?\s*generation\s*-?%}")


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
    try:
        return _render_known(template, conversation, for_answer, tuple(name_tokens(tokenizer).items()))
    except (TemplateError, TypeError) as error:
        kind = "" if type(error) is TemplateError else f"{type(error).__name__}: "
        reason = f"{kind}{error}".rstrip(".")
        raise UserError(
            f"The model's chat template does not take this conversation: {reason}. Mend chat_template.jinja "
            "or the record, or choose another data.template."
        ) from None


def render_template(
    template: str, messages: list[Message], tools: Sequence[Any], for_answer: bool, named: Mapping[str, str]
) -> Rendered:
    """Render messages by a template.

    Raises:
        TemplateError: of Jinja; the template's own refusals, too.
    """
    library: Any = render_jinja_template  # its annotations do not say what it returns
    texts, spans = library(
        conversations=[messages],
        tools=list(tools) or None,
        chat_template=template,
        return_assistant_tokens_mask=_MARK.search(template) is not None,
        add_generation_prompt=for_answer,
        **named,
    )
    return Rendered(texts[0], [(int(first), int(last)) for first, last in (spans[0] if spans else [])])


@lru_cache(maxsize=256)
def _render_known(template: str, conversation: str, for_answer: bool, named: tuple[tuple[str, str], ...]) -> Rendered:
    messages, tools = json.loads(conversation)
    return render_template(template, messages, tools, for_answer, dict(named))

"""Prompts to token ids, with room for their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune.config import LONG_ANSWER, GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.messages import Prompt
from glmtune.runtime import UserError


def encode_within(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    tools: Sequence[dict[str, Any]],
    limit: int | None,
    max_new_tokens: int,
    label: str = "The prompt",
) -> list[int]:
    """Return the token ids of a prompt that leaves room for an answer.

    Args:
        tokenizer: with the template of the model.
        prompt: a text, or messages.
        tools: definitions of the tools that it offers.
        limit: longest sequence in tokens that the model takes; None where it states none.
        max_new_tokens: longest answer.
        label: what an error calls the prompt.

    Raises:
        UserError: it is too long, or the template has no form for it.
    """
    try:
        ids = encode_prompt(tokenizer, prompt, tools)
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    check_room(len(ids), limit, max_new_tokens, label)
    return ids


def with_room(settings: GenerationSettings, prompt_tokens: int, limit: int | None) -> GenerationSettings:
    """Return settings with `max_new_tokens`: as set, else what a prompt leaves of the limit, up to `LONG_ANSWER`."""
    if settings.max_new_tokens is not None:
        return settings
    room = LONG_ANSWER if limit is None else max(1, min(LONG_ANSWER, limit - prompt_tokens))
    return settings.model_copy(update={"max_new_tokens": room})


def has_room(prompt_tokens: int, limit: int | None, max_new_tokens: int) -> bool:
    """Whether a model that takes `limit` tokens can take a prompt and its answer."""
    return limit is None or prompt_tokens + max_new_tokens <= limit


def check_room(prompt_tokens: int, limit: int | None, max_new_tokens: int, label: str = "The prompt") -> None:
    """See whether a prompt leaves room for its answer.

    Raises:
        UserError: it does not.
    """
    if not has_room(prompt_tokens, limit, max_new_tokens):
        raise UserError(
            f"{label} has {prompt_tokens} tokens; with generation.max_new_tokens={max_new_tokens} that is more than "
            f"the {limit} that this model takes. Shorten the prompt or lower that setting."
        )

"""Prompts to token ids, with room for their answers."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from glmtune.data.encoding import encode_prompt
from glmtune.messages import Prompt
from glmtune.runtime import UserError


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    limit: int | None,
    max_new_tokens: int,
    names: Sequence[object] = (),
) -> list[list[int]]:
    """Return the token ids of prompts that leave room for an answer.

    Args:
        tokenizer: with the template of the model.
        prompts: texts, or lists of messages.
        limit: longest sequence in tokens that the model takes; None where it states none.
        max_new_tokens: longest answer.
        names: what errors call the prompts, such as their sources; default: their numbers.

    Raises:
        UserError: a prompt is too long, or its messages do not suit the template; says which.
    """
    encoded = []
    for number, prompt in enumerate(prompts, start=1):
        name = str(names[number - 1] if names else f"Prompt {number}")
        try:
            ids = encode_prompt(tokenizer, prompt)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        check_room(len(ids), limit, max_new_tokens, name)
        encoded.append(ids)
    return encoded


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

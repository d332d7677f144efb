"""Whether tokenizer and weights are of one release: else the same ids would mean different things to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmtune.models.families import family_of
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def check_release(path: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Compare a tokenizer with the configuration of the weights, as its family does, and their sizes.

    Raises:
        UserError: control tokens have other ids in one than in the other, or there are tokens that the model lacks.
    """
    if check := family_of(config.to_dict()).check_tokenizer:
        check(path, tokenizer, config)
    size = config.get_text_config().vocab_size
    if len(tokenizer) > size and (largest := max(tokenizer.get_vocab().values())) >= size:
        raise UserError(
            f"model.path: {path} mixes two releases: its tokenizer has ids up to {largest}, and its model has rows for "
            f"{size} tokens. Copy the tokenizer's files from the release that the weights are of."
        )


def end_tokens(config: PreTrainedConfig) -> list[int]:
    """Return the ids that end an answer by a configuration."""
    ends = config.eos_token_id
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


def other_ends(path: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> UserError:
    """Return the error that says that answers end otherwise by the tokenizer than by the configuration."""
    return UserError(
        f"model.path: {path} mixes two releases: answers end with {end_tokens(config)} by its config.json, with "
        f"{tokenizer.eos_token_id} ({tokenizer.eos_token}) by its tokenizer. Copy the tokenizer's files from the "
        "release that the weights are of."
    )

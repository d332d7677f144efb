"""Text to token ids. The template travels with the tokenizer; what users write can never become a control token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypedDict, cast

from transformers import PreTrainedTokenizerBase

from glmtune.runtime import UserError

Message = dict[str, str]  # {"role": "user" | "assistant" | "system", "content": text}
IGNORED = -100  # label of a token that is not learned

# The first of the characters that stand for the contents of messages while a template is rendered, one for each.
# They are for private use, so that no template writes them and no tokenizer has tokens for them.
_CONTENT = 0xF0000
_CONTENT_PATTERN = re.compile("[\U000f0000-\U000ffffd]")


class Encoding(TypedDict):
    """One example: `input_ids` and `labels`, both (T,), unshifted; the shift is in the loss.

    `record` is its index in its data set, -1 outside of one.
    """

    input_ids: list[int]
    labels: list[int]
    record: int


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | list[Message]) -> list[int]:
    """Token ids of a prompt, ready to be answered: template and special tokens included.

    The template is rendered with placeholders for what people wrote. Only control tokens that stand in the template
    itself become ids; everything between two of them is encoded as one plain text.

    Args:
        tokenizer: with a `chat_template`; without one the bare prompt gets the tokenizer's own special tokens.
        prompt: a text, which is one user message, or messages.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if tokenizer.chat_template is None:
        text = "\n".join(message["content"] for message in messages)
        return tokenizer(text, split_special_tokens=True)["input_ids"]
    stand_ins = [{**message, "content": chr(_CONTENT + i)} for i, message in enumerate(messages)]
    rendered = str(tokenizer.apply_chat_template(stand_ins, tokenize=False, add_generation_prompt=True))
    ids: list[int] = []
    for is_control, piece in template_pieces(tokenizer, rendered):
        if is_control:
            ids.append(cast(int, tokenizer.convert_tokens_to_ids(piece)))
        else:
            written = _CONTENT_PATTERN.sub(lambda found: messages[ord(found[0]) - _CONTENT]["content"], piece)
            ids += plain_ids(tokenizer, written)
    return ids


def template_pieces(tokenizer: PreTrainedTokenizerBase, rendered: str) -> Iterator[tuple[bool, str]]:
    """(is a control token, text) of a rendered template, in order."""
    controls = sorted(control_tokens(tokenizer), key=len, reverse=True)
    for index, piece in enumerate(re.split("(" + "|".join(map(re.escape, controls)) + ")", rendered)):
        if piece:
            yield index % 2 == 1, piece


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Every token that a template may use as a control token."""
    named = (token for token in tokenizer.special_tokens_map.values() if isinstance(token, str))
    return {*named, *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in which nothing is a control token.

    `split_special_tokens` covers the special ones. Checkpoints also mark control words, such as those around tool
    calls, as added but not special; these are cut after their first character.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special]
    cuts = "|".join(f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in added if len(token) > 1)
    pieces = re.split(cuts, text) if cuts else [text]
    encoded = [tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"] for piece in pieces]
    return [token_id for ids in encoded for token_id in ids]


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    target: str,
    max_length: int | None = None,
    record: int = -1,
) -> Encoding:
    """A prompt with its target. Only the target and the end token are learned.

    Raises:
        UserError: the example is longer than `max_length` tokens.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    target_ids = [*plain_ids(tokenizer, target), tokenizer.eos_token_id]
    length = len(prompt_ids) + len(target_ids)
    if max_length is not None and length > max_length:
        raise UserError(
            f"An example has {length} tokens, more than data.max_length or the model's {max_length}: "
            f"{str(prompt)[:60]!r}... Shorten it, or raise data.max_length if the model can take more."
        )
    labels = [IGNORED] * len(prompt_ids) + target_ids
    return {"input_ids": prompt_ids + target_ids, "labels": labels, "record": record}

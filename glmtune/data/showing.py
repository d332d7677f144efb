"""Encodings as people read them: the text of each token, and whether it is learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from glmtune.data.control_tokens import collect_control_tokens
from glmtune.data.encoding import IGNORED, Encoding

_CONTEXT = 8  # tokens that are decoded before one, which decide of blanks and of halves of characters


class Token(NamedTuple):
    """A token, or several that are one character together: its text, whether it is learned, and a control token."""

    text: str
    learned: bool
    control: bool


def shown_tokens(tokenizer: PreTrainedTokenizerBase, encoding: Encoding, most: int) -> list[Token]:
    """Return the tokens of an encoding; of a long one the first and the last, `most` in all, and what is left out."""
    count = len(encoding["input_ids"])
    if count <= most:
        return list(tokens_of(tokenizer, encoding, 0, count))
    first, last = most // 2, count - (most - most // 2)
    learned = sum(label != IGNORED for label in encoding["labels"][first:last])
    left_out = f" [... {last - first:,} tokens, {learned:,} of them learned ...] "
    return [
        *tokens_of(tokenizer, encoding, 0, first),
        Token(left_out, False, True),
        *tokens_of(tokenizer, encoding, last, count),
    ]


def tokens_of(tokenizer: PreTrainedTokenizerBase, encoding: Encoding, start: int, end: int) -> Iterator[Token]:
    """Yield the tokens of an encoding from place `start` to `end`, in a time that grows as their number does."""
    controls = collect_control_tokens(tokenizer).tokens
    ids, labels = encoding["input_ids"][:end], encoding["labels"][:end]
    names = tokenizer.convert_ids_to_tokens(ids[start:])
    pending: list[int] = []  # places of tokens that are no whole character yet
    for place, name in enumerate(names, start=start):
        learned = labels[place] != IGNORED
        if name in controls:
            yield Token(name, learned, True)
            continue
        pending.append(place)
        following = (
            place + 1 < end and (labels[place + 1] != IGNORED) == learned and names[place + 1 - start] not in controls
        )
        text = _text_of(tokenizer, ids, pending[0], place + 1, controls)
        if text.endswith("\ufffd") and following and len(pending) < _CONTEXT:
            continue  # the rest of the character is still to come
        yield Token(text, learned, False)
        pending = []


def _text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, end: int, controls: frozenset[str]) -> str:
    """Return what some tokens add to the text of those right before them, up to a control token."""
    first = start
    while first > max(0, start - _CONTEXT) and str(tokenizer.convert_ids_to_tokens(ids[first - 1])) not in controls:
        first -= 1
    before, whole = str(tokenizer.decode(ids[first:start])), str(tokenizer.decode(ids[first:end]))
    return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(ids[start:end]))

"""Records as the model reads them: token by token, and which of them are learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune.data.control_tokens import collect_control_tokens
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import IGNORED, Encoding
from glmtune.data.texts import EncodedTexts
from glmtune.examples import Example, Source

RENDERED = 3  # records that are shown with their tokens
MOST_TOKENS = 400  # of each that are shown


def source_of(record: Example) -> Source:
    """Return where a record stands; all that are inspected have been read from files."""
    assert record.source is not None
    return record.source


def place_of(record: Example) -> dict[str, Any]:
    """Return where a record stands, as the report has it."""
    source = source_of(record)
    return {"file": source.file, "line": source.line}


def encode_record(encoder: Encoder, record: Example) -> Encoding:
    """Return a record as it would be learned, however long: an answer to its prompt, or all of a plain text."""
    return encoder(record) if record.text is None else EncodedTexts([record], encoder.tokenizer, None)[0]


def pick_places(count: int) -> list[int]:
    """Places of the records that are shown: the first, the middle one and the last."""
    return sorted({0, count // 2, count - 1})[-min(RENDERED, count) :] if count else []


def render_record(encoder: Encoder, record: Example) -> dict[str, Any]:
    """Return a record as the model reads it: `[text, learned, control]` of each token; long ones lose their middle."""
    encoding = encode_record(encoder, record)
    tokens = [list(token) for token in tokens_of(encoder.tokenizer, encoding)]
    left_out = len(tokens) - MOST_TOKENS
    if left_out > 0:
        half = MOST_TOKENS // 2
        tokens = [*tokens[:half], [f" [... {left_out} tokens ...] ", False, True], *tokens[-half:]]
    return {**place_of(record), "tokens": tokens}


def tokens_of(tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> Iterator[tuple[str, bool, bool]]:
    """(text, learned, control) of each token, or of several that are one character together."""
    controls = collect_control_tokens(tokenizer).tokens
    ids, labels = encoding["input_ids"], encoding["labels"]
    start, before = 0, ""  # a run of tokens between control tokens, and its text so far
    for place, token in enumerate(ids):
        name, learned = str(tokenizer.convert_ids_to_tokens(token)), labels[place] != IGNORED
        if name in controls:
            yield name, learned, True
            start, before = place + 1, ""
            continue
        text = str(tokenizer.decode(ids[start : place + 1]))
        following = place + 1 < len(ids) and (labels[place + 1] != IGNORED) == learned
        if text.endswith("\ufffd") and following:
            continue  # the rest of the character is still to come
        yield (text[len(before) :] if text.startswith(before) else name), learned, False
        before = text

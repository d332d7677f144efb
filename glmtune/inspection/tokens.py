"""Records as the model reads them: token by token, and which of them are learned."""

from __future__ import annotations

from typing import Any

from glmtune.data.encoder import Encoder
from glmtune.data.encoding import Encoding
from glmtune.data.showing import shown_tokens
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
    tokens = shown_tokens(encoder.tokenizer, encode_record(encoder, record), MOST_TOKENS)
    return {**place_of(record), "tokens": [list(token) for token in tokens]}

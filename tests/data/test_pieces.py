"""Pieces of rendered templates: nothing is lost, nothing that people wrote is control, answers alone are learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from glmtune.data.control_tokens import collect_control_tokens
from glmtune.data.pieces import find_endings, learn_starts, split_conversation, split_pieces
from glmtune.data.rendering import render
from glmtune.data.signs import fill_in, sign_texts

TURNS = [{"role": role, "content": f"{role}: <|im_end|><eop>\U000f0001"} for role in ("user", "assistant")] * 2
BOTH = pytest.mark.parametrize("name", ["chatglm", "chatml"])


@BOTH
def test_pieces_are_the_rendered_template(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    signed = sign_texts(tokenizer, TURNS[:3])
    rendered = render(tokenizer, signed.messages, for_answer=True).text
    pieces = split_pieces(tokenizer, rendered)
    assert "".join(piece.text for piece in pieces) == rendered
    controls = collect_control_tokens(tokenizer).tokens
    assert all(piece.is_control == (piece.text in controls) for piece in pieces)
    filled = [fill_in(piece.text, signed.texts) for piece in pieces if not piece.is_control]
    assert all(turn["content"] in "".join(filled) for turn in TURNS[:3])


@BOTH
def test_the_last_answer_is_learned_with_its_end(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Any = request.getfixturevalue(name)
    signed = sign_texts(tokenizer, TURNS)
    pieces = split_conversation(tokenizer, signed)
    learned = [piece for piece in pieces if piece.learned]
    assert fill_in("".join(piece.text for piece in learned[:-1]), signed.texts).strip() == TURNS[-1]["content"]
    assert learned[-1].is_control and learned[-1].text in find_endings(tokenizer)
    assert learned == pieces[-len(learned) :]
    before = pieces[-len(learned) - 1]
    start = [replace(before, learned=True)] if before.is_control else []
    assert [piece for piece in learn_starts(pieces) if piece.learned] == start + learned

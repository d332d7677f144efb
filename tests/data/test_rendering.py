"""Pieces of rendered templates: nothing is lost, nothing that people wrote is control, answers alone are learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from glmtune.data.rendering import (
    control_tokens,
    conversation,
    endings,
    pieces_of,
    render,
    with_stand_ins,
    with_starts,
    written,
)
from glmtune.runtime import UserError

TURNS = [{"role": role, "content": f"{role}: <|im_end|><eop>\U000f0001"} for role in ("user", "assistant")] * 2
BOTH = pytest.mark.parametrize("name", ["chatglm", "chatml"])


@BOTH
def test_pieces_are_the_rendered_template(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    messages, texts = with_stand_ins(TURNS[:3])
    rendered, _ = render(tokenizer, messages, for_answer=True)
    pieces = pieces_of(tokenizer, rendered, [], [])
    assert "".join(piece.text for piece in pieces) == rendered
    assert all(piece.is_control == (piece.text in control_tokens(tokenizer)) for piece in pieces)
    whole = "".join(written(piece.text, texts) for piece in pieces if not piece.is_control)
    assert all(turn["content"] in whole for turn in TURNS[:3])
    assert not any(piece.is_control for piece in pieces for text in texts if text in written(piece.text, texts))


@BOTH
def test_the_last_answer_is_learned_with_its_end(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Any = request.getfixturevalue(name)
    messages, texts = with_stand_ins(TURNS)
    pieces = conversation(tokenizer, messages)
    learned = [piece for piece in pieces if piece.learned]
    assert written("".join(piece.text for piece in learned[:-1]), texts).strip() == TURNS[-1]["content"]
    assert learned[-1].is_control and learned[-1].text in endings(tokenizer)
    assert learned == pieces[-len(learned) :]
    before = pieces[-len(learned) - 1]
    start = [replace(before, learned=True)] if before.is_control else []
    assert [piece for piece in with_starts(pieces) if piece.learned] == start + learned


def test_contents_become_signs_and_names_stay() -> None:
    tools = [{"name": "calculate", "parameters": {"type": 'a "b"'}}]
    messages, texts = with_stand_ins([{"role": "system", "content": "", "tools": tools}, *TURNS[:1]])
    assert messages[0]["content"] == "" and messages[0]["role"] == "system"  # an empty text stays empty
    assert texts == ["calculate", 'a \\"b\\"', TURNS[0]["content"]]  # as JSON writes it within tools
    assert written(messages[0]["tools"][0]["parameters"]["type"], texts) == 'a \\"b\\"'
    for wrong in ({"role": "user<sop>", "content": "x"}, {"role": "user", "a b": "x", "content": "x"}):
        with pytest.raises(UserError, match="are names, of letters, digits"):
            with_stand_ins([wrong])
    with pytest.raises(UserError, match="needs a 'role' and a 'content'"):
        with_stand_ins([{"role": "user"}])

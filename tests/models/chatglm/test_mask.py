"""The mask that is made at once is the one that the library makes entry by entry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import glmtune
from glmtune.models.chatglm.modeling_chatglm import ChatGLMModel


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("cache", [None, "dynamic", "static"])
def test_the_mask_is_the_librarys(
    kind: str, side: str, cache: str | None, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = glmtune.load(tiny_checkpoint, attention=kind)
    rows = [tokenizer(prompt)["input_ids"] for prompt in ("1+2=", "123+4567=" if side != "none" else "3+4=")]
    width, pad = max(map(len, rows)), tokenizer.pad_token_id
    filled = [[pad] * (width - len(row)) for row in rows]
    before = side == "left"
    ids = torch.tensor([fill + row if before else row + fill for row, fill in zip(rows, filled, strict=True)])
    mask = (ids != pad).long()
    make, compared = ChatGLMModel.forward_mask, []

    def both(self: Any, *arguments: Any) -> Any:
        made = make(self, *arguments)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            compared.append((made, make(self, *arguments)))
        return made

    monkeypatch.setattr(ChatGLMModel, "forward_mask", both)
    held = {"dynamic": lambda: DynamicCache(config=model.config), "static": lambda: StaticCache(model.config, 40)}
    past = held[cache]() if cache else None
    model(input_ids=ids, attention_mask=None if side == "none" else mask, past_key_values=past)
    [(made, expected)] = compared
    assert torch.equal(made.expand(expected.shape), expected) and made.shape[1:] == expected.shape[1:]

"""Requests of all kinds, and models that say what they are told to."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot


@pytest.fixture
def says(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`says("7", "7", "<eop>")`: the next tokens of the model, whatever it is asked; the last one for ever."""
    model, tokenizer = tiny
    head = model.get_base_model().lm_head
    forward, vocabulary = head.forward, model.config.vocab_size

    def install(*tokens: str) -> None:
        script = chain(
            tokenizer.convert_tokens_to_ids(list(tokens)), repeat(tokenizer.convert_tokens_to_ids(tokens[-1]))
        )

        def scripted(states: Tensor) -> Tensor:
            return forward(states) * 0 + one_hot(torch.tensor(next(script)), vocabulary)

        monkeypatch.setattr(head, "forward", scripted)

    return install

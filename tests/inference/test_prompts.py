"""Prompts are encoded if the model can take them, and their answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from glmtune.data.encoding import encode_prompt
from glmtune.inference.prompts import encode_within
from glmtune.runtime import UserError


def test_encoded_as_for_training(tiny: tuple[Any, Any]) -> None:
    for prompt in ("1+2=", [{"role": "user", "content": "3"}]):
        assert encode_within(tiny[1], prompt, (), None, 9) == encode_prompt(tiny[1], prompt)


def test_a_prompt_too_long_is_told(tiny: tuple[Any, Any]) -> None:
    fits, too_long = "1" * 113, "1" * 114  # and a blank, [gMASK] and <sop>
    assert len(encode_within(tiny[1], fits, (), 128, 12)) == 116
    with pytest.raises(UserError, match=r"Prompt 2 has 117 tokens.*max_new_tokens=12.*the 128 that") as error:
        encode_within(tiny[1], too_long, (), 128, 12, "Prompt 2")
    assert "Shorten the prompt or lower that setting" in str(error.value)


def test_messages_that_the_template_refuses_are_told(tiny: tuple[Any, Any]) -> None:
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"line 1 of q: .* does not take this conversation: roles must alternate"):
        encode_within(tokenizer, [{"role": "user", "content": "1"}], (), None, 8, "line 1 of q")

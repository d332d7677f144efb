"""An answer that must call a tool is read as that call, whatever a model would say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from transformers import AutoTokenizer

pytest.importorskip("llguidance")

from glmtune.data.encoding import encode_prompt, stop_ids
from glmtune.data.parsing import parse_answer
from glmtune.inference.constraints import make_call_constraint
from glmtune.models import loading
from glmtune.runtime import UserError

ADD = {
    "type": "object",
    "properties": {"first": {"type": "integer"}, "second": {"enum": ["一", "\n"]}},
    "required": ["first", "second"],
    "additionalProperties": False,
}


def definition(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


TOOLS = [definition("add", ADD), definition("addition", ADD), definition("now", None)]


@pytest.mark.parametrize("family", ["Qwen2.5", "Qwen3", "SmolLM2"])
@pytest.mark.parametrize("names", [["add"], ["addition", "now"], ["add", "addition", "now"]])
def test_what_is_written_is_a_call(family: str, names: list[str], checkpoint_of: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(family))
    tools, stops = [tool for tool in TOOLS if tool["function"]["name"] in names], stop_ids(tokenizer)
    size = len(tokenizer) + 5
    constraint = make_call_constraint(tokenizer, size, stops, tools)
    asked, called = encode_prompt(tokenizer, "1+1", tools), set()
    for seed in range(6):
        generator, matcher, ids = torch.Generator().manual_seed(seed), constraint.matcher(), []
        while not ids or ids[-1] not in stops:
            allowed = matcher.allowed()
            assert allowed.shape == (size,) and allowed.any() and len(ids) < 2000
            scores = torch.rand(size, generator=generator).masked_fill(~allowed, -1)
            ids.append(int(scores.argmax()))
            matcher.advance(ids[-1])
        [call] = parse_answer(tokenizer, asked, ids, tools)["tool_calls"]
        called.add(call["function"]["name"])
        if call["function"]["name"] != "now":
            Draft202012Validator(ADD).validate(call["function"]["arguments"])
    assert called <= set(names) and (len(names) == 1 or len(called) > 1)


def test_a_template_without_json_is_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(loading.EMBEDDED["nano"])
    with pytest.raises(UserError, match="template"):
        make_call_constraint(tokenizer, len(tokenizer), stop_ids(tokenizer), TOOLS[:1])

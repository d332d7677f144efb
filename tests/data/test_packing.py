"""Packed rows give what each sequence gives alone: logits, loss and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, Glm4Config, GlmConfig, LlamaConfig

from glmtune.data.collation import Collator, pack
from glmtune.data.encoding import IGNORED, Encoding
from glmtune.models import loading
from glmtune.runtime import UserError, read_json_lines
from glmtune.training.loss import target_loss

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 2}
CONFIGS = {
    "glm": GlmConfig(**SIZES, **GROUPED),
    "glm4": Glm4Config(**SIZES, **GROUPED),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
}


def make_model(family: str, attention: str) -> Any:
    torch.manual_seed(0)
    if family == "chatglm":
        config = loading.load_config(str(loading.EMBEDDED["nano"]))
    else:
        config = CONFIGS[family]
        config.initializer_range = 0.3
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def examples(model: Any, lengths: list[tuple[int, int]]) -> list[Encoding]:
    """Prompts and targets of random tokens, as the family wants them."""
    generator = torch.Generator().manual_seed(1)
    found: list[Encoding] = []
    for number, (prompt, target) in enumerate(lengths):
        ids = torch.randint(10, 60, (prompt + target,), generator=generator).tolist()
        if model.config.model_type == "chatglm":
            ids[prompt - 2 : prompt] = [model.config.gmask_token_id, model.config.bos_token_id]
        found.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:], "record": number})
    return found


def loss_and_gradients(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    logits = model(**inputs, use_cache=False, logits_to_keep=batch["logits_to_keep"]).logits
    loss = target_loss(logits, batch["labels"], batch["logits_to_keep"]) / batch["labels"].ne(IGNORED).sum()
    loss.backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["chatglm", *CONFIGS])
def test_packed_equals_unpacked(family: str, attention: str) -> None:
    model = make_model(family, attention)
    encodings = examples(model, [(9, 7), (3, 2), (5, 1), (4, 8), (12, 3), (3, 9)])
    pad = model.config.pad_token_id or 0
    alone, packed = Collator(pad)(encodings), Collator(pad, packed=True, room=32)(encodings)
    assert len(packed["input_ids"]) < len(encodings) and packed["labels"].ne(IGNORED).sum() == 30
    expected, found = loss_and_gradients(model, alone), loss_and_gradients(model, packed)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_neighbour_is_not_seen() -> None:
    """Another text beside it changes no logit, not even in ChatGLM-6B, whose contexts are seen in both directions."""
    model = make_model("chatglm", "sdpa")
    first, second, other = examples(model, [(6, 4), (8, 5), (8, 5)])
    collate = Collator(3, packed=True, room=40)
    with torch.no_grad():
        rows = []
        for neighbour in (second, other):
            batch = collate([first, neighbour])
            at = batch["input_ids"][0].tolist().index(first["input_ids"][0])
            logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
            rows.append(logits[0, len(second["input_ids"]) :] if at else logits[0, : len(first["input_ids"])])
    torch.testing.assert_close(rows[0], rows[1])


def test_what_is_no_prompt_is_told() -> None:
    model = make_model("chatglm", "sdpa")
    [whole] = examples(model, [(6, 4)])
    broken: Encoding = {"input_ids": [11, 12, 13], "labels": [IGNORED, 12, 13], "record": 1}
    batch = Collator(3, packed=True, room=20)([whole, broken])
    with pytest.raises(ValueError, match="holds a sequence around token 10 that is not a ChatGLM-6B prompt"):
        model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(0, 100))
def test_every_item_stands_once_and_fits(lengths: list[int], room: int) -> None:
    rows = pack(lengths, room)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= max(room, *lengths) for row in rows)
    assert len(rows) <= 1.5 * -(-sum(lengths) // max(room, *lengths)) + 1


def test_a_packed_run_is_one_of_the_same_losses(train_tiny: Any, tmp_path: Path) -> None:
    """One batch of all examples, in whichever order: the first step has the same loss, packed or not."""
    settings = ["training.steps=1", "training.batch_size=8", "training.logging_steps=1"]
    losses = []
    for packing in (False, True):
        done = train_tiny(tmp_path / str(packing), f"data.packing={packing}", *settings)
        losses += [record["loss"] for _, record in read_json_lines(done.folder.log) if "loss" in record]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_cannot_be_packed_is_refused(train_tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.packing=true: with this model and method, packed examples see one another"
    ):
        train_tiny(tmp_path / "run", "data.packing=true", "method={name: ptuning_v2, num_virtual_tokens: 4}")

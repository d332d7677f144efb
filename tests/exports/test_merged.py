"""Adapters that become part of their base: the same answers, an ordinary model, and nothing where that cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lora_variants import base_of, inputs, logits, lora, of_each_kind, trained, weights_of
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

import glmtune
from glmtune.execution import Run
from glmtune.exports.merged import merge_adapter
from glmtune.exports.reference import TOLERANCE
from glmtune.models.low_rank import updated_layers
from glmtune.runtime import UserError


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@of_each_kind
def test_merged_is_the_same(tiny_checkpoint: Path, settings: dict[str, Any], dtype: str) -> None:
    base, tokenizer = base_of(tiny_checkpoint, dtype)
    method = lora(**settings)
    torch.manual_seed(0)
    model = method.finish(trained(method.apply(base), tokenizer))
    expected = logits(model, tokenizer)
    merged = merge_adapter(model, inputs(tokenizer))
    assert type(merged) is type(base) and merged.dtype == getattr(torch, dtype)
    original = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).state_dict()
    assert {name: weight.shape for name, weight in merged.state_dict().items()} == {
        name: weight.shape for name, weight in original.items()
    }
    share = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 8e-2}[dtype]
    assert (logits(merged, tokenizer) - expected).norm() < share * expected.norm()


def test_merged_is_an_ordinary_checkpoint(tiny: tuple[Any, Any], tiny_run: Run, tmp_path: Path) -> None:
    model, tokenizer = glmtune.load(tiny_run.folder.path)
    merged = merge_adapter(model, inputs(tokenizer))
    assert not isinstance(merged, PeftModel)
    merged.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(*glmtune.load(tmp_path)), logits(*tiny), rtol=0, atol=2e-4)


def test_a_merge_that_changes_answers_is_undone(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = glmtune.load(tiny_run.folder.path)
    expected = logits(model, tokenizer)
    monkeypatch.setitem(TOLERANCE, torch.float32, -1.0)
    with pytest.raises(UserError, match=r"differs by .* of its size in fp32. Nothing was merged"):
        merge_adapter(model, inputs(tokenizer))
    assert not any(layer.merged for _, layer in updated_layers(model))
    torch.testing.assert_close(logits(model, tokenizer), expected, rtol=0, atol=2e-4)


def test_an_adapter_of_no_numbers_is_not_merged(tiny_run: Run) -> None:
    """The layers before the broken one have been merged when it is found, and are unmerged again."""
    model, tokenizer = glmtune.load(tiny_run.folder.path)
    before = {name: weight.clone() for name, weight in weights_of(model).items()}
    *_, (_, last) = updated_layers(model)
    nn.init.constant_(last.lora_B["default"].weight, float("nan"))
    with pytest.raises(UserError, match=r"cannot be merged: NaNs detected.*Nothing was merged"):
        merge_adapter(model, inputs(tokenizer))
    assert not any(layer.merged for _, layer in updated_layers(model))
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6, msg=name)


def test_what_is_no_change_of_weights_is_not_merged(tiny_checkpoint: Path) -> None:
    base, tokenizer = base_of(tiny_checkpoint)
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(UserError, match="prefix is no change of weights"):
        merge_adapter(get_peft_model(base, prefix), inputs(tokenizer))
    with pytest.raises(UserError, match="ChatGLMForCausalLM has no adapter to merge"):
        merge_adapter(base_of(tiny_checkpoint)[0], inputs(tokenizer))


def test_an_update_of_a_head_that_is_the_embedding_is_not_merged(tiny_checkpoint: Path) -> None:
    """As others make them: merged, it would change what the tokens mean."""
    base, tokenizer = base_of(tiny_checkpoint)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["dense", "lm_head"]))
    with pytest.raises(UserError, match=r"lm_head has an update, and head and embedding are one matrix.*Keep the"):
        merge_adapter(model, inputs(tokenizer))

"""Adapters that become part of their base: the same answers, an ordinary model, and nothing where that cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import glmtune
from glmtune.config import ModelSettings
from glmtune.data.encoding import encode_prompt
from glmtune.execution import Run
from glmtune.exports.merged import merge_adapter
from glmtune.exports.verification import TOLERANCE
from glmtune.methods.lora import Lora, LoraSettings
from glmtune.models import loading
from glmtune.models.low_rank import updated_layers
from glmtune.runtime import UserError

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one name": {"target_modules": ["query_key_value"]},
    "rslora": {"use_rslora": True, "rank": 8},
    "dora": {"use_dora": True},
    "pissa": {"init": "pissa"},
    "pissa rslora": {"init": "pissa", "use_rslora": True},
    "pissa dora": {"init": "pissa", "use_dora": True, "target_modules": ["dense", "dense_h_to_4h"]},
}
of_each_kind = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


def base_of(checkpoint: Path, dtype: Any = "float32", bits: Any = 16) -> tuple[Any, Any]:
    return loading.load_model(ModelSettings(path=str(checkpoint), dtype=dtype, bits=bits))


def lora(**settings: Any) -> Lora:
    return Lora(LoraSettings(**{"name": "lora", "rank": 4, "alpha": 8} | settings))


def inputs(tokenizer: Any) -> Tensor:
    return torch.tensor([encode_prompt(tokenizer, "1+2=")])


def logits(model: Any, tokenizer: Any) -> Tensor:
    with torch.no_grad():
        return model(inputs(tokenizer)).logits.float()


def trained(model: Any, tokenizer: Any) -> Any:
    """The model after three large steps, so that every kind of weight has moved."""
    start = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.02)
    ids = inputs(tokenizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    after = dict(model.named_parameters())
    assert start and all(not torch.equal(weight, after[name]) for name, weight in start.items())
    return model.eval()


def weights_of(model: Any) -> dict[str, Tensor]:
    """A model's weights under the names that they have without an adapter."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in model.state_dict().items()
        if "lora_" not in name
    }


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
    with pytest.raises(UserError, match=r"logits differ by .* of their size.*Nothing was merged.*float32"):
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

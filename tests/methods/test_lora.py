"""LoRA: nothing at the start, fp32, beside a frozen base, and in peft's own format at the end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from glmtune import models
from glmtune.commands.train import Run
from glmtune.config import ModelSettings
from glmtune.data.encoding import encode_prompt
from glmtune.methods.lora import Lora, LoraSettings
from glmtune.runtime import UserError


def base_of(checkpoint: Path, dtype: Any = "float32") -> tuple[Any, Any]:
    return models.load(ModelSettings(path=str(checkpoint), dtype=dtype))


def lora(**settings: Any) -> Lora:
    return Lora(LoraSettings(name="lora", **settings))


def logits(model: Any, tokenizer: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([encode_prompt(tokenizer, "1+2=")])).logits


def test_starts_as_its_base(tiny_checkpoint: Path) -> None:
    model, tokenizer = base_of(tiny_checkpoint)
    expected = logits(model, tokenizer)
    torch.testing.assert_close(logits(lora(rank=4).apply(model), tokenizer), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_fp32_updates_are_trained(tiny_checkpoint: Path, dtype: str) -> None:
    model = lora(rank=4).apply(base_of(tiny_checkpoint, dtype)[0])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert parameter.dtype == (torch.float32 if "lora_" in name else getattr(torch, dtype)), name


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        (["dense"], {"dense"}),
        (["dense", "query_key_value"], {"dense", "query_key_value"}),
        (r".*\.1\.mlp\..*", {"dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
def test_updates_the_layers_that_are_named(tiny_checkpoint: Path, targets: str | list[str], expected: set[str]) -> None:
    model = lora(target_modules=targets).apply(base_of(tiny_checkpoint)[0])
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name, _ in model.named_parameters() if "lora_" in name} == (
        expected
    )


@pytest.mark.parametrize("targets", [["quary_key_value"], ["dense", "quary_key_value"], "quary.*", ["input_layernorm"]])
def test_a_wrong_name_is_told(tiny_checkpoint: Path, targets: str | list[str]) -> None:
    """Also where another name of the list is right, which is enough for peft."""
    with pytest.raises(UserError, match=r"method\.target_modules") as error:
        lora(target_modules=targets).apply(base_of(tiny_checkpoint)[0])
    if "quary_key_value" in targets:
        assert "Did you mean 'query_key_value'?" in str(error.value)


def test_the_base_is_untouched(tiny_run: Run, tiny: tuple[Any, Any], tiny_checkpoint: Path) -> None:
    base = base_of(tiny_checkpoint)[0].state_dict()
    trained = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in tiny[0].state_dict().items()
        if "lora_" not in name
    }
    assert trained.keys() == base.keys()
    assert all(torch.equal(trained[name], base[name]) for name in base)
    moved = [weight for name, weight in tiny[0].named_parameters() if "lora_B" in name]
    assert moved and all(weight.abs().max() > 0 for weight in moved)


def test_merged_is_the_same(tiny: tuple[Any, Any], tiny_run: Run, tiny_checkpoint: Path) -> None:
    _, tokenizer = tiny
    adapted = PeftModel.from_pretrained(base_of(tiny_checkpoint)[0], str(tiny_run.folder.adapter))
    expected = logits(adapted, tokenizer)
    assert (expected - logits(base_of(tiny_checkpoint)[0], tokenizer)).abs().max() > 0.1
    merged = adapted.merge_and_unload()
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(logits(merged, tokenizer), expected, rtol=0, atol=2e-4)  # logits up to 40


def test_plain_peft_reads_the_adapter(tiny: tuple[Any, Any], tiny_run: Run, tiny_checkpoint: Path) -> None:
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_checkpoint), tiny_run.folder.adapter
    ).eval()
    torch.testing.assert_close(logits(plain, tiny[1]), logits(*tiny), rtol=0, atol=0)


def test_peft_finds_the_base_by_itself(tiny: tuple[Any, Any], tiny_run: Run) -> None:
    """`import glmtune` is all that it needs."""
    found = AutoPeftModelForCausalLM.from_pretrained(tiny_run.folder.adapter).eval()
    assert type(found.get_base_model()).__name__ == "ChatGLMForCausalLM"
    torch.testing.assert_close(logits(found, tiny[1]), logits(*tiny), rtol=0, atol=0)

"""LoRA and its relatives on a tiny model, for the tests of what they learn and of what is merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glmtune.config import ModelSettings
from glmtune.data.encoding import encode_prompt
from glmtune.methods.lora import Lora, LoraSettings
from glmtune.models import loading

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

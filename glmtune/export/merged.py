"""A whole model in transformers' own layout: for `Glm`, Llama and most others, transformers alone opens it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glmtune.data.encoding import encode_prompt
from glmtune.inference.reading import stops_of
from glmtune.messages import Prompt
from glmtune.methods import Model
from glmtune.methods.lora import merge
from glmtune.models import stored_bits
from glmtune.models.glm.configuration_glm import legacy_keys
from glmtune.models.quantization import unpack_layers


def whole(model: Model, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> PreTrainedModel:
    """Base and adapter as one ordinary model; `model` itself if it has no adapter beside it.

    Raises:
        UserError: the adapter cannot be merged, or the merged model answers otherwise.
    """
    from peft import PeftModel

    if stored_bits(model.config) < 16:  # a packed release: the same numbers, as floats
        unpack_layers(model, model.dtype)
        model.config.quantization_bit, model.config.quantization_embeddings = 0, False
    if not isinstance(model, PeftModel):
        return model
    return merge(model, torch.tensor([encode_prompt(tokenizer, prompt)]))


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Write a model and its tokenizer, which holds the template.

    What ends an answer is written down, so that `generate` stops without knowing the template.
    """
    stops = stops_of(model, tokenizer)
    model.generation_config = type(model.generation_config)(
        eos_token_id=stops if len(stops) > 1 else stops[0], pad_token_id=tokenizer.pad_token_id
    )
    model.to(dtype).save_pretrained(str(folder))  # type: ignore[arg-type]
    tokenizer.save_pretrained(str(folder))
    if model.config.model_type == "glm":  # llama.cpp's converter reads the base of its rotations there alone
        file = folder / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(config | legacy_keys(config), indent=2) + "\n", encoding="utf-8")

"""A learned prefix in front of the keys and values of every layer: the torch side of P-Tuning v2.

peft stores it, loads it and decodes with it. Training differs in one thing: peft puts the prefix in the cache, and
transformers takes the cache away from layers that are recomputed in the backward pass (gradient checkpointing).
`LearnedPrefix` is a cache that holds nothing and can thus be made anew wherever one is missing.

Letters in shapes: B batch, P tokens of the prefix, T tokens of this call, L layers, H key heads, D head size, E width
between the two linear layers of the projection.
"""

from __future__ import annotations

import inspect
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from peft import (
    PeftConfig,
    PeftModelForCausalLM,
    PrefixEncoder,
    PrefixTuningConfig,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from glmtune.models.checkpoint import reading, weight_files

# What the original scripts name their weights: `transformer.prefix_encoder.embedding.weight` ...
ORIGINAL_NAME = "prefix_encoder."


class LearnedPrefix(Cache):
    """Keys and values computed from the parameters whenever a layer asks; those of the tokens are not kept.

    Recomputed in the backward pass it gives the same again, and gradients reach the parameters from every layer.

    Args:
        encoder: (P, 2LHD) learned numbers, key and value of a layer side by side; or (P, HD) and two linear layers
            that make them.
        dropout: of the prefix, drawn for each row of the batch.
    """

    def __init__(self, encoder: PrefixEncoder, dropout: float = 0.0):
        super().__init__(layers=[])
        self.embedding = encoder.embedding.weight
        self.projection = cast(nn.Sequential, encoder.transform) if encoder.prefix_projection else None
        self.dropout = dropout

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return P, at any time."""
        return len(self.embedding)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return (P + T, 0): columns that the queries see, and the first one."""
        return self.get_seq_length() + query_length, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the prefix of a layer before its keys and values: (B, H, T, D) -> (B, H, P + T, D), twice."""
        batch, heads, _, size = key_states.shape
        width = 2 * heads * size
        prefix = self.numbers(slice(layer_idx * width, (layer_idx + 1) * width)).view(-1, 2, heads, size)
        prefix = prefix.permute(1, 2, 0, 3)[:, None].expand(-1, batch, -1, -1, -1)  # (2, B, H, P, D)
        key, value = nn.functional.dropout(prefix, self.dropout)
        return torch.cat((key.to(key_states), key_states), 2), torch.cat((value.to(value_states), value_states), 2)

    def numbers(self, columns: slice) -> Tensor:
        """Return (P, width of `columns`): some columns of all the numbers of the prefix, and no others computed."""
        if self.projection is None:
            return self.embedding[:, columns]
        last = cast(nn.Linear, self.projection[-1])
        return nn.functional.linear(self.hidden, last.weight[columns], last.bias[columns])

    @cached_property
    def hidden(self) -> Tensor:
        """(P, E), what all layers are projected from."""
        assert self.projection is not None
        return self.projection[:-1](self.embedding)


class PrefixModel(PeftModelForCausalLM):
    """peft's prefix tuning, with dropout, that learns under gradient checkpointing as well.

    Checkpointing may be switched on before or after; with `use_reentrant=True`, which transformers does not choose by
    itself, `enable_input_require_grads()` is needed as for any adapter.

    Args:
        model: the base; its parameters are frozen.
        config: size of the prefix.
        dropout: of the prefix, in training.
    """

    def __init__(self, model: PreTrainedModel, config: PrefixTuningConfig, dropout: float = 0.0):
        super().__init__(model, config)
        self.dropout = dropout
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                for module in layer.modules():
                    if module is not layer and "past_key_values" in inspect.signature(module.forward).parameters:
                        module.register_forward_pre_hook(self.give_back, with_kwargs=True)

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        """Add it as peft does, which refuses a prefix under checkpointing. So it is off in the meantime."""
        switched: list[Any] = [part for part in self.base_model.modules() if vars(part).get("gradient_checkpointing")]
        try:
            for part in switched:
                part.gradient_checkpointing = False
            super().add_adapter(adapter_name, peft_config, *args, **kwargs)
        finally:
            for part in switched:
                part.gradient_checkpointing = True

    def get_prompt(self, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        """Return the cache that a forward pass starts with: peft's own, but for learning."""
        if self.training and torch.is_grad_enabled():
            return self.learned_prefix()
        cache: Any = super().get_prompt(1, *args, **kwargs)  # peft would compute the prefix once for each row
        cache.batch_repeat_interleave(batch_size)
        return cache

    def learned_prefix(self) -> LearnedPrefix:
        return LearnedPrefix(cast(PrefixEncoder, self.prompt_encoder[self.active_adapter]), self.dropout)

    def give_back(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Give an attention, before it runs, the cache that checkpointing has taken away from the layer around."""
        if not attention.training or kwargs.get("past_key_values") is not None or not self.has_active_enabled_adapter:
            return None
        return args, {**kwargs, "past_key_values": self.learned_prefix()}

    @torch.no_grad()
    def start_from(self, numbers: Tensor) -> None:
        """Let what learns begin at the numbers (P, 2LHD); with a projection, all tokens of it at their mean."""
        encoder = cast(PrefixEncoder, self.prompt_encoder[self.active_adapter])
        if not encoder.prefix_projection:
            encoder.embedding.weight.copy_(numbers)
            return
        last = cast(nn.Linear, cast(nn.Sequential, encoder.transform)[-1])
        last.bias.copy_(numbers.mean(0))
        last.weight.mul_(0.1)  # else what it draws at random outweighs them

    def merge_projection(self) -> None:
        """Replace the projection by the numbers it gives, which is what peft saves."""
        config = cast(PrefixTuningConfig, self.active_peft_config)
        if config.prefix_projection:
            numbers = self.get_prompt_embedding_to_save(self.active_adapter)  # (P, 2LHD)
            config.prefix_projection = False
            self.prompt_encoder[self.active_adapter] = PrefixEncoder(config).to(self.device)
            set_prefix(self, numbers)


def set_prefix(model: PeftModelForCausalLM, numbers: Tensor) -> None:
    """Give a model without projection the numbers (P, 2LHD) of its prefix."""
    set_peft_model_state_dict(model, {"prompt_embeddings": numbers})


def with_prefix(model: PreTrainedModel, numbers: Tensor) -> PeftModelForCausalLM:
    """Return a model in evaluation mode behind a prefix of the numbers (P, 2LHD): what peft makes of a saved one."""
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(numbers), inference_mode=True)
    adapted = PeftModelForCausalLM(model, config)
    set_prefix(adapted, numbers)
    return adapted.eval()


def read_original(folder: Path) -> dict[str, Tensor]:
    """Read the weights that the original scripts saved: `embedding.weight`, `trans.0.weight` ...

    Returns:
        Tensors by name, in the files until they are used; none where the folder holds a whole model.

    Raises:
        UserError: a file is damaged.
    """
    found: dict[str, Tensor] = {}
    with reading("adapter", str(folder)):
        for file in weight_files(folder):
            binary = file.suffix == ".bin"
            found |= torch.load(file, map_location="cpu", weights_only=True, mmap=True) if binary else load_file(file)
    if any("word_embeddings" in name for name in found):
        return {}
    return {name.partition(ORIGINAL_NAME)[2]: tensor for name, tensor in found.items() if ORIGINAL_NAME in name}


def saved_length(folder: Path) -> int:
    """Return P by the weights of a saved prefix, in peft's format or the original one.

    Raises:
        UserError: a file is damaged or missing.
    """
    with reading("adapter", str(folder)):
        if weights := read_original(folder):
            return len(weights["embedding.weight"])
        return len(load_peft_weights(str(folder), device="cpu")["prompt_embeddings"])


def project(weights: dict[str, Tensor]) -> Tensor:
    """Return (P, 2LHD) in fp32 of original weights with a projection."""
    linear = nn.functional.linear
    weights = {name: tensor.float() for name, tensor in weights.items()}
    hidden = linear(weights["embedding.weight"], weights["trans.0.weight"], weights["trans.0.bias"]).tanh()
    return linear(hidden, weights["trans.2.weight"], weights["trans.2.bias"])

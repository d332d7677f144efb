"""ChatGLM-6B as its release has it: the original names of weights, all of them, and the original configuration.

For tools that read the release and nothing else. What the release computes is what this package computes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.chatglm.modeling_chatglm import ROPE_BASE
from glmtune.models.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.runtime import UserError

SHARD_BYTES = 2 * 10**9
# Names of the release's own code, which is not part of an export: tools that run it bring it along.
MODEL_CODE = "modeling_chatglm.ChatGLMForConditionalGeneration"
CONFIG_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "gmask_token_id",
    "hidden_size",
    "inner_hidden_size",
    "layernorm_epsilon",
    "mask_token_id",
    "max_sequence_length",
    "num_attention_heads",
    "num_layers",
    "pad_token_id",
    "position_encoding_2d",
    "use_cache",
    "vocab_size",
)
TOKENIZER_KEYS = ("bos_token", "eos_token", "end_token", "gmask_token", "mask_token", "pad_token", "unk_token")


def check(config: Any) -> None:
    """Only ChatGLM-6B has this form.

    Raises:
        UserError: the model is another.
    """
    if not isinstance(config, ChatGLMConfig):
        raise UserError(
            f"--to original: the original layout is that of ChatGLM-6B, and this is a {config.model_type} model, which "
            "all tools read as transformers writes it: --to merged."
        )


def original_names(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight that a release holds: the tied head, too, and the rotary frequencies, which its code never reads."""
    weights = {name: weight.detach().to(dtype) for name, weight in model.state_dict().items()}
    embedding = model.get_output_embeddings().weight  # type: ignore[union-attr]
    weights["lm_head.weight"] = embedding.detach().to(dtype).clone()
    rows = 2 if model.config.position_encoding_2d else 1
    width = model.config.head_dim // rows
    frequencies = 1.0 / ROPE_BASE ** (torch.arange(0, width, 2).float() / width)
    for index in range(model.config.num_layers):
        weights[f"transformer.layers.{index}.attention.rotary_emb.inv_freq"] = frequencies.to(torch.float16).clone()
    return {name: weight.contiguous() for name, weight in weights.items()}


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Write a model of ChatGLM-6B's architecture and its tokenizer as the release has them."""
    assert isinstance(tokenizer, ChatGLMTokenizer)
    save_shards(original_names(model, dtype), folder)
    values = model.config.to_dict()
    config = {key: values[key] for key in CONFIG_KEYS}
    if not model.config.tie_word_embeddings:  # of which releases say nothing
        config["tie_word_embeddings"] = False
    code = {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": MODEL_CODE}
    config |= {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": code}
    write(folder / "config.json", config | {"torch_dtype": str(dtype).removeprefix("torch.")})
    tokenizer.save_vocabulary(str(folder))
    names = {key: str(tokenizer.special_tokens_map.get(key) or tokenizer.init_kwargs[key]) for key in TOKENIZER_KEYS}
    settings = {
        "do_lower_case": tokenizer.do_lower_case,
        "remove_space": tokenizer.remove_space,
        "num_image_tokens": tokenizer.num_image_tokens,
        "padding_side": "left",
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
        "chat_template": tokenizer.chat_template,
    }
    write(folder / "tokenizer_config.json", names | settings)


def save_shards(weights: dict[str, Tensor], folder: Path) -> None:
    """Safetensors of at most `SHARD_BYTES`, with an index where there are several."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, weight in weights.items():
        if size and size + weight.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = weight
        size += weight.nbytes
    count = len(shards)
    files = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        files = ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    if count > 1:
        index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(weight.nbytes for weight in weights.values())
        write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def write(file: Path, values: dict[str, Any]) -> None:
    """A JSON file."""
    file.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

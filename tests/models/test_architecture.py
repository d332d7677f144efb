"""Sizes from config.json alone: what transformers builds of the same configuration, counted."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CodeGenConfig,
    Gemma3TextConfig,
    Glm4Config,
    Glm4MoeConfig,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from glmtune.models import loading
from glmtune.models.architecture import Architecture
from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.checkpoint import read_json
from glmtune.models.families import all_families
from glmtune.runtime import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS: dict[str, Any] = {
    "chatglm": ChatGLMConfig(vocab_size=96, hidden_size=32, num_layers=3, num_attention_heads=4, inner_hidden_size=80),
    "chatglm, own head": ChatGLMConfig(
        vocab_size=96, hidden_size=32, num_layers=3, num_attention_heads=4, tie_word_embeddings=False
    ),
    "codegen": CodeGenConfig(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=16),
    "glm": GlmConfig(**SIZES, head_dim=8),
    "glm4": Glm4Config(**SIZES, head_dim=8),
    "glm4_moe": Glm4MoeConfig(**SIZES, **EXPERTS, n_routed_experts=6, head_dim=16),
    "glm4_moe, with all that it may have": Glm4MoeConfig(
        **SIZES,
        **EXPERTS,
        n_routed_experts=6,
        n_shared_experts=2,
        first_k_dense_replace=2,
        attention_bias=True,
        use_qk_norm=True,
    ),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "llama": LlamaConfig(**SIZES),
    "llama, with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=5, num_experts_per_tok=2),
    "phi3": Phi3Config(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=6, head_dim=16),
    "qwen3_moe, some of it dense": Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=6, mlp_only_layers=[1]),
}


def built(name: str) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[name])


def test_every_family_is_tested() -> None:
    known = {name for family in all_families() if family.sizes for name in family.model_types}
    assert {config.model_type for config in CONFIGS.values()} == known


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_what_is_built(name: str) -> None:
    model, sizes = built(name), Architecture.from_config(CONFIGS[name].to_dict())
    assert sizes.parameters == model.num_parameters()
    heads = {model.get_output_embeddings(), model.get_input_embeddings()}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in heads]
    if name != "gpt2":  # whose linear layers are of a kind of their own
        counted = sum(layer.parameters * count for layer, count in sizes.matrices)
        assert sum(weight.numel() for layer in layers for weight in layer.parameters()) == counted
    experts = sum(layer.parameters * sizes.times(layer) for layer in sizes.linears if layer.experts)
    assert sum(weight.numel() for weight in model.parameters() if weight.ndim == 3) == experts
    names = {path.rpartition(".")[2] for path in (*dict(model.named_modules()), *dict(model.named_parameters()))}
    assert {layer.name for layer in sizes.linears} <= names
    assert sizes.embedding_parameters == sum(
        {id(w): w.numel() for m in heads for w in m.parameters(recurse=False) if w.ndim == 2}.values()
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_holds_what_a_prefix_replaces(name: str) -> None:
    sizes = Architecture.from_config(CONFIGS[name].to_dict())
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    special = [CONFIGS[name].gmask_token_id, CONFIGS[name].bos_token_id] if sizes.family == "chatglm" else [1, 2]
    if max(special) >= sizes.vocab_size:
        model.config.gmask_token_id, model.config.bos_token_id = special = [1, 2]
    cache = model(torch.tensor([[5, 6, *special]]), use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert numbers == 4 * sizes.prefix_width


def test_active_parameters() -> None:
    """Qwen3-30B-A3B and GLM-4.5-Air as they are published, and what their names say."""
    qwen = Qwen3MoeConfig(num_hidden_layers=48, num_experts=128, num_experts_per_tok=8, head_dim=128)
    sizes = Architecture.from_config(qwen.to_dict())
    assert (round(sizes.parameters / 1e9, 1), round(sizes.active_parameters / 1e9, 1)) == (30.5, 3.4)
    air = Glm4MoeConfig(use_qk_norm=False, attention_bias=True, head_dim=128)
    sizes = Architecture.from_config(air.to_dict())
    assert (round(sizes.parameters / 1e9), round(sizes.active_parameters / 1e9)) == (107, 13)
    dense = Architecture.from_config(CONFIGS["llama"].to_dict())
    assert dense.active_parameters == dense.parameters and not list(dense.remarks(4))
    assert [*sizes.remarks(16)] == []
    assert "model.bits=4: the experts, 93% of the parameters, stay as they are" in "".join(sizes.remarks(4))


@pytest.mark.parametrize("name", [name for name in CONFIGS if "moe" in name or name == "mixtral"])
def test_a_token_passes_its_experts_alone(name: str) -> None:
    """A gradient of one token reaches the active parameters but for what of the others is no row of the embedding."""
    torch.manual_seed(0)
    model, sizes = AutoModelForCausalLM.from_config(CONFIGS[name]), Architecture.from_config(CONFIGS[name].to_dict())
    model(torch.tensor([[5]])).logits.sum().backward()
    reached = sum(
        int((weight.grad.flatten(1) != 0).any(1).sum()) * weight[0].numel()
        for weight in model.parameters()
        if weight.ndim == 3
    )
    idle = sizes.parameters - sizes.active_parameters
    assert reached == sum(weight.numel() for weight in model.parameters() if weight.ndim == 3) - idle


def test_chatglm_6b() -> None:
    assert Architecture.from_config(ChatGLMConfig().to_dict()).parameters == 6_173_286_400
    assert Architecture.from_config(ChatGLMConfig(vocab_size=150528).to_dict()).parameters == 6_255_206_400


@pytest.mark.parametrize(
    ("later", "parameters"),
    [
        ({"padded_vocab_size": 65024, "num_layers": 28, "ffn_hidden_size": 13696, "add_qkv_bias": True}, 6_243_584_000),
        (
            {"padded_vocab_size": 151552, "num_layers": 40, "ffn_hidden_size": 13696, "add_qkv_bias": True},
            9_399_951_360,
        ),
    ],
    ids=["ChatGLM3-6B", "GLM-4-9B"],
)
def test_later_generations_by_their_own_configuration(later: dict[str, Any], parameters: int) -> None:
    """6.24 and 9.40 billion, as their makers state; counted by transformers' class of the same sizes."""
    common = {
        "model_type": "chatglm",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "kv_channels": 128,
        "seq_length": 8192,
    }
    sizes = Architecture.from_config(common | later)
    assert sizes.parameters == parameters
    assert sizes.max_length == 8192
    config = GlmConfig(
        vocab_size=later["padded_vocab_size"],
        num_hidden_layers=later["num_layers"],
        intermediate_size=13696,
        num_key_value_heads=2,
        pad_token_id=0,
        attention_bias=True,
    )
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(config).num_parameters() == parameters


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (16, False, False)),
        ({"quantization_bit": 0}, (16, False, False)),
        ({"quantization_bit": 4}, (4, True, False)),
        ({"quantization_bit": 8, "quantization_embeddings": True}, (8, True, True)),
        ({"quantization_config": {"load_in_8bit": True}}, (8, False, False)),
        ({"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}, (4, False, False)),
    ],
)
def test_storage(values: dict[str, Any], expected: tuple[int, bool, bool]) -> None:
    sizes = Architecture.from_config(ChatGLMConfig().to_dict() | values)
    assert (sizes.stored_bits, sizes.packed, sizes.packed_embedding) == expected


def test_embedded_models_are_known() -> None:
    for folder in loading.EMBEDDED.values():
        sizes = Architecture.from_config(read_json(folder / "config.json"))
        assert sizes.max_length == loading.max_length(AutoConfig.from_pretrained(folder))


def test_an_unknown_family_is_told() -> None:
    with pytest.raises(UserError, match=r"model_type 'lama' is none whose sizes are known here.*'llama'"):
        Architecture.from_config({"model_type": "lama"})


def test_a_missing_size_is_told() -> None:
    with pytest.raises(UserError, match="intermediate_size is missing, which a model of the family 'llama' needs"):
        Architecture.from_config({"model_type": "llama", "hidden_size": 32})


def test_needs_no_torch() -> None:
    code = "import sys, glmtune.models.architecture; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parent)

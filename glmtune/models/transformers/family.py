"""Families whose classes transformers has: their sizes, and how llama.cpp computes them. No torch here.

A family that is missing here can be trained all the same; `glmtune estimate` does not know its sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from glmtune.models.architecture import LinearLayer, gated_sizes, plain_sizes
from glmtune.models.families import Family
from glmtune.models.transformers import llama_cpp

SHARED = "shared_experts"  # which every token passes: one MLP beside the experts that are chosen


def gpt2_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Architecture` for GPT-2: learned positions, head tied to the embedding."""
    width = values["n_embd"]
    inner = values.get("n_inner") or 4 * width
    linears = (
        LinearLayer("c_attn", "attention", width, 3 * width, True),
        LinearLayer("c_proj", "attention", width, width, True),
        LinearLayer("c_fc", "mlp", width, inner, True),
        LinearLayer("c_proj", "mlp", inner, width, True),
    )
    length = values["n_positions"]
    sizes = plain_sizes(values, width, values["n_layer"], values["n_head"], linears, 2, length)
    return {**sizes, "other_parameters": length * width}


def codegen_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of CodeGen: attention and MLP side by side behind one norm; a head of its own, with a bias."""
    width = values["n_embd"]
    inner = values.get("n_inner") or 4 * width
    linears = (
        LinearLayer("qkv_proj", "attention", width, 3 * width, False),
        LinearLayer("out_proj", "attention", width, width, False),
        LinearLayer("fc_in", "mlp", width, inner, True),
        LinearLayer("fc_out", "mlp", inner, width, True),
    )
    sizes = plain_sizes(values, width, values["n_layer"], values["n_head"], linears, 1, values["n_positions"])
    return {**sizes, "tied": values.get("tie_word_embeddings", False), "other_parameters": values["vocab_size"]}


def llama_sizes(values: Mapping[str, Any], head_norms: bool = False) -> dict[str, Any]:
    """Return those of Llama, and of Mistral, whose configuration has no biases to name."""
    bias = values.get("attention_bias", False)
    mlp_bias = values.get("mlp_bias", False)
    return gated_sizes(values, qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias, head_norms=head_norms)


def mixture_sizes(
    values: Mapping[str, Any], experts: str, inner: str, sparse: Callable[[int], bool], shared: str = "", **named: bool
) -> dict[str, Any]:
    """Return those of a mixture of experts, which stand in the place of the MLP in some of the blocks.

    Args:
        values: of the `config.json`.
        experts, inner, shared: what a release calls their number (transformers writes `num_local_experts`), the width
            inside one, and the number of shared ones, which are one MLP.
        sparse: whether a block has experts, by its index.
        named: as for `gated_sizes`.
    """
    sizes, width = gated_sizes(values, **named), values["hidden_size"]
    blocks = tuple(block for block in range(sizes["num_layers"]) if sparse(block))
    dense = tuple(block for block in range(sizes["num_layers"]) if not sparse(block))
    count = values[experts if experts in values else "num_local_experts"]
    active, size = values["num_experts_per_tok"], values[inner]
    linears = [layer for layer in sizes["linears"] if layer.part == "attention"]
    linears += [replace(layer, blocks=dense) for layer in sizes["linears"] if layer.part == "mlp" and dense]
    if shared and values[shared]:
        beside = gated_sizes({**values, "intermediate_size": size * values[shared]})["linears"]
        linears += [replace(layer, blocks=blocks, owner=SHARED) for layer in beside if layer.part == "mlp"]
    linears += [
        LinearLayer("gate_up_proj", "mlp", width, 2 * size, False, blocks, count, active, "experts"),
        LinearLayer("down_proj", "mlp", size, width, False, blocks, count, active, "experts"),
    ]
    router = LinearLayer("gate", "mlp", width, count, False, blocks)
    return {**sizes, "linears": tuple(linears), "router": router}


def mixtral_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of Mixtral: experts in every block."""
    return mixture_sizes(values, "num_local_experts", "intermediate_size", lambda block: True)


def qwen3_moe_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of Qwen3's mixtures: experts in every block that is not named as one without."""
    step, dense = values.get("decoder_sparse_step", 1), values.get("mlp_only_layers") or []
    bias = values.get("attention_bias", False)
    return mixture_sizes(
        values,
        "num_experts",
        "moe_intermediate_size",
        lambda block: block not in dense and (block + 1) % step == 0,
        qkv_bias=bias,
        output_bias=bias,
        head_norms=True,
    )


def glm4_moe_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of GLM-4.5 and GLM-4.6: the first blocks are dense, the others have shared experts as well."""
    return mixture_sizes(
        values,
        "n_routed_experts",
        "moe_intermediate_size",
        lambda block: block >= values.get("first_k_dense_replace", 1),
        "n_shared_experts",
        qkv_bias=values.get("attention_bias", False),
        head_norms=values.get("use_qk_norm", False),
    )


def gemma3_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of Gemma 3, without its images: four norms in a block, the head tied unless it says otherwise."""
    bias = values.get("attention_bias", False)
    sizes = gated_sizes(values, qkv_bias=bias, output_bias=bias, head_norms=True, norms=4)
    return {**sizes, "tied": values.get("tie_word_embeddings", True)}


CODEGEN = Family(("codegen",), codegen_sizes)
GEMMA3 = Family(("gemma3_text",), gemma3_sizes, gguf=llama_cpp.GEMMA3)
GLM4_MOE = Family(("glm4_moe",), glm4_moe_sizes, template="glm4", gguf=llama_cpp.GLM4_MOE)
GPT2 = Family(("gpt2",), gpt2_sizes)
LLAMA = Family(("llama",), llama_sizes, gguf=llama_cpp.LLAMA)
MISTRAL = Family(("mistral",), llama_sizes, gguf=llama_cpp.LLAMA)
MIXTRAL = Family(("mixtral",), mixtral_sizes, gguf=llama_cpp.MIXTRAL)
PHI3 = Family(("phi3",), partial(gated_sizes, fused_qkv=True, fused_mlp=True), gguf=llama_cpp.PHI3)  # and Phi-4
QWEN2 = Family(("qwen2",), partial(gated_sizes, qkv_bias=True), gguf=llama_cpp.QWEN2)  # and Qwen2.5
# Queries and keys are normalised head by head.
QWEN3 = Family(("qwen3",), partial(llama_sizes, head_norms=True), gguf=llama_cpp.QWEN3)
QWEN3_MOE = Family(("qwen3_moe",), qwen3_moe_sizes, gguf=llama_cpp.QWEN3_MOE)

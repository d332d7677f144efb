"""Families whose classes transformers has: their sizes, and how llama.cpp computes them. No torch here.

A family that is missing here can be trained all the same; `glmtune estimate` does not know its sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from glmtune.models.architecture import LinearLayer, gated_sizes, plain_sizes
from glmtune.models.families import Family, GgufFacts


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


CODEGEN = Family(("codegen",), codegen_sizes)
GPT2 = Family(("gpt2",), gpt2_sizes)
LLAMA = Family(
    ("llama",),
    llama_sizes,
    gguf=GgufFacts("LLAMA", rope_types=("default", "linear", "llama3"), interleaves_rotary=True),
)
MISTRAL = Family(("mistral",), llama_sizes)
PHI3 = Family(("phi3",), partial(gated_sizes, fused_qkv=True, fused_mlp=True))  # and Phi-4
QWEN2 = Family(("qwen2",), partial(gated_sizes, qkv_bias=True))  # and Qwen2.5
QWEN3 = Family(("qwen3",), partial(llama_sizes, head_norms=True))  # queries and keys are normalised head by head

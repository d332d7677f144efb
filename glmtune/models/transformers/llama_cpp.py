"""How llama.cpp computes the families of transformers: what its files must say, and what its graphs have no place for.

Read in llama.cpp's loaders and graphs (src/models/gemma3.cpp, glm4-moe.cpp, llama.cpp, phi3.cpp, qwen2.cpp, qwen3.cpp,
qwen3moe.cpp). No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glmtune.models.families import GgufFacts

Read = Callable[[str, type], Any]  # a key of a file, without its architecture, and the type of its value

ORIGINAL_LENGTH = "original_max_position_embeddings"
SIGMOID = 2  # how experts are chosen, in llama.cpp's numbers; it takes a softmax where nothing is said
GEMMA3_PATTERN = 6  # of so many layers the last sees everything, the others a window
GEMMA3_LOCAL_BASE = 10_000.0  # of the rotations in layers with a window
GEMMA3_27B = (5376, 32, 168)  # width, heads and scale of the one size whose queries are scaled by its width


def mixtral_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what llama.cpp reads of experts whose width is `feed_forward_length`."""
    return {"expert_count": values["num_local_experts"], "expert_used_count": values["num_experts_per_tok"]}


def mixture_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what it reads of experts of a width of their own."""
    count = next(values[name] for name in ("num_experts", "n_routed_experts", "num_local_experts") if name in values)
    return {
        "expert_count": count,
        "expert_used_count": values["num_experts_per_tok"],
        "expert_feed_forward_length": values["moe_intermediate_size"],
    }


def glm4_moe_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what it reads of GLM-4.5's experts; the layer that predicts a second token is not in the file."""
    return mixture_fields(values) | {
        "expert_shared_count": values["n_shared_experts"],
        "leading_dense_block_count": values["first_k_dense_replace"],
        "expert_gating_func": SIGMOID,
        "expert_weights_scale": float(values["routed_scaling_factor"]),
        "expert_weights_norm": bool(values["norm_topk_prob"]),
        "nextn_predict_layers": 0,
    }


def gemma3_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the window of Gemma 3's local layers, and the base of their rotations."""
    return {"attention.sliding_window": values["sliding_window"], "rope.freq_base_swa": GEMMA3_LOCAL_BASE}


def phi3_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the window of Phi-3, of which 0 says that there is none, as in Phi-4."""
    return {
        "attention.sliding_window": values.get("sliding_window") or 0,
        "rope.scaling.original_context_length": values[ORIGINAL_LENGTH],
    }


def gemma3_misfits(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what llama.cpp computes otherwise than a Gemma 3 by its `config.json`."""
    kinds = values.get("layer_types") or []
    pattern = [
        "full_attention" if (place + 1) % GEMMA3_PATTERN == 0 else "sliding_attention" for place in range(len(kinds))
    ]
    if list(kinds) != pattern:
        yield f"layer_types: every {GEMMA3_PATTERN}th layer sees everything there"
    local = (values.get("rope_parameters") or {}).get("sliding_attention") or {}
    if (base := local.get("rope_theta", GEMMA3_LOCAL_BASE)) != GEMMA3_LOCAL_BASE:
        yield f"rope_theta={base:g} of the layers with a window, 10000 there"
    heads, scale = values["num_attention_heads"], values.get("query_pre_attn_scalar")
    if scale != values.get("head_dim") and (values["hidden_size"], heads, scale) != GEMMA3_27B:
        yield f"query_pre_attn_scalar={scale}, head_dim={values.get('head_dim')} there"
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention", "attention_bias"):
        if values.get(name):
            yield f"{name}={values[name]}"


def qwen3_moe_misfits(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the same of a mixture of Qwen3."""
    if values.get("mlp_only_layers") or values.get("decoder_sparse_step", 1) != 1:
        yield "blocks without experts (mlp_only_layers, decoder_sparse_step)"
    if not values.get("norm_topk_prob"):
        yield "norm_topk_prob=false, true there"


def glm4_moe_misfits(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the same of GLM-4.5."""
    if values.get("n_group", 1) != 1:
        yield f"n_group={values['n_group']}, 1 there"


def gemma3_config(read: Read, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of Gemma 3's windows, in the words of its `config.json`."""
    width, heads, scale = GEMMA3_27B
    is_27b = (values["hidden_size"], values["num_attention_heads"]) == (width, heads)
    local = {"rope_type": "default", "rope_theta": read("rope.freq_base_swa", float) or GEMMA3_LOCAL_BASE}
    return {
        "sliding_window": read("attention.sliding_window", int),
        "query_pre_attn_scalar": scale if is_27b else values["head_dim"],
        "rope_parameters": {"full_attention": values["rope_parameters"], "sliding_attention": local},
    }


def phi3_config(read: Read, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of Phi-3's window and of its first length."""
    length = read("rope.scaling.original_context_length", int) or values["max_position_embeddings"]
    rope = {key: value for key, value in values["rope_parameters"].items() if key != ORIGINAL_LENGTH}
    window = read("attention.sliding_window", int) or None
    return {"sliding_window": window, ORIGINAL_LENGTH: length, "rope_parameters": rope}


GEMMA3 = GgufFacts(
    "GEMMA3",
    activation="gelu_pytorch_tanh",
    norms_add_one=True,
    has_windows=True,
    fields=gemma3_fields,
    misfits=gemma3_misfits,
    config=gemma3_config,
)
GLM4_MOE = GgufFacts(
    "GLM4_MOE",
    end_tokens=("<|user|>", "<|observation|>"),
    pre_tokenizers={"llama-bpe": "glm4", "smaug-bpe": "glm4"},
    fields=glm4_moe_fields,
    misfits=glm4_moe_misfits,
)
LLAMA = GgufFacts("LLAMA", rope_types=("default", "linear", "llama3"), interleaves_rotary=True)
MIXTRAL = GgufFacts("LLAMA", interleaves_rotary=True, fields=mixtral_fields)
PHI3 = GgufFacts("PHI3", has_windows=True, fields=phi3_fields, config=phi3_config)
QWEN2 = GgufFacts("QWEN2")
QWEN3 = GgufFacts("QWEN3")
QWEN3_MOE = GgufFacts("QWEN3MOE", fields=mixture_fields, misfits=qwen3_moe_misfits)

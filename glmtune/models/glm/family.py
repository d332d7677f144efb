"""GLM since its second generation: ChatGLM2-6B, ChatGLM3-6B, GLM-4. transformers has the classes. No torch here.

The first three are published under names and words of their own, which the modules of this folder read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from glmtune.models.architecture import gated_sizes
from glmtune.models.families import Family, GgufFacts
from glmtune.models.releases import end_tokens, other_ends

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Keys that only these configurations have: they say `model_type: chatglm` as that of ChatGLM-6B does.
ORIGINAL_KEYS = ("multi_query_attention", "rmsnorm", "ffn_hidden_size", "padded_vocab_size")
ROPE_BASE = 10000.0


def sizes(values: Mapping[str, Any], norms: int = 2) -> dict[str, Any]:
    """Return the fields of `Architecture` for transformers' `glm`: gate and up projection in one matrix."""
    return gated_sizes(values, qkv_bias=values.get("attention_bias", True), fused_mlp=True, norms=norms)


def original_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same for a configuration in the original's words."""
    return sizes(as_glm(values))


def as_glm(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return sizes that the original's `config.json` names in the words of transformers' `glm`, which runs it."""
    heads = values["num_attention_heads"]
    return {
        "hidden_size": values["hidden_size"],
        "num_hidden_layers": values["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": values["multi_query_group_num"] if values.get("multi_query_attention") else heads,
        "head_dim": values["kv_channels"],
        "intermediate_size": values["ffn_hidden_size"],
        "vocab_size": values["padded_vocab_size"],
        "attention_bias": values.get("add_qkv_bias", False) or values.get("add_bias_linear", False),
        "max_position_embeddings": values.get("seq_length"),
        "tie_word_embeddings": values.get("tie_word_embeddings", False),
    }


def legacy_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what llama.cpp's converter reads of a `glm`, whichever words its configuration uses otherwise."""
    rope = config.get("rope_parameters") or {}
    return {
        "rope_ratio": rope.get("rope_theta", ROPE_BASE) / ROPE_BASE,
        "layernorm_epsilon": config["rms_norm_eps"],
        "seq_length": config["max_position_embeddings"],
    }


def check_tokenizer(path: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Compare what ends an answer by the tokenizer with the configuration of an original checkpoint.

    Raises:
        UserError: they differ.
    """
    # By its name: the module of this class reads the words above.
    is_original = type(config).__name__ == "OriginalGlmConfig"
    if is_original and tokenizer.eos_token_id not in end_tokens(config):
        raise other_ends(path, tokenizer, config)


# A token that says who speaks next ends an answer. Texts are cut as Llama 3 does it, but without a `bos` in front.
LLAMA_CPP = partial(
    GgufFacts,
    end_tokens=("<|user|>", "<|observation|>"),
    pre_tokenizers={"llama-bpe": "glm4", "smaug-bpe": "glm4"},
    prefix=("[gMASK]", "<sop>"),
)

ORIGINAL = Family(
    model_types=("chatglm",),
    keys=ORIGINAL_KEYS,
    sizes=original_sizes,
    releases=("ChatGLM2-6B", "ChatGLM3-6B", "GLM-4-9B"),
    small_files=("tokenization_chatglm.py",),  # which alone names the roles of ChatGLM3-6B
    gguf_remedy=(
        "config.json: model_type=chatglm with ffn_hidden_size is the original layout of ChatGLM2-6B, ChatGLM3-6B or "
        "GLM-4-9B. GGUF is written from transformers' layout: export with --to merged first."
    ),
)
GLM = Family(
    model_types=("glm",),
    sizes=sizes,
    peft_targets={"OSF_TARGET": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")},
    peft_like="llama",
    check_tokenizer=check_tokenizer,
    extra_config=legacy_keys,
    gguf=LLAMA_CPP("CHATGLM", heads_fill_width=True),
)
GLM4 = Family(
    model_types=("glm4",),  # GLM-4-0414: a norm behind each half of the block, too
    sizes=partial(sizes, norms=4),
    gguf=LLAMA_CPP("GLM4"),
)

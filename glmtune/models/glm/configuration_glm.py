"""The configuration of a ChatGLM2-6B, ChatGLM3-6B or GLM-4-9B checkpoint, as transformers' `glm`.

These say `model_type: chatglm` as the first generation does; their own keys tell them apart. What they compute is what
`GlmForCausalLM` computes (checked against the original code in fp32, tests/golden/glm2_glm3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.models.glm.configuration_glm import GlmConfig

from glmtune.models.glm.family import ORIGINAL_KEYS, ROPE_BASE, as_glm

# What the published checkpoints have; with other values they would be another architecture.
EXPECTED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "original_rope": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
}
NEEDED = (
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "kv_channels",
    "ffn_hidden_size",
    "padded_vocab_size",
    "layernorm_epsilon",
    "seq_length",
)
# What ChatGLM2-6B and ChatGLM3-6B end and pad with, where their files do not say; those of transformers are GLM-4's.
END, PAD = 2, 0


@strict
class OriginalGlmConfig(GlmConfig):
    """A `GlmConfig` that knows that the weights beside it have their original names."""


def translate_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the original's `config.json` in the words of `GlmConfig`.

    Raises:
        ValueError: it describes something else than the published models, or packed weights.
    """
    for key, expected in EXPECTED.items():
        if values.get(key, expected) != expected:
            raise ValueError(
                f"{key}={values[key]} in config.json: ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B have {expected}. A model "
                "with another value is not known here."
            )
    if values.get("quantization_bit"):
        raise ValueError(
            f"quantization_bit={values['quantization_bit']} in config.json: packed checkpoints are read of ChatGLM-6B "
            "only. Take the 16-bit release, with model.bits=8 or 4."
        )
    if values.get("vision_config"):
        raise ValueError("vision_config in config.json: models that see, as GLM-4V-9B does, are not known here.")
    needed = [*NEEDED, "multi_query_group_num"] if values.get("multi_query_attention") else NEEDED
    if missing := [key for key in needed if key not in values]:
        raise ValueError(
            f"This config.json says model_type 'chatglm' and is of ChatGLM2-6B or later (it has {name_keys(values)}), "
            f"but lacks {', '.join(missing)}. Copy or download it again."
        )
    kept = {"eos_token_id", "pad_token_id", "bos_token_id", "use_cache", "attention_dropout", "torch_dtype", "dtype"}
    return {
        **as_glm(values),
        "eos_token_id": END,
        "pad_token_id": PAD,
        **{key: values[key] for key in kept if values.get(key) is not None},
        "rms_norm_eps": values["layernorm_epsilon"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": ROPE_BASE * (values.get("rope_ratio") or 1),
            "partial_rotary_factor": 0.5,
        },
        "architectures": ["GlmForCausalLM"],
    }


def name_keys(values: Mapping[str, Any]) -> str:
    """Return which keys tell that a configuration is of a later generation."""
    return ", ".join(key for key in ORIGINAL_KEYS if key in values)

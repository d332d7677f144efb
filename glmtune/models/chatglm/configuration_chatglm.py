"""Configuration of ChatGLM-6B."""

import importlib
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from glmtune.models.glm.family import ORIGINAL_KEYS


@strict
class ChatGLMConfig(PreTrainedConfig):
    """What a ChatGLM-6B `config.json` holds. Defaults are those of release v1.1 (6,173,286,400 parameters).

    The special token ids are always the checkpoint's own: release v1.0 has them 20,000 higher.

    Args:
        vocab_size: rows of the embedding; at least the tokenizer's length.
        hidden_size: width of the residual stream, a multiple of `4 * num_attention_heads`.
        num_layers: number of blocks (also readable as `num_hidden_layers`).
        num_attention_heads: heads per block.
        inner_hidden_size: width inside the MLP (also readable as `intermediate_size`).
        layernorm_epsilon: epsilon of every LayerNorm.
        max_sequence_length: longest sequence that the model was trained on, in tokens.
        position_encoding_2d: two rows of positions, one in the context and one in the answer (GLM, section 2.2).
        mask_token_id: `[MASK]`. gmask_token_id: `[gMASK]`. bos_token_id: `<sop>`. eos_token_id: `<eop>`.
        initializer_range: standard deviation of freshly drawn weights.
        quantization_bit: 8 or 4 in the packed releases (`chatglm-6b-int8`, `-int4`): how the linear layers of the
            blocks are stored; 0 for floating point.
        quantization_embeddings: the embedding and the head are packed, too.

    Raises:
        ValueError: the configuration is one of a later generation, the head size does not fit, or no such bits.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    auto_map: ClassVar[dict[str, str]] = {}  # no code of a checkpoint's own; libraries read it of any configuration
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    quantization_bit: int = 0
    quantization_embeddings: bool = False
    mask_token_id: int = 130000
    gmask_token_id: int = 130001
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return a `ChatGLMConfig`, or that of `Glm` for the later generations, which say `chatglm` as well."""
        if any(key in config_dict for key in ORIGINAL_KEYS):
            # Not before they are asked for: transformers' glm imports the auto modules while it is itself imported.
            from glmtune.models.glm import modeling_glm, tokenization_glm  # noqa: F401  they register
            from glmtune.models.glm.configuration_glm import OriginalGlmConfig, translate_config

            return OriginalGlmConfig.from_dict(translate_config(config_dict), **kwargs)
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        later = [key for key in ORIGINAL_KEYS if key in kwargs]
        if later:
            raise ValueError(
                f"This config.json says model_type 'chatglm', but {', '.join(later)} belong(s) to ChatGLM2-6B or "
                "later, another architecture. This class runs ChatGLM-6B only."
            )
        rotary_rows = 2 if self.position_encoding_2d else 1
        if self.hidden_size % (2 * rotary_rows * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of {2 * rotary_rows} * num_attention_heads="
                f"{2 * rotary_rows * self.num_attention_heads}, so that each head splits into rotary pairs."
            )
        if self.quantization_bit not in (0, 4, 8):
            raise ValueError(
                f"quantization_bit={self.quantization_bit}: packed checkpoints have 8 or 4 bits (0: none)."
            )
        importlib.import_module(f"{__package__}.modeling_chatglm")  # registers, now that someone may ask for it

        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_attention_heads


AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)

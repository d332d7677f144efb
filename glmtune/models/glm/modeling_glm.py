"""Weights of ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B under their original names, read into transformers' `Glm`.

Names are mapped and fused matrices split while they are read, one weight at a time; nothing is written to disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
)
from transformers.models.glm.configuration_glm import GlmConfig
from transformers.models.glm.modeling_glm import (
    GlmForCausalLM,
    GlmForSequenceClassification,
    GlmForTokenClassification,
    GlmModel,
)

from glmtune.models.checkpoint import lazy_weights, local_folder
from glmtune.models.glm.configuration_glm import OriginalGlmConfig

OUTSIDE = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
# Computed, not learned: the original writes its rotary frequencies, rounded, and never reads them.
UNUSED = "transformer.rotary_pos_emb.inv_freq"
LAYERS, OUR_LAYERS = "transformer.encoder.layers.", "model.layers."
IN_LAYERS = {
    "self_attention.dense.": "self_attn.o_proj.",
    "mlp.dense_h_to_4h.": "mlp.gate_up_proj.",
    "mlp.dense_4h_to_h.": "mlp.down_proj.",
}
FUSED = "self_attention.query_key_value."


@dataclass(frozen=True)
class Rows:
    """Some rows of a weight that is yet to be read."""

    whole: Any
    rows: slice

    def __getitem__(self, index: Any) -> Tensor:
        """The rows; `index` is `...`, as transformers reads weights."""
        part: Tensor = self.whole[self.rows]
        return part


def rename_weights(weights: Mapping[str, Any], config: GlmConfig) -> dict[str, Any]:
    """Return original weights, read or not, under the names of `GlmForCausalLM`; other names stay."""
    return {ours: weight for name, whole in weights.items() for ours, weight in rename_weight(name, whole, config)}


def rename_weight(name: str, weight: Any, config: GlmConfig) -> Iterator[tuple[str, Any]]:
    """Yield what an original weight is in `GlmForCausalLM`: one weight, three of a fused one, none of an unused one."""
    if name == UNUSED:
        return
    if not name.startswith(LAYERS):
        yield OUTSIDE.get(name, name), weight
        return
    ours = name.replace(LAYERS, OUR_LAYERS)
    if FUSED not in ours:
        for theirs, new in IN_LAYERS.items():
            ours = ours.replace(theirs, new)
        yield ours, weight
        return
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads * head_dim
    keys = (config.num_key_value_heads or config.num_attention_heads) * head_dim
    bounds = {"q_proj": (0, queries), "k_proj": (queries, queries + keys), "v_proj": (queries + keys, None)}
    for part, (first, last) in bounds.items():
        yield ours.replace(FUSED, f"self_attn.{part}."), Rows(weight, slice(first, last))


class OriginalLayout:
    """The way from an original checkpoint to a plain class of transformers, which is what loading gives.

    Attributes:
        plain: the class.
    """

    config_class = OriginalGlmConfig
    plain: ClassVar[Any]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | None,
        *args: Any,
        config: OriginalGlmConfig,
        state_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint directory, or a hub name, of the original layout; or weights under their original names.

        Raises:
            ValueError: the files hold no weights.
        """
        path = None if pretrained_model_name_or_path is None else str(pretrained_model_name_or_path)
        folder = None if path is None else local_folder(path, revision=kwargs.get("revision"))
        if folder is not None:
            state_dict = lazy_weights(folder, mapped="quantization_config" not in kwargs)
        weights = rename_weights(state_dict or {}, config)
        loaded = cls.plain.from_pretrained(None, *args, config=as_plain(config), state_dict=weights, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if folder is not None:
            model.name_or_path = model.config.name_or_path = path
        is_told = "generation_config" in kwargs
        if (
            folder is not None
            and not is_told
            and model.can_generate()
            and (folder / "generation_config.json").is_file()
        ):
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return loaded

    @classmethod
    def _from_config(cls, config: OriginalGlmConfig, **kwargs: Any) -> Any:
        """Return a fresh model."""
        return cls.plain._from_config(as_plain(config), **kwargs)


def as_plain(config: OriginalGlmConfig) -> GlmConfig:
    """Return the same as transformers' own class."""
    return GlmConfig.from_dict(config.to_dict())


class OriginalGlmModel(OriginalLayout, GlmModel):  # type: ignore[misc]
    """`GlmModel` of an original checkpoint."""

    plain = GlmModel


class OriginalGlmForCausalLM(OriginalLayout, GlmForCausalLM):  # type: ignore[misc]
    """`GlmForCausalLM` of an original checkpoint."""

    plain = GlmForCausalLM


class OriginalGlmForSequenceClassification(OriginalLayout, GlmForSequenceClassification):  # type: ignore[misc]
    """`GlmForSequenceClassification` of an original checkpoint, whose scores are fresh."""

    plain = GlmForSequenceClassification


class OriginalGlmForTokenClassification(OriginalLayout, GlmForTokenClassification):  # type: ignore[misc]
    """`GlmForTokenClassification` of an original checkpoint, whose scores are fresh."""

    plain = GlmForTokenClassification


AutoModel.register(OriginalGlmConfig, OriginalGlmModel, exist_ok=True)
AutoModelForCausalLM.register(OriginalGlmConfig, OriginalGlmForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(OriginalGlmConfig, OriginalGlmForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(OriginalGlmConfig, OriginalGlmForTokenClassification, exist_ok=True)

"""ChatGLM-6B as an ordinary transformers model.

ChatGLM-6B is a prefix language model (GLM, https://arxiv.org/abs/2103.10360; GLM-130B, https://arxiv.org/abs/2210.02414):
the prompt up to `[gMASK]` is read in both directions, the answer from `<sop>` on is written from left to right.

              context (bidirectional)      answer (causal)
    ids       q    q    q    [gMASK]       <sop>  a    a    <eop>
    row 0     0    1    2    3             3      3    3    3         stuck at [gMASK]
    row 1     0    0    0    0             1      2    3    4         place in the answer

Masks and both rows of positions are derived here, from `input_ids` and an ordinary 2-D padding mask; nobody else needs
to know them. Parameter names are those of the original checkpoints. "Quirk n" is an observed behaviour of the original
code that the tests hold this file to; see `docs/chatglm.md`.

Letters in shapes: B batch, T tokens of this call, S tokens seen so far (cache and call), H heads, D head size,
C hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.chatglm.layout_chatglm import (
    IN_PARTS,
    PromptLayout,
    check_learned,
    check_whole,
    keep_layout,
    kept_layout,
    sequences_of,
)
from glmtune.models.growing_cache import make_room
from glmtune.models.quantization import PackedEmbedding, PackedLayer, PackedLinear

# DeepNorm factor of the residual branch (https://arxiv.org/abs/2203.00555). The original never passes the number of
# layers to its blocks, so the factor is that of 28 layers at any depth (quirk 1).
RESIDUAL_SCALE = math.sqrt(2 * 28)
ROPE_BASE = 10000.0
# What of `generate` takes a prompt to pieces, and why that cannot be.
WHOLE_PROMPTS = {
    "prefill_chunk_size": "a chunk of a prompt has no <sop>, up to which all of it is to be seen. Leave it out.",
    "token_healing": "a prompt ends with <sop>, behind which the answer begins, so that no token of it is cut off. "
    "Leave it out.",
    "guidance_scale": "the answer without guidance needs a prompt of its own. Pass negative_prompt_ids, encoded by the "
    "tokenizer.",
}
# Of the largest number of a row of embeddings or values: by less than this, products in batches of other sizes differ.
NEAR = 0.02


@dataclass(frozen=True)
class Placement:
    """Where the tokens of a call stand, and what they may see.

    Attributes:
        position_ids: (B, 2, T), or (B, T) in one-row models.
        context: (B, S) bool, True before `<sop>`, where one sees in both directions; None where nothing is added to
            what goes before a token, as after a prompt.
        sequences: (B, T) number of the sequence of packed rows that each token belongs to; None where rows are one.
        layout: of prompts that a cache is about to hold.
    """

    position_ids: Tensor
    context: Tensor | None = None
    sequences: Tensor | None = None
    layout: PromptLayout | None = None


def linear(config: ChatGLMConfig, inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer of a block, stored as the checkpoint has it."""
    if config.quantization_bit:
        return PackedLinear(inputs, outputs, bits=config.quantization_bit)
    return nn.Linear(inputs, outputs)


def rotary_tables(position_ids: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of rotary embedding (https://arxiv.org/abs/2104.09864), half the head a position row.

    The inverse frequencies are rounded to fp16 in every precision; in fp16 the angle is rounded as well (quirk 2).

    Args:
        position_ids: (B, 2, T) or (B, T).
        head_dim: size of a head; each row of positions rotates `head_dim / rows` of it.
        dtype: of the returned tables.

    Returns:
        cos, sin: (B, 1, T, rows, head_dim / rows / 2), one entry a rotated pair.
    """
    if position_ids.dim() == 2:
        position_ids = position_ids[:, None]
    rotary_dim = head_dim // position_ids.shape[1]
    exponents = torch.arange(0, rotary_dim, 2, device=position_ids.device).float() / rotary_dim
    inv_freq = (1.0 / ROPE_BASE**exponents).half()
    angle_dtype = torch.float16 if dtype == torch.float16 else torch.float32
    angles = position_ids.transpose(1, 2)[:, None, :, :, None].to(angle_dtype) * inv_freq.to(angle_dtype)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys (B, H, T, D): pairs are (i, i + n) within each row's share of the head (quirk 3)."""
    first, second = states.unflatten(-1, (cos.shape[-2], 2, cos.shape[-1])).unbind(-2)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2).flatten(-3)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute plain attention, and return its weights as well: (B, T, H, D) and (B, H, T, S); softmax in fp32."""
    scores = (query * scaling) @ key.transpose(2, 3)  # (B, H, T, S); scaled first, to stay inside fp16
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class ChatGLMAttention(nn.Module):
    """Self-attention with rotary positions; query, key and value of one head lie side by side (quirk 3).

    The original divides the scores by the layer number and multiplies them back in fp32 to stay inside fp16. Kernels
    accumulate in fp32, and eager attention scales the query first, so the detour is not needed (quirk 4).
    """

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.query_key_value = linear(config, config.hidden_size, 3 * config.hidden_size)
        self.dense = linear(config, config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, C) -> (B, T, C) and, from eager attention only, the weights (B, H, T, S)."""
        qkv = self.query_key_value(hidden_states).unflatten(-1, (-1, 3 * self.head_dim))  # (B, T, H, 3D)
        query, key, value = qkv.transpose(1, 2).chunk(3, dim=-1)  # (B, H, T, D) each
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, H, S, D)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        context, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.dense(context.flatten(2)), weights


class ChatGLMMLP(nn.Module):
    """Two linear layers around a tanh-approximated GELU (quirk 4). (B, T, C) -> (B, T, C)."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = linear(config, config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = linear(config, config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dense_4h_to_h(nn.functional.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))


class ChatGLMBlock(GradientCheckpointingLayer):
    """One layer. The residual is the *normalised* input, scaled: x' = LN(x) * a + f(LN(x)), twice (quirk 1)."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Map (B, T, C) -> (B, T, C); `kwargs` are those of `ChatGLMAttention.forward`."""
        normed = self.input_layernorm(hidden_states)
        # Not torch.add(..., alpha=RESIDUAL_SCALE), which rounds the factor to bf16 on CPUs.
        hidden_states = self.attention(normed, **kwargs)[0] + normed * RESIDUAL_SCALE
        normed = self.post_attention_layernorm(hidden_states)
        return self.mlp(normed) + normed * RESIDUAL_SCALE


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What `from_pretrained` and friends need to know of both classes below."""

    config: ChatGLMConfig
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    # The tables are computed from their definition; what checkpoints store of them was never read (quirk 2).
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]
    _can_record_outputs = {"hidden_states": ChatGLMBlock, "attentions": ChatGLMAttention}

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        # The scales of the original packed layers keep their fp16 digits in every precision; other packed layers have
        # scales of groups, in the precision that torch's kernels read.
        plan: dict[str, torch.dtype] = super()._get_dtype_plan(dtype)
        return {**plan, "weight_scale": torch.float32} if self.config.quantization_bit else plan

    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, PackedLayer):  # there are no fresh packed weights
            super()._init_weights(module)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embedding, blocks and final LayerNorm; the owner of masks and positions."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings: nn.Embedding
        if config.quantization_embeddings:
            self.word_embeddings = PackedEmbedding(config.vocab_size, config.hidden_size, config.quantization_bit)
        else:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ChatGLMBlock(config, i) for i in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.prefix_length = 0  # columns that a learned prefix took before the latest prompts
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = cast(nn.Embedding, value)

    def place_inputs(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
        inputs_embeds: Tensor,
    ) -> Placement:
        """Find where the tokens of a call stand. Arguments as for `forward`, of which there are four kinds.

        Packed rows, whose places are in `position_ids`; a prompt, or tokens that follow one; the same with positions
        that are given; and positions with a 4-D mask, which leave nothing to derive. Without `input_ids`, special
        tokens are known by their embeddings.

        Raises:
            ValueError: no special tokens to derive the prompt from, or positions of another shape.
        """
        two_rows = self.config.position_encoding_2d
        mask_is_ready = attention_mask is not None and attention_mask.dim() == 4
        is_alone = attention_mask is None and past_key_values is None and two_rows
        if is_alone and input_ids is not None and position_ids is not None and position_ids.dim() == 2:
            return self.place_packed(input_ids, position_ids)
        if position_ids is not None and position_ids.dim() != (3 if two_rows else 2):
            raise ValueError(
                f"position_ids of shape {tuple(position_ids.shape)} do not fit: ChatGLM-6B has two rows of positions, "
                "(B, 2, T). Leave position_ids out; they are derived from input_ids."
            )
        if position_ids is not None and mask_is_ready:
            return Placement(position_ids)
        ids = self.marks_in(inputs_embeds, self.word_embeddings) if input_ids is None else input_ids
        try:
            placement = self.place_prompt(ids, None if mask_is_ready else attention_mask, past_key_values)
        except ValueError as error:
            if input_ids is not None:
                raise
            raise ValueError(
                "ChatGLM-6B derives positions and masks from [gMASK] (or [MASK]) and <sop>, and no row of "
                "inputs_embeds is what get_input_embeddings() gives for them. Embed the whole prompt with its special "
                "tokens, as they are, or pass input_ids beside inputs_embeds."
            ) from error
        return placement if position_ids is None else replace(placement, position_ids=position_ids)

    def place_packed(self, input_ids: Tensor, places: Tensor) -> Placement:
        """Find where the tokens (B, T) of packed rows stand, by their places (B, T) in their own sequences."""
        layout = PromptLayout.find_packed(input_ids, places, self.config)
        position_ids = layout.positions(places, two_rows=True)
        return Placement(position_ids, places < layout.bos_position, sequences_of(places))

    def place_prompt(
        self, input_ids: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None
    ) -> Placement:
        """Find where the tokens of a prompt stand, or those that follow one.

        Args:
            input_ids: (B, T). A prompt with its answer so far, or the tokens that follow what the cache holds.
            attention_mask: (B, S), 1 for real tokens, padding on either side; None for no padding.
            past_key_values: None, empty, filled by earlier calls, or filled by peft with a learned prefix. A prefix
                takes columns but no positions, and everybody sees it.
        """
        past_length = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        seen = past_length + input_ids.shape[1]
        if attention_mask is None:
            real = input_ids.new_ones((input_ids.shape[0], seen))
        else:
            real = attention_mask[:, :seen].long()
        layout = None
        if past_key_values is not None and past_length:
            layout = self.layout_of(past_key_values, input_ids, real, past_length)
        two_rows = self.config.position_encoding_2d
        if layout is not None:
            places = real[:, layout.prefix_length :].cumsum(-1)[:, -input_ids.shape[1] :] - 1
            check_whole(past_key_values, places < layout.bos_position)
            return Placement(layout.positions(places, two_rows))

        places = real[:, past_length:].cumsum(-1) - 1  # left padding stays at -1
        layout = PromptLayout.find(
            input_ids.masked_fill(real[:, past_length:] == 0, -1), places, past_length, self.config
        )
        self.prefix_length = past_length
        context = nn.functional.pad(places < layout.bos_position, (past_length, 0), value=True)
        return Placement(layout.positions(places, two_rows), context, layout=layout)

    def layout_of(self, cache: Cache, input_ids: Tensor, real: Tensor, past_length: int) -> PromptLayout | None:
        """Return the layout of the prompts that a cache holds; None where it holds a prefix, and they are to come.

        Args:
            cache: holds `past_length` columns.
            input_ids: (B, T) of this call.
            real: (B, S) 1 for real tokens.
            past_length: columns of the cache.

        Raises:
            ValueError: it was made of tensors which are none of this model's.
        """
        layout = kept_layout(cache)
        bos: Any = self.config.bos_token_id
        if layout is not None or torch.compiler.is_compiling() or input_ids.eq(bos).any(-1).all():
            return layout
        # What the first layer makes of a token depends on nothing else, but for the keys, which are rotated.
        values = cast(Any, cache.layers[0]).values[:, :, :past_length]  # (B, H, S, D)
        held = self.marks_in(values.transpose(1, 2).flatten(2), self.first_values)
        start = self.prefix_length
        places = real[:, start:past_length].cumsum(-1) - 1
        try:
            found = held[:, start:].masked_fill(real[:, start:past_length] == 0, -1)
            layout = PromptLayout.find(found, places, start, self.config)
        except ValueError as error:
            raise ValueError(
                f"past_key_values hold {past_length} columns that are no whole prompt of this model, and input_ids are "
                f"none. {IN_PARTS}"
            ) from error
        keep_layout(cache, layout)
        return layout

    def first_values(self, token_ids: Tensor) -> Tensor:
        """Return the values (N, C) of the first layer of tokens (N,)."""
        first = cast(ChatGLMBlock, self.layers[0])
        qkv = first.attention.query_key_value(first.input_layernorm(self.word_embeddings(token_ids)))
        values: Tensor = qkv.unflatten(-1, (-1, 3, self.config.head_dim))[:, :, 2].flatten(1)
        return values

    def marks_in(self, rows: Tensor, known: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (B, T): the id of `[gMASK]`, `[MASK]` or `<sop>` where a row of numbers is what one gives, else -1.

        Args:
            rows: (B, T, C).
            known: (N,) token ids -> (N, C), their rows.
        """
        marks: list[Any] = [self.config.gmask_token_id, self.config.mask_token_id, self.config.bos_token_id]
        found = rows.new_full(rows.shape[:2], -1, dtype=torch.long)
        for token_id, row in zip(marks, known(torch.tensor(marks, device=self.device)), strict=True):
            row = row.to(rows.device)
            is_near = (rows - row).abs().amax(-1) <= NEAR * row.abs().amax()
            found = found.masked_fill(is_near, token_id)
        return found.to(self.device)

    def forward_mask(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        placement: Placement,
    ) -> Any:
        """Return the mask for the attention implementation at hand: causal, or bidirectional within the context.

        Nothing is seen of another of the sequences of packed rows.
        """
        context, sequences = placement.context, placement.sequences
        kind, is_ready = self.config._attn_implementation, attention_mask is not None and attention_mask.dim() != 2
        is_special = context is not None or sequences is not None
        if is_special and kind in ("sdpa", "eager") and not is_ready and not torch.compiler.is_compiling():
            # The library asks functions for one entry at a time, vectorised, which takes longer than a small model.
            seen = seen_by(inputs_embeds.shape[1], attention_mask, past_key_values, placement)
            if kind == "sdpa":
                return seen
            smallest = torch.finfo(inputs_embeds.dtype).min
            return torch.zeros_like(seen, dtype=inputs_embeds.dtype).masked_fill(~seen, smallest)
        overlay = separate = None
        if sequences is not None:

            def separate(batch_idx: Tensor, head_idx: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
                return sequences[batch_idx, q_idx] == sequences[batch_idx, kv_idx]

        if context is not None:
            kv_length = context.shape[1]
            if past_key_values is not None:
                kv_length = past_key_values.get_mask_sizes(inputs_embeds.shape[1], 0)[0]
            columns = nn.functional.pad(context, (0, kv_length - context.shape[1]), value=False)

            def overlay(batch_idx: Tensor, head_idx: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
                return columns[batch_idx, kv_idx]

        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            or_mask_function=overlay,
            and_mask_function=separate,
        )

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the blocks.

        Args:
            input_ids: (B, T). Needed for masks and positions beside `inputs_embeds` that do not hold the embeddings of
                the special tokens, unless `position_ids` and a 4-D mask are given.
            attention_mask: (B, S) with 1 for real tokens; or a ready-made (B, 1, T, S) mask, True where one may look.
            position_ids: leave it out. If given, (B, 2, T), or (B, T) in one-row models. In two-row models (B, T)
                without an `attention_mask` and a cache is packing: places of the tokens in their own sequences, each of
                which begins at 0 and sees nothing of the others.
            past_key_values: a `Cache`; made here if `use_cache`.
            inputs_embeds: (B, T, C) instead of the embeddings of `input_ids`.
            use_cache: return a cache, so that the next call needs only the next token.

        Raises:
            ValueError: no special tokens to derive the prompt from, or positions of another shape.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("ChatGLMModel needs input_ids, or inputs_embeds with position_ids and a 4-D mask.")
            inputs_embeds = self.word_embeddings(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None:
            make_room(past_key_values)

        placement = self.place_inputs(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        mask = self.forward_mask(inputs_embeds, attention_mask, past_key_values, placement)

        hidden_states = inputs_embeds
        position_embeddings = rotary_tables(placement.position_ids, self.config.head_dim, hidden_states.dtype)
        for layer in self.layers[: self.config.num_layers]:  # fewer while a draft is decoded (`assistant_early_exit`)
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        if past_key_values is not None and past_key_values.layers and placement.layout is not None:
            keep_layout(past_key_values, placement.layout)
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_states), past_key_values=past_key_values
        )


class ChatGLMForCausalLM(ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM-6B with its output layer: the class that `AutoModelForCausalLM` gives for `model_type: chatglm`."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head: nn.Linear
        if config.quantization_embeddings:
            self.lm_head = PackedLinear(config.hidden_size, config.vocab_size, False, config.quantization_bit)
            self._tied_weights_keys = {
                f"lm_head.{name}": f"transformer.word_embeddings.{name}" for name in ("weight", "weight_scale")
            }
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie even where a checkpoint holds a head of its own: the embedding wins, as in the original (quirk 6)."""
        for key, source in self._tied_weights_keys.items():
            if self.config.tie_word_embeddings and source not in (missing_keys or ()):
                setattr(self.lm_head, key.rpartition(".")[2], self.get_parameter(source))
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute. Another `forward` looks at what is learned, too: trl's does not come to the one below."""
        if name == "forward" and isinstance(value, MethodType):
            value = MethodType(checking(value.__func__), value.__self__)
        super().__setattr__(name, value)

    def check_learned(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor | None:
        """See whether what is learned is not seen already, when something is learned. Arguments as for `forward`.

        Returns:
            `input_ids`, without what a cut has left of packed prompts.

        Raises:
            ValueError: it is.
        """
        if not self.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return input_ids
        if input_ids is not None:
            return check_learned(input_ids, attention_mask, position_ids, labels, self.config)
        if inputs_embeds is not None:  # as behind virtual tokens, of which peft's CPT learns some
            marks = self.transformer.marks_in(inputs_embeds, self.transformer.word_embeddings)
            if labels is not None:
                is_whole = (marks.eq(self.config.gmask_token_id) & labels.ne(-100)).any(-1, keepdim=True)
                labels = labels.masked_fill(~is_whole, -100)
            if marks.eq(cast(Any, self.config.bos_token_id)).any():
                check_learned(marks, attention_mask, position_ids, labels, self.config)
        return None

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Decode, as `GenerationMixin.generate` of the same arguments.

        Raises:
            ValueError: a way of decoding that takes a prompt to pieces, which is read as a whole here.
        """
        asked = kwargs.get("generation_config") or (args[1:2] or [None])[0] or self.generation_config
        for name, what in WHOLE_PROMPTS.items():
            value = kwargs.get(name, vars(asked).get(name))
            if value and not (name == "guidance_scale" and (value == 1 or "negative_prompt_ids" in kwargs)):
                raise ValueError(f"generate({name}={value}): {what} {IN_PARTS}")
        if self.training and self.is_gradient_checkpointing:  # for which layers put nothing into a cache
            kwargs["use_cache"] = False
        layers = self.config.num_layers
        try:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.config.num_layers = layers  # of which a draft that was broken off leaves but its own

    def prepare_inputs_for_generation(
        self, input_ids: Any, *args: Any, inputs_embeds: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the inputs of `forward`, to which positions and 4-D masks are left: it knows the prompt.

        Raises:
            ValueError: a cache that is given holds no whole prompt of these.
        """
        cache: Cache | None = kwargs.get("past_key_values")
        if kwargs.get("is_first_iteration") and cache is not None and (layout := kept_layout(cache)) is not None:
            held = int(cache.get_seq_length()) - layout.prefix_length
            begun = input_ids.eq(cast(Any, self.config.bos_token_id))
            if (begun.any(-1) & ~begun[:, :held].any(-1)).any():
                raise ValueError(
                    f"past_key_values hold {held} columns of shorter prompts than those of input_ids. {IN_PARTS} Leave "
                    "past_key_values out."
                )
        kwargs.pop("position_ids", None)
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, *args, inputs_embeds=inputs_embeds, **kwargs
        )
        embeds = inputs.get("inputs_embeds")
        if embeds is not None and input_ids is not None and input_ids.shape == embeds.shape[:2]:
            inputs["input_ids"] = input_ids  # which tell the layout where the embeddings do not
        return {**inputs, "attention_mask": kwargs.get("attention_mask")}

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse what the library decodes from paged caches, `generate_batch` among it.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Continuous batching (generate_batch) lets no token see what stands behind it, and ChatGLM-6B reads its "
            "prompts in both directions: the answers would be others. Use generate() on prompts that are padded on the "
            "left, or glmtune predict."
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits, and the loss where labels are given. Arguments as for `ChatGLMModel.forward`, and:

        Args:
            labels: (B, T), unshifted, -100 where nothing is learned. The loss is their mean, or their sum over
                `num_items_in_batch` as the Trainer passes it for a whole optimizer step.
            logits_to_keep: compute logits (B, logits_to_keep, V) of the last tokens only; 0 for all.

        Raises:
            ValueError: in training, what is to be learned stands where it is seen (`check_learned`).
        """
        input_ids = self.check_learned(input_ids, attention_mask, position_ids, inputs_embeds, labels)
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep or None, None)
        logits = self.lm_head(outputs.last_hidden_state[:, kept])  # (B, T, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def seen_by(length: int, attention_mask: Tensor | None, cache: Cache | None, placement: Placement) -> Tensor:
    """Return (B, 1, T, S) bool: what each token of a call may look at; all before `<sop>` see all before it.

    Args:
        length: T.
        attention_mask: (B, S) 1 for real tokens; None where all are.
        cache: holds what came before, and says how many columns there are.
        placement: of the tokens.
    """
    context, sequences = placement.context, placement.sequences
    columns, first = (length, 0) if cache is None else cache.get_mask_sizes(length, 0)
    past = 0 if cache is None else int(cache.get_seq_length())
    device = placement.position_ids.device
    place = torch.arange(first, first + columns, device=device)
    seen = (place <= torch.arange(past, past + length, device=device)[:, None])[None]  # (1, T, S)
    if context is not None:
        seen = seen | nn.functional.pad(context, (0, columns - context.shape[1]), value=False)[:, None]
    if sequences is not None:
        seen = seen & (sequences[:, :, None] == sequences[:, None])
    if attention_mask is not None:
        real = nn.functional.pad(attention_mask.bool(), (0, max(0, columns - attention_mask.shape[1])), value=False)
        seen = seen & real[:, None, :columns]
    return seen[:, None]


def checking(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward pass of a model that first looks at what is learned."""

    @wraps(forward)
    def checked(model: ChatGLMForCausalLM, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False)) | kwargs
        looked_at = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels")
        input_ids = model.check_learned(*(named.get(name) for name in looked_at))
        if args:
            return forward(model, input_ids, *args[1:], **kwargs)
        return forward(model, **{**kwargs, "input_ids": input_ids})

    return checked


class ChatGLMForSequenceClassification(GenericForSequenceClassification, ChatGLMPreTrainedModel):  # type: ignore[misc]
    """ChatGLM-6B with a score for each class at the last real token of a row, as reward models have it."""

    base_model_prefix = "transformer"
    transformer: ChatGLMModel

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return scores (B, classes), and the loss where labels are given. Arguments as for `ChatGLMModel.forward`."""
        if input_ids is None and inputs_embeds is not None and attention_mask is not None and attention_mask.dim() == 2:
            # The library knows padding by its id, and embeddings have none, as behind virtual tokens.
            marks = self.transformer.marks_in(inputs_embeds, self.transformer.word_embeddings)
            input_ids = marks.masked_fill(attention_mask == 0, cast(Any, self.config.pad_token_id))
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **kwargs)


class ChatGLMForTokenClassification(GenericForTokenClassification, ChatGLMPreTrainedModel):  # type: ignore[misc]
    """ChatGLM-6B with a score for each class at each token."""

    base_model_prefix = "transformer"


AutoModel.register(ChatGLMConfig, ChatGLMModel, exist_ok=True)
AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(ChatGLMConfig, ChatGLMForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(ChatGLMConfig, ChatGLMForTokenClassification, exist_ok=True)

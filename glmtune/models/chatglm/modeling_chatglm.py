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
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.growing_cache import make_room
from glmtune.models.quantization import PackedEmbedding, PackedLayer, PackedLinear

# DeepNorm factor of the residual branch (https://arxiv.org/abs/2203.00555). The original never passes the number of
# layers to its blocks, so the factor is that of 28 layers at any depth (quirk 1).
RESIDUAL_SCALE = math.sqrt(2 * 28)
ROPE_BASE = 10000.0
# Where `PromptLayout` lives on a cache, so that a call with one token knows the prompt that came before.
LAYOUT_ATTRIBUTE = "chatglm_prompt_layout"


@dataclass(frozen=True)
class PromptLayout:
    """Where the prompt of each row ends: all that positions and masks depend on.

    In packed rows, which hold several sequences, each token has the layout of its own: (B, T) in place of (B, 1).

    Attributes:
        mask_position: (B, 1) row-0 position of `[gMASK]`, or of `[MASK]` where the row has no `[gMASK]`.
        bos_position: (B, 1) row-0 position that `<sop>` would have if positions went on counting.
        uses_gmask: (B, 1) bool, True where the row has a `[gMASK]`.
        prefix_length: columns of the cache that a learned prefix takes.
    """

    mask_position: Tensor
    bos_position: Tensor
    uses_gmask: Tensor
    prefix_length: int

    @classmethod
    def find(cls, input_ids: Tensor, places: Tensor, prefix_length: int, config: ChatGLMConfig) -> PromptLayout:
        """Read the layout off a prompt.

        Args:
            input_ids: (B, T).
            places: (B, T) index of each token among the real (unpadded) tokens of its row; negative for left padding.
            prefix_length: columns of the cache before this prompt.
            config: for the special token ids.

        Raises:
            ValueError: a row lacks `<sop>`, or both `[gMASK]` and `[MASK]` (quirk 5).
        """

        def first(token_id: Any) -> tuple[Tensor, Tensor]:
            hits = input_ids.eq(token_id)
            return hits.any(-1, keepdim=True), places.gather(1, hits.int().argmax(-1, keepdim=True))

        has_bos, bos_position = first(config.bos_token_id)
        has_gmask, gmask_position = first(config.gmask_token_id)
        has_mask, mask_position = first(config.mask_token_id)
        whole = has_bos & (has_gmask | has_mask)
        if not whole.all():
            row = int((~whole).squeeze(-1).int().argmax())
            raise ValueError(
                f"Row {row} of input_ids is not a ChatGLM-6B prompt: it needs [gMASK] (id {config.gmask_token_id}) or "
                f"[MASK] (id {config.mask_token_id}), then <sop> (id {config.bos_token_id}). Encode the text with this "
                "model's tokenizer and add_special_tokens=True, and check that tokenizer and model are of one release."
            )
        return cls(torch.where(has_gmask, gmask_position, mask_position), bos_position, has_gmask, prefix_length)

    @classmethod
    def find_packed(cls, input_ids: Tensor, places: Tensor, config: ChatGLMConfig) -> PromptLayout:
        """Read the layouts off packed rows.

        Args:
            input_ids: (B, T). What is padding has no layout, and needs none.
            places: (B, T) index of each token in its own sequence.
            config: for the special token ids.

        Raises:
            ValueError: a sequence lacks `<sop>`, or both `[gMASK]` and `[MASK]` (quirk 5).
        """
        sequences, nowhere = sequences_of(places), places.shape[1]

        def first(hits: Tensor) -> Tensor:
            start = places.new_full(places.shape, nowhere)
            return start.scatter_reduce(1, sequences, places.masked_fill(~hits, nowhere), "amin").gather(1, sequences)

        ids: list[Any] = [config.bos_token_id, config.gmask_token_id, config.mask_token_id]
        bos, gmask, mask = (first(input_ids.eq(token_id)) for token_id in ids)
        whole = (bos < nowhere) & (torch.minimum(gmask, mask) < nowhere)
        pad: Any = config.pad_token_id
        is_padding = first(input_ids.ne(pad)) == nowhere
        if not (whole | is_padding).all():
            row, column = (~(whole | is_padding)).nonzero()[0].tolist()
            raise ValueError(
                f"Row {row} of input_ids holds a sequence around token {column} that is not a ChatGLM-6B prompt: it "
                f"needs [gMASK] (id {config.gmask_token_id}), then <sop> (id {config.bos_token_id})."
            )
        return cls(torch.where(gmask < nowhere, gmask, mask), bos, gmask < nowhere, 0)

    def positions(self, places: Tensor, two_rows: bool) -> Tensor:
        """Return position ids of tokens at `places` (B, T): (B, 2, T), or (B, T) without the second row."""
        in_answer = places >= self.bos_position
        if two_rows:
            row = torch.where(in_answer, self.mask_position, places)
            block = places - self.bos_position + 1
            return torch.stack((row, block), dim=1).clamp(min=0)
        # One row: positions stay at [MASK], but go on counting after [gMASK]. The original forgets the latter when it
        # decodes with a cache (quirk 9).
        return torch.where(in_answer & ~self.uses_gmask, self.mask_position, places).clamp(min=0)


@dataclass(frozen=True)
class Placement:
    """Where the tokens of a call stand, and what they may see.

    Attributes:
        position_ids: (B, 2, T), or (B, T) in one-row models.
        context: (B, S) bool, True before `<sop>`, where one sees in both directions; None where nothing is added to
            what goes before a token, as after a prompt.
        sequences: (B, T) number of the sequence of packed rows that each token belongs to; None where rows are one.
    """

    position_ids: Tensor
    context: Tensor | None = None
    sequences: Tensor | None = None


def sequences_of(places: Tensor) -> Tensor:
    """Return (B, T): the number of the sequence of each token in packed rows; one begins at every place 0."""
    return places.eq(0).cumsum(-1) - 1


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
    # The scales of packed layers keep their fp16 digits in every precision.
    _keep_in_fp32_modules_strict = {"weight_scale"}

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
    ) -> Placement:
        """Find where the tokens of a call stand. Arguments as for `forward`, of which there are four kinds.

        Packed rows, whose places are in `position_ids`; a prompt, or tokens that follow one; the same with positions
        that are given; and positions with a 4-D mask, which leave nothing to derive.

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
        if input_ids is None:
            raise ValueError(
                "ChatGLM-6B derives positions and masks from the special tokens in input_ids, and inputs_embeds have "
                "none. Pass input_ids beside inputs_embeds (prompt tuning by peft cannot; use LoRA or prefix tuning)."
            )
        placement = self.place_prompt(input_ids, None if mask_is_ready else attention_mask, past_key_values)
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
        layout = vars(past_key_values).get(LAYOUT_ATTRIBUTE) if past_length else None
        two_rows = self.config.position_encoding_2d
        if layout is not None:
            places = real[:, layout.prefix_length :].cumsum(-1)[:, -input_ids.shape[1] :] - 1
            return Placement(layout.positions(places, two_rows))

        places = real[:, past_length:].cumsum(-1) - 1  # left padding stays at -1
        layout = PromptLayout.find(
            input_ids.masked_fill(real[:, past_length:] == 0, -1), places, past_length, self.config
        )
        if past_key_values is not None:
            setattr(past_key_values, LAYOUT_ATTRIBUTE, layout)
        context = nn.functional.pad(places < layout.bos_position, (past_length, 0), value=True)
        return Placement(layout.positions(places, two_rows), context)

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
            input_ids: (B, T). Needed even beside `inputs_embeds`, for masks and positions, unless `position_ids` and a
                4-D mask are given.
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

        placement = self.place_inputs(input_ids, attention_mask, position_ids, past_key_values)
        mask = self.forward_mask(inputs_embeds, attention_mask, past_key_values, placement)

        hidden_states = inputs_embeds
        position_embeddings = rotary_tables(placement.position_ids, self.config.head_dim, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
                **kwargs,
            )
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

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the inputs of `forward`, to which positions and 4-D masks are left: it knows the prompt."""
        kwargs.pop("position_ids", None)
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc]
        return {**inputs, "attention_mask": kwargs.get("attention_mask")}

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
        """
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


AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)

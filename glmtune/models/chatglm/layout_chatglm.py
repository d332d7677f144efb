"""Where the prompts of ChatGLM-6B end, kept beside a cache, and whether what is learned stands behind that.

Letters in shapes: B batch, T tokens of this call, S tokens seen so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as once
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, StaticLayer

from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.growing_cache import GrowingLayer

IN_PARTS = (
    "The prompt is read as a whole, in both directions: it cannot come in parts, and what truncation leaves of it must "
    "hold its end (raise max_length, or drop longer records)."
)

APART = (
    "The prompt has the label -100. Encode prompt and answer apart: as a pair, tokenizer(prompt, answer); or give trl "
    'conversational records, {"prompt": [{"role": "user", ...}], "completion": [{"role": "assistant", ...}]}, or '
    '{"messages": [...]} with assistant_only_loss=True.'
)


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
        if not torch.compiler.is_compiling() and not whole.all():  # a graph decides nothing by what is in it
            row = int((~whole).squeeze(-1).int().argmax())
            raise ValueError(
                f"Row {row} of input_ids is not a ChatGLM-6B prompt: it needs [gMASK] (id {config.gmask_token_id}) or "
                f"[MASK] (id {config.mask_token_id}), then <sop> (id {config.bos_token_id}). Encode the text with this "
                "model's tokenizer and add_special_tokens=True, and check that tokenizer and model are of one release. "
                f"{IN_PARTS}"
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
        if not torch.compiler.is_compiling() and not (whole | is_padding).all():
            row, column = (~(whole | is_padding)).nonzero()[0].tolist()
            raise ValueError(
                f"Row {row} of input_ids holds a sequence around token {column} that is not a ChatGLM-6B prompt: it "
                f"needs [gMASK] (id {config.gmask_token_id}), then <sop> (id {config.bos_token_id}). {IN_PARTS}"
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

    def rows(self, select: Callable[[Tensor], Tensor]) -> PromptLayout:
        """Return the layout of other rows, each of which is one of these."""
        mask_position, bos_position = select(self.mask_position), select(self.bos_position)
        return PromptLayout(mask_position, bos_position, select(self.uses_gmask), self.prefix_length)

    def put(self, row: int, other: PromptLayout, given: int) -> PromptLayout:
        """Return the layout in which one row is a row of another."""

        def placed(part: Tensor, new: Tensor) -> Tensor:
            return part.index_copy(0, torch.tensor([row], device=part.device), new[given : given + 1].to(part))

        return PromptLayout(
            placed(self.mask_position, other.mask_position),
            placed(self.bos_position, other.bos_position),
            placed(self.uses_gmask, other.uses_gmask),
            self.prefix_length,
        )


def sequences_of(places: Tensor) -> Tensor:
    """Return (B, T): the number of the sequence of each token in packed rows; one begins at every place 0."""
    return places.eq(0).cumsum(-1) - 1


class LaidOutLayer(CacheLayerMixin):
    """What a cache's first layer is besides: the holder of the layout, whose rows move with its own.

    The layout is an attribute of the layer and not of the cache, as it is the layers that a cache asks to reorder,
    repeat, select and forget rows.

    Attributes:
        layout: of the prompts; None before them.
        is_cut: tokens were taken back since the last call, and those of a prompt may be among them.
    """

    _layer_type = None  # no kind of layer that the library makes of a configuration
    layout: PromptLayout | None = None
    is_cut = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows in another order."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.move(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Take each row several times."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self.move(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take some of the rows, by number or by a mask."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.move(lambda rows: rows[indices.to(rows.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back."""
        super().crop(tokens_to_remove)  # type: ignore[misc]
        self.is_cut = self.is_cut or bool(tokens_to_remove)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.layout, self.is_cut = None, False

    def move(self, select: Callable[[Tensor], Tensor]) -> None:
        """Let the rows of the layout become others."""
        if self.layout is not None:
            self.layout = self.layout.rows(select)


class LaidOutDynamicLayer(LaidOutLayer, DynamicLayer):
    """`DynamicLayer` with a layout."""


class LaidOutGrowingLayer(LaidOutLayer, GrowingLayer):
    """`GrowingLayer` with a layout."""


class LaidOutStaticLayer(LaidOutLayer, StaticLayer):
    """`StaticLayer` with a layout."""


# In a graph, only kinds that have a name can be made.
LAID_OUT: dict[Any, Any] = {
    DynamicLayer: LaidOutDynamicLayer,
    GrowingLayer: LaidOutGrowingLayer,
    StaticLayer: LaidOutStaticLayer,
}


@once
def laid_out(kind: Any) -> type:
    """Return the kind of layer that also holds a layout."""
    return type(f"LaidOut{kind.__name__}", (LaidOutLayer, kind), {})


def keep_layout(cache: Cache, layout: PromptLayout) -> None:
    """Let a cache that holds a prompt know its layout, so that a call with the tokens that follow finds it."""
    first: Any = cache.layers[0]
    if not isinstance(first, LaidOutLayer):
        first = cache.layers[0] = with_layout(first)
    first.layout = layout


def with_layout(layer: Any) -> LaidOutLayer:
    """Return a layer of a cache as one that also holds a layout."""
    plain: Any = type(layer)
    kind = LAID_OUT[plain] if plain in LAID_OUT else laid_out(plain)
    held: LaidOutLayer = object.__new__(kind)  # and not `__class__`, which stays as it is in a graph
    for name, value in vars(layer).items():
        setattr(held, name, value)
    return held


def kept_layout(cache: Cache) -> PromptLayout | None:
    """Return the layout of the prompt that a cache holds; None where the cache was made of tensors alone."""
    first: Any = cache.layers[0] if cache.layers else None
    return first.layout if isinstance(first, LaidOutLayer) else None


def check_whole(cache: Any, in_prompt: Tensor) -> None:
    """See whether a cache from which tokens were taken back still holds its prompts.

    Args:
        cache: holds a layout.
        in_prompt: (B, T) bool, True where a token that follows what the cache holds is one of a prompt.

    Raises:
        ValueError: it does not: what is left of a prompt has seen what was taken back.
    """
    first: LaidOutLayer = cache.layers[0]
    if not first.is_cut or torch.compiler.is_compiling():
        return
    if in_prompt.any():
        row = int(in_prompt.any(-1).int().argmax())
        raise ValueError(
            f"past_key_values were cut within the prompt of row {row}, and input_ids go on with it. {IN_PARTS}"
        )
    first.is_cut = False


def check_learned(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    labels: Tensor | None,
    config: ChatGLMConfig,
) -> Tensor:
    """See whether what is learned stands behind `<sop>`: before it a token is predicted where it is seen already.

    Where prompt and answer are encoded as one text, the tokenizer's `[gMASK] <sop>` stands behind both, and training
    lowers a loss that no answer ever meets.

    Args:
        input_ids: (B, T).
        attention_mask: (B, T), 1 for real tokens, or of another shape.
        position_ids: (B, T) places in their own sequences of packed rows; of another shape where rows are one.
        labels: (B, T), -100 where nothing is learned; None where the loss is computed elsewhere, as for preferences:
            then each row needs an answer.
        config: for the special token ids.

    Returns:
        `input_ids`, in which a packed sequence is padding where it was cut before its `<sop>`, and nothing is learned.

    Raises:
        ValueError: it does not.
    """
    bos, gmask = cast(Any, config.bos_token_id), config.gmask_token_id
    is_packed = position_ids is not None and position_ids.dim() == 2
    is_real = torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask is not None and attention_mask.shape == input_ids.shape:
        is_real = attention_mask.bool()
    begun = input_ids.eq(bos) & is_real
    behind = begun.cumsum(-1)
    if position_ids is not None and is_packed:  # each sequence begins anew
        before = (behind - begun.long()).masked_fill(position_ids.ne(0), 0).cummax(-1).values
        behind = behind - before
    again = (begun & input_ids.roll(1, -1).eq(gmask) & behind.gt(1)).any(-1)  # alone, a model may have written it
    if again.any():
        raise ValueError(
            f"Row {int(again.int().argmax())} of input_ids holds [gMASK] <sop> twice: sequences that are packed need "
            f'position_ids, each from 0 on (in trl packing_strategy="bfd"), as but the first prompt is read in both '
            f"directions else. {APART}"
        )
    if labels is not None:
        early = (behind.eq(0) & labels.ne(-100)).sum(-1)
        if early.any():
            row = int(early.argmax())
            raise ValueError(
                f"Row {row} of labels has {int(early[row])} tokens before <sop>, which the model reads in both "
                f"directions: it sees what it is to predict, and learns nothing for answers. {APART}"
            )
        if position_ids is not None and is_packed:
            return input_ids.masked_fill(~in_whole_sequences(begun, position_ids), cast(Any, config.pad_token_id))
        return input_ids
    has_answer = (behind.gt(0) & ~begun & is_real).any(-1)
    if not has_answer.all():
        row = int((~has_answer).int().argmax())
        raise ValueError(
            f"Row {row} of input_ids ends with <sop>, behind which an answer stands: there is nothing to learn, or "
            f"what is to be learned stands before it, where the model sees it. {APART}"
        )
    return input_ids


def in_whole_sequences(begun: Tensor, places: Tensor) -> Tensor:
    """Return (B, T) bool: which tokens are of a sequence with a `<sop>`, where (B, T) `begun` says which are one."""
    sequences = sequences_of(places)
    holds = torch.zeros_like(begun, dtype=torch.int).scatter_reduce(1, sequences, begun.int(), "amax")
    return holds.gather(1, sequences).bool()

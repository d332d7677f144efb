"""A key-value cache whose rows come and go one by one, while the others are decoded.

Rows end in the same column, as in a batch that is padded on the left, so that masks, positions and windows are those
that every model knows. The columns of a learned prefix are the first ones.

              prefix   padding   prompt and answer      room
    row 0     P P      - - -     q q a a a a
    row 1     P P      -         q q q q q q a a
    row 2     P P      - - - - - (nobody: sees its newest token alone)

Letters in shapes: R rows, H heads, S columns, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from glmtune.models.chatglm.layout_chatglm import LaidOutLayer, keep_layout, kept_layout
from glmtune.models.growing_cache import GrowingLayer

BLOCK = 64  # columns by which a cache grows
PLAIN = {LaidOutLayer, GrowingLayer, DynamicSlidingWindowLayer, *DynamicLayer.__mro__}


class SlotLayer(DynamicLayer):
    """`keys` and `values` (R, H, S, D): the columns in use of longer tensors."""

    room: tuple[Tensor, Tensor]

    def __init__(self, like: DynamicLayer) -> None:
        """A layer without rows for keys and values like those of another."""
        super().__init__()
        assert like.keys is not None and like.values is not None
        self.room = like.keys[:0, :, :0], like.values[:0, :, :0]
        self.lazy_initialization(*self.room)
        self.use(0)

    def use(self, width: int) -> None:
        """Let the first columns be those in use."""
        self.keys, self.values = (part[:, :, :width] for part in self.room)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the next column (R, H, 1, D) of all rows; return the columns (R, H, S + 1, D) with it."""
        assert self.keys is not None
        width = self.keys.shape[2]
        for part, new in zip(self.room, (key_states, value_states), strict=True):
            part[:, :, width : width + 1] = new
        self.use(width + 1)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def put(self, slot: int, source: DynamicLayer, row: int, length: int, prefix: int) -> None:
        """Let a row be that of another cache: its last columns, and before all others its prefix."""
        assert self.keys is not None
        width = self.keys.shape[2]
        for part, given in zip(self.room, (source.keys, source.values), strict=True):
            assert given is not None
            held = min(length, given.shape[2])  # fewer, where no later token sees beyond a window
            part[slot, :, width - held : width] = given[row, :, given.shape[2] - held :]
            if given.shape[2] >= prefix + length:
                part[slot, :, :prefix] = given[row, :, :prefix]

    def rearrange(self, rows: Tensor, size: int, old: slice, prefix: int, width: int, room: int) -> None:
        """Keep some rows, and of their columns the prefix and those of `old`, which end at `width` from now on."""
        parts = []
        for part in self.room:
            kept = part.index_select(0, rows.to(part.device))
            moved = part.new_zeros((size, part.shape[1], room, part.shape[3]))  # what nobody sees must be finite
            if len(kept):
                moved[: len(kept), :, :prefix] = kept[:, :, :prefix]
                moved[: len(kept), :, width - (old.stop - old.start) : width] = kept[:, :, old]
            parts.append(moved)
        self.room = parts[0], parts[1]
        self.use(width)


class SlotCache(Cache):
    """A cache of `SlotLayer`s.

    Attributes:
        prefix: columns of a learned prefix, before all rows.
        lengths: tokens of each row, without the prefix; 0 of rows that are nobody's.
        width: columns in use.
        mask: (R, S) 1 where a row has a token, the prefix left out.
    """

    def __init__(self, like: Cache, prefix: int) -> None:
        """A cache without rows for a model that fills caches like this one.

        Raises:
            ValueError: it has layers of other kinds than keys and values.
        """
        plain = [layer for layer in like.layers if is_plain(layer)]
        if len(plain) < len(like.layers):
            raise ValueError("The cache has layers whose rows cannot come and go.")
        super().__init__(layers=[SlotLayer(layer) for layer in plain])
        self.prefix, self.width, self.room = prefix, prefix, prefix
        self.lengths: list[int] = []
        self.device = plain[0].device
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=self.device)

    @property
    def cache(self) -> SlotCache:
        """What a model is given: this itself."""
        return self

    @property
    def free(self) -> list[int]:
        """The rows that are nobody's."""
        return [slot for slot, length in enumerate(self.lengths) if not length]

    def reserve(self, count: int, longest: int) -> None:
        """Have so many free rows, and columns for a row of so many tokens."""
        missing = count - len(self.free)
        needed = max([longest, *self.lengths])
        if missing > 0 or self.prefix + needed > self.width:
            self.arrange([*range(len(self.lengths))], len(self.lengths) + max(0, missing), needed)

    def put(self, slot: int, source: Cache, row: int, length: int) -> None:
        """Let a free row be a row of another cache, with its last `length` tokens behind a prefix."""
        for layer, given in zip(self.layers, source.layers, strict=True):
            assert isinstance(layer, SlotLayer) and isinstance(given, DynamicLayer)
            layer.put(slot, given, row, length, self.prefix)
        self.lengths[slot] = length
        self.mask[slot, : self.width - self.prefix] = 0
        self.mask[slot, self.width - self.prefix - length : self.width - self.prefix] = 1
        if (layout := kept_layout(source)) is not None:
            held = kept_layout(self) or layout.rows(lambda part: part.new_zeros(len(self.lengths), 1))
            keep_layout(self, held.put(slot, layout, row))

    def remove(self, slot: int) -> None:
        """Let a row be nobody's."""
        self.lengths[slot] = 0
        self.mask[slot] = 0

    def settle(self) -> list[int] | None:
        """Make room for the next column, and close gaps where many rows or columns are nobody's.

        Returns:
            The rows of before that are still there, in their order; None where nothing has moved.
        """
        rows, needed = [slot for slot, length in enumerate(self.lengths) if length], max(self.lengths, default=0)
        idle = self.width - self.prefix - needed
        if self.width < self.room and idle <= max(BLOCK // 2, needed // 2) and 4 * len(rows) > 3 * len(self.lengths):
            return None
        self.arrange(rows, len(rows), needed)
        return rows

    def arrange(self, rows: Sequence[int], size: int, needed: int) -> None:
        """Have other rows, and columns for rows of so many tokens and a block more.

        Args:
            rows: those of now that stay, in their order; the others of `size` are free.
            size: number of rows.
            needed: tokens of the longest row.
        """
        longest = max((self.lengths[row] for row in rows), default=0)
        old, width = slice(self.width - longest, self.width), self.prefix + needed
        self.room = width + BLOCK
        index = torch.tensor([*rows], dtype=torch.long)
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            layer.rearrange(index, size, old, self.prefix, width, self.room)
        index = index.to(self.device)
        mask = self.mask.new_zeros(size, self.room - self.prefix)
        mask[: len(rows), needed - longest : needed] = self.mask[
            index, old.start - self.prefix : old.stop - self.prefix
        ]
        self.mask, self.width = mask, width
        self.lengths = [*(self.lengths[row] for row in rows), *[0] * (size - len(rows))]
        if (layout := kept_layout(self)) is not None:
            keep_layout(self, layout.rows(lambda part: resized(part, index, size)))

    def next_mask(self) -> Tensor:
        """Return (R, S + 1 - prefix) what the next token of each row sees, itself with it."""
        column = self.width - self.prefix
        self.mask[:, column] = 1
        return self.mask[:, : column + 1]

    def next_positions(self) -> Tensor:
        """Return (R, 1) where the next token of each row stands in it."""
        return torch.tensor(self.lengths, device=self.device)[:, None]

    def grow(self) -> None:
        """Note that a column was written."""
        self.width += 1
        for slot, length in enumerate(self.lengths):
            if length:
                self.lengths[slot] += 1
            else:
                self.mask[slot, self.width - self.prefix - 1] = 0


class SingleCache:
    """The cache of one row that is decoded alone, whose layers may be of any kind.

    Attributes:
        cache: what the model filled.
        length: tokens of the row.
    """

    def __init__(self, cache: Any, length: int, device: torch.device) -> None:
        """The cache of a row of so many tokens, behind a prefix or none."""
        self.cache, self.length, self.device = cache, length, device

    def settle(self) -> None:
        """Do nothing: the cache makes its own room."""

    def next_mask(self) -> Tensor:
        """Return (1, S + 1), as of `SlotCache`."""
        return torch.ones(1, self.length + 1, dtype=torch.long, device=self.device)

    def next_positions(self) -> Tensor:
        """Return (1, 1), as of `SlotCache`."""
        return torch.tensor([[self.length]], device=self.device)

    def grow(self) -> None:
        """Note that a token was written."""
        self.length += 1


def is_plain(layer: object) -> TypeGuard[DynamicLayer]:
    """Whether a layer holds keys and values of all tokens, or of all in a window, and nothing else."""
    kinds = type(layer).__mro__[1 if isinstance(layer, LaidOutLayer) else 0 :]
    return isinstance(layer, DynamicLayer) and set(kinds) <= PLAIN


def resized(part: Tensor, index: Tensor, size: int) -> Tensor:
    """Return (size, 1) some rows of (R, 1), and zeros."""
    new = part.new_zeros(size, 1)
    new[: len(index)] = part[index.to(part.device)]
    return new

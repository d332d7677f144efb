"""A key-value cache that makes room for many tokens at once, where transformers' moves everything for each token.

A token of ChatGLM-6B takes 448 KiB of cache: each of its heads has keys and values of its own. Joining them anew for
every token copies up to 0.9 GB a token, and leaves holes in the memory that no later, longer block fits into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

GROWTH = 8  # a full layer makes room for an eighth more


class GrowingLayer(DynamicLayer):
    """`DynamicLayer` with room to spare: `keys` and `values` (B, H, S, D) are the filled part of longer tensors."""

    rows: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, T, D); return all of them, (B, H, S + T, D)."""
        # What a gradient needs cannot be written into, and a graph cannot tell one tensor's memory from another's.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        length = past + key_states.shape[-2]
        assert self.keys is not None and self.values is not None
        keys, values = self.rows or (self.keys, self.values)
        self.rows = (
            append(keys, self.keys, key_states, past, length),
            append(values, self.values, value_states, past, length),
        )
        self.keys, self.values = (row[..., :length, :] for row in self.rows)
        return self.keys, self.values

    def reset(self) -> None:
        """Forget everything."""
        self.rows = None
        super().reset()


def append(row: Tensor, old: Tensor, new: Tensor, past: int, length: int) -> Tensor:
    """Return a tensor with room for `length` tokens that begins with `old` and `new`: `row` itself if it has the room.

    `old` need not be a part of `row` any more: rows may have been selected, repeated or cut since.
    """
    frozen = row.is_inference() and not torch.is_inference_mode_enabled()
    whole = (
        past
        and not frozen
        and row.data_ptr() == old.data_ptr()
        and row.shape[:2] == old.shape[:2]
        and row.shape[-2] >= length
    )
    if not whole:
        row = new.new_empty((*new.shape[:2], length + max(16, length // GROWTH), new.shape[-1]))
        if past:
            row[..., :past, :] = old
    row[..., past:length, :] = new
    return row


def make_room(cache: Cache) -> None:
    """Let the plain layers of a cache grow in this way from now on; what they hold stays. In a graph they cannot."""
    for layer in [] if cache.offloading or torch.compiler.is_compiling() else cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = GrowingLayer

"""Continuous batching: requests join while others are decoded, and leave one by one.

A prompt is read by itself, or with others of about its length, and then takes a slot of the cache that all rows share.
Each step gives every row its next token. (Orca, Yu et al. 2022, https://www.usenix.org/conference/osdi22)
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.generation.utils import ALL_CACHE_NAMES

from glmtune.inference.reading import AnswerReader
from glmtune.inference.rows import Row
from glmtune.inference.sampling import choose
from glmtune.methods import Model
from glmtune.models.slots import SingleCache, SlotCache, is_plain

PREFILL = 4096  # tokens of prompts that are read together, padding with them
LOOK_AHEAD = 4  # times as many rows as there are free slots are looked at for prompts of about one length:
ALIKE, NEARLY = 2, 16  # the longest has up to so many times the tokens of the shortest, and so many more
SHARE = 8  # this part of the slots is free before rows join where many wait


class Batch:
    """Rows that are decoded together, each as it would be alone.

    Attributes:
        waiting: rows that have no slot yet, in their order.
        rows: who has which slot.
    """

    def __init__(self, model: Model, reader: AnswerReader, slots: int, most_tokens: int | None = None):
        """An empty batch.

        Args:
            model: in evaluation mode.
            reader: of its answers.
            slots: rows at most; models whose caches hold more than keys and values, or windows behind a prefix, have
                one.
            most_tokens: that prompts and answers of all rows may come to; None: as many as they like. A row that has
                more is answered alone.
        """
        self.model, self.reader, self.most_tokens = model, reader, most_tokens
        self.base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.takes = inspect.signature(self.base.forward).parameters
        self.prefix = prefix_length(model)
        self.slots = slots if has_plain_cache(self.base, self.prefix) else 1
        self.waiting: deque[Row] = deque()
        self.rows: list[Row | None] = []
        self.cache: SlotCache | SingleCache | None = None
        self.cache_name = ALL_CACHE_NAMES[0]  # what the model calls it

    @property
    def running(self) -> list[Row]:
        """The rows that have slots."""
        return [row for row in self.rows if row is not None]

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits or is answered."""
        return not self.waiting and not self.running

    def add(self, row: Row) -> None:
        """Let a row wait for a slot."""
        self.waiting.append(row)

    def withdraw(self, row: Row) -> None:
        """Let a row wait no more, if it does."""
        with suppress(ValueError):
            self.waiting.remove(row)

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Go on by one token, and let rows join: one group, so that those who go on do not wait for all who come.

        Returns:
            The rows that have a new token; `has_ended` tells for which it is the last. Those whose prompts cannot be
            read have an `error` instead. Rows that are cancelled leave without a word.
        """
        self.leave()
        going = self.running
        if going:
            self.decode()
            self.leave()
        if group := self.take_group():
            self.admit(group)
        return [*going, *group]

    def admit(self, group: Sequence[Row]) -> None:
        """Let rows join, together or, where their prompts cannot be read so, each by itself: who cannot has an `error`.

        Who has a token already is not read again: all of his group have the error.
        """
        try:
            self.join(group)
        except Exception as error:
            if len(group) > 1 and not any(row.token_ids for row in group):
                for row in group:
                    self.admit([row])
                return
            for row in group:
                row.error = error

    def drop(self) -> list[Row]:
        """Forget the rows of a step that has failed, and return them; those that wait go on waiting."""
        dropped = self.running
        self.rows, self.cache = [], None
        return dropped

    def decode(self) -> None:
        """Give every row its next token."""
        cache = self.cache
        assert cache is not None
        if (kept := cache.settle()) is not None:
            self.rows = [self.rows[slot] for slot in kept]
        newest = [0 if row is None else row.token_ids[-1] for row in self.rows]
        tokens = torch.tensor(newest, device=self.base.device)[:, None]
        logits, _ = self.forward(tokens, cache.next_mask(), cache.next_positions(), cache.cache)
        cache.grow()
        choose(logits, self.rows)

    def take_group(self) -> list[Row]:
        """Take rows off those that wait: the first, and others whose prompts are about as long; none if it is no time.

        Where many wait, some slots are left to become free first: reading prompts costs a step, for one or for ten. Of
        thousands that wait, the first few alone are looked at.
        """
        while self.waiting and self.waiting[0].is_cancelled:
            self.waiting.popleft()
        running = self.running
        free = self.slots - len(running)
        if not self.waiting or free < min(len(self.waiting), max(1, self.slots // SHARE)):
            return []
        tokens = sum(row.most for row in running)
        first = self.waiting[0]
        if self.most_tokens is not None and running and tokens + first.most > self.most_tokens:
            return []  # nobody overtakes it, or it would wait for ever
        looked_at = [self.waiting.popleft() for _ in range(min(len(self.waiting), LOOK_AHEAD * free))]
        group: list[Row] = []
        shortest = longest = len(first.request.input_ids)
        for row in looked_at:
            length = len(row.request.input_ids)
            short, long = min(length, shortest), max(length, longest)
            is_alike = long <= ALIKE * short + NEARLY and (len(group) + 1) * long <= PREFILL
            has_room = self.most_tokens is None or tokens + row.most <= self.most_tokens
            if row is first or (len(group) < free and is_alike and has_room and not row.is_cancelled):
                group.append(row)
                shortest, longest, tokens = short, long, tokens + row.most
        self.waiting.extendleft(row for row in reversed(looked_at) if row not in group)
        return group

    def join(self, group: Sequence[Row]) -> None:
        """Read the prompts of rows, give each its first token, and a slot unless that was the last."""
        lengths = [len(row.request.input_ids) for row in group]
        width, pad = max(lengths), self.reader.tokenizer.pad_token_id or 0
        padded = [[pad] * (width - len(row.request.input_ids)) + [*row.request.input_ids] for row in group]
        mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths], device=self.base.device)
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
        tokens = torch.tensor(padded, device=self.base.device)
        logits, cache = self.forward(tokens, mask, positions)
        choose(logits, group)
        staying = [place for place, row in enumerate(group) if not row.has_ended]
        if self.slots == 1:
            self.rows, self.cache = [group[place] for place in staying], SingleCache(cache, width, self.base.device)
        elif staying:
            self.place(group, staying, cache, lengths)

    def place(self, group: Sequence[Row], staying: Sequence[int], cache: Cache, lengths: Sequence[int]) -> None:
        """Give rows, of those whose prompts a cache holds, their slots.

        Where that fails, some layers of the cache may have moved and others not: all who are in it have the error.
        """
        if not isinstance(self.cache, SlotCache) or not self.running:
            self.rows, self.cache = [], SlotCache(cache, self.prefix)
        try:
            self.cache.reserve(len(staying), max(lengths[place] for place in staying))
            self.rows += [None] * (len(self.cache.lengths) - len(self.rows))
            for slot, place in zip(self.cache.free, staying, strict=False):
                self.cache.put(slot, cache, place, lengths[place])
                self.rows[slot] = group[place]
        except Exception as error:
            for row in self.drop():
                row.error = error
            raise

    def leave(self) -> None:
        """Let those who have ended, or are not wanted any more, give their slots back."""
        for slot, row in enumerate(self.rows):
            if row is not None and (row.has_ended or row.is_cancelled):
                self.rows[slot] = None
                if isinstance(self.cache, SlotCache):
                    self.cache.remove(slot)

    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Return the scores (B, V) of the tokens that follow tokens (B, T), and the cache, as `generate` would."""
        more: dict[str, Any] = {} if cache is None else {self.cache_name: cache}
        if "position_ids" in self.takes:
            more["position_ids"] = positions
        if "logits_to_keep" in self.takes:
            more["logits_to_keep"] = 1
        prepare: Any = self.model.prepare_inputs_for_generation
        inputs = prepare(
            tokens,
            next_sequence_length=tokens.shape[1],
            attention_mask=mask,
            is_first_iteration=cache is None,
            use_cache=True,
            **more,
        )
        forward: Any = self.model.base_model if isinstance(self.model, PeftModel) else self.model
        outputs = forward(**inputs, return_dict=True)
        self.cache_name = next(name for name in ALL_CACHE_NAMES if outputs.get(name) is not None)
        return outputs.logits[:, -1], outputs[self.cache_name]


def has_plain_cache(model: Any, prefix: int) -> bool:
    """Whether a model keeps keys and values alone, whose rows can come and go.

    A window that moves over a prefix does so at another token of each row, so that their columns are not the same.
    """
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    slides = any(isinstance(layer, DynamicSlidingWindowLayer) for layer in layers)
    return not model._is_stateful and all(is_plain(layer) for layer in layers) and not (prefix and slides)


def prefix_length(model: Model) -> int:
    """Return how many columns of the cache a learned prefix takes."""
    config: Any = model.active_peft_config if isinstance(model, PeftModel) else None
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0

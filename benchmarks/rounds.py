"""Batches of transformers' `generate`, as glmtune decoded before rows came and went: what it is compared with.

Rows of a batch are padded on the left; when half of them have ended they leave, and the others are read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

FEW_ROWS = 8  # are not worth being read again


class Half(StoppingCriteria):
    """Ends a round with all rows, or with half of many."""

    def __init__(self, stops: Sequence[int], rooms: Sequence[int]) -> None:
        self.stops, self.rooms, self.length = torch.tensor(stops), torch.tensor(rooms), 0
        self.ended = torch.zeros(len(rooms), dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B,) bool: whether each row has ended, or the round."""
        self.length += 1
        self.ended |= torch.isin(input_ids[:, -1], self.stops) | (self.length >= self.rooms)
        if len(self.ended) <= FEW_ROWS:
            return self.ended
        return self.ended | (2 * self.ended.sum() >= len(self.ended))


def generation_config(stops: Sequence[int], pad: int, longest: int) -> GenerationConfig:
    """Greedy, up to a length, with the key-value cache."""
    return GenerationConfig(
        max_new_tokens=longest, eos_token_id=list(stops), pad_token_id=pad, use_cache=True, do_sample=False
    )


@torch.inference_mode()
def decode(
    model: Any, prompts: Sequence[Sequence[int]], stops: Sequence[int], pad: int, longest: int, size: int
) -> list:
    """The token ids of greedy answers, in batches of a size, the longest prompts first."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        while batch := [index for index in batch if not ended(answers[index], stops, longest[index])]:
            one_round(model, prompts, answers, batch, stops, pad, longest)
    return answers


def ended(answer: Sequence[int], stops: Sequence[int], longest: int) -> bool:
    """Whether nothing follows."""
    return len(answer) >= longest or (bool(answer) and answer[-1] in stops)


def one_round(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: list[list[int]],
    batch: Sequence[int],
    stops: Sequence[int],
    pad: int,
    longest: Sequence[int],
) -> None:
    """Go on with all rows until all of them have ended, or half of many."""
    rows = [[*prompts[index], *answers[index]] for index in batch]
    width = max(map(len, rows))
    input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    rooms = [longest[index] - len(answers[index]) for index in batch]
    config = generation_config(stops, pad, max(rooms))
    output = model.generate(
        input_ids=input_ids, attention_mask=mask, generation_config=config, stopping_criteria=[Half(stops, rooms)]
    )
    for index, new in zip(batch, output[:, width:].tolist(), strict=True):
        for token in new:
            if ended(answers[index], stops, longest[index]):
                break
            answers[index].append(token)

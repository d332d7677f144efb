"""Decoding of a batch with the key-value cache, in rounds of transformers' `generate`.

Answers differ in length. When half of the rows have ended they leave, and the others go on. They are read again rather
than cut out of the cache, of which models have many kinds; there are few rounds, so that it costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from glmtune.inference.completion import Completion, FinishReason, Request
from glmtune.inference.reading import AnswerReader
from glmtune.inference.sampling import TokenChoice, make_generator
from glmtune.methods import Model

FEW_ROWS = 8  # are not worth being read again


@dataclass
class Row:
    """A request while it is answered.

    Attributes:
        request: what is asked.
        listener: is told all tokens so far, after each; for streams.
        token_ids, logprobs: what the model wrote so far.
        has_ended: nothing follows.
        is_abandoned: set where nobody listens any more.
        generator: of what is sampled.
    """

    request: Request
    listener: Callable[[list[int], list[float]], None] | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    has_ended: bool = False
    is_abandoned: Event = field(default_factory=Event)
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        self.generator = make_generator(self.request)

    @property
    def is_cancelled(self) -> bool:
        """Whether its answer is not wanted any more."""
        return self.request.cancellation.is_set() or self.is_abandoned.is_set()

    @property
    def is_watched(self) -> bool:
        """Whether each of its tokens is looked at as it comes."""
        return bool(self.request.stop) or self.listener is not None

    @property
    def room(self) -> int:
        """How many tokens may follow."""
        return self.request.settings.longest - len(self.token_ids)

    def complete(self, reader: AnswerReader) -> Completion | None:
        """Return the answer; None for a request that was cancelled before its end."""
        request, ids = self.request, self.token_ids
        is_whole = bool(ids) and (ids[-1] in reader.stops or reader.is_stopped(ids, request.stop))
        reason: FinishReason = "stop" if is_whole else "length"
        if not is_whole and self.room > 0:
            return None
        logprobs = self.logprobs if request.logprobs else None
        return Completion(reader.read(ids, request.stop), ids, len(request.input_ids), reason, logprobs)


@torch.inference_mode()
def decode(model: Model, reader: AnswerReader, rows: Sequence[Row]) -> None:
    """Answer requests together, each as it would be answered alone."""
    rows = list(rows)
    while rows := [row for row in rows if not (row.has_ended or row.is_cancelled)]:
        decode_round(model, reader, rows)


def decode_round(model: Model, reader: AnswerReader, rows: Sequence[Row]) -> None:
    """Go on with all rows, padded on the left, until all of them have ended, or half of many."""
    prompts = [[*row.request.input_ids, *row.token_ids] for row in rows]
    width, pad = max(map(len, prompts)), reader.tokenizer.pad_token_id
    input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    requests = [row.request for row in rows]
    choice = TokenChoice(requests, [row.generator for row in rows], model.device)
    watch = Watch(rows, width, reader, choice)
    with unset_generation_config(model):
        output = model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=generation_config(reader, max(row.room for row in rows)),
            logits_processor=[choice] if choice.is_needed else [],
            stopping_criteria=[watch],
        )
    written = zip(rows, output[:, width:].tolist(), watch.lengths.tolist(), watch.ended.tolist(), strict=True)
    logprobs = torch.stack(choice.logprobs, dim=1).tolist() if choice.logprobs else [[]] * len(rows)
    for (row, token_ids, length, has_ended), found in zip(written, logprobs, strict=True):
        row.token_ids += token_ids[:length]
        row.logprobs += found[:length]
        row.has_ended = has_ended


class Watch(StoppingCriteria):
    """Tells which rows have ended, and ends the round with all of them, or with half of many.

    Args:
        rows: as they were when the round began.
        width: tokens of the prompts, with padding.
        reader: knows what ends an answer.
        choice: holds the log-probabilities.

    Attributes:
        ended: (B,) bool.
        lengths: (B,) how many tokens of this round are a row's own; padding follows.
    """

    def __init__(self, rows: Sequence[Row], width: int, reader: AnswerReader, choice: TokenChoice) -> None:
        self.rows, self.width, self.reader, self.choice = rows, width, reader, choice
        self.room = torch.tensor([row.room for row in rows], device=choice.device)
        self.stops = torch.tensor(reader.stops, device=choice.device)
        self.ended = torch.zeros(len(rows), dtype=torch.bool, device=choice.device)
        self.lengths = torch.zeros(len(rows), dtype=torch.long, device=choice.device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B,) bool: whether each row has ended, or the round."""
        goes_on = ~self.ended
        self.lengths += goes_on
        self.ended |= torch.isin(input_ids[:, -1], self.stops) | (self.lengths >= self.room)
        for index, row in enumerate(self.rows):
            if row.is_cancelled:
                self.ended[index] = True
            elif row.is_watched and goes_on[index]:
                self.look_at(index, input_ids[index, self.width :].tolist())
        if len(self.rows) <= FEW_ROWS:
            return self.ended
        return self.ended | (2 * self.ended.sum() >= len(self.rows))

    def look_at(self, index: int, new_ids: list[int]) -> None:
        """End a row at a text that ends it, and tell its listener of its latest token."""
        row = self.rows[index]
        token_ids = [*row.token_ids, *new_ids]
        if self.reader.is_stopped(token_ids, row.request.stop):
            self.ended[index] = True
        if row.listener is not None:
            new = [float(step[index]) for step in self.choice.logprobs[: len(new_ids)]]
            row.listener(token_ids, [*row.logprobs, *new])


def generation_config(reader: AnswerReader, max_new_tokens: int) -> GenerationConfig:
    """Return what `generate` must know: rows end at stop tokens; `TokenChoice` does the sampling."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(reader.stops),
        pad_token_id=reader.tokenizer.pad_token_id,
        use_cache=True,
        do_sample=False,
    )


@contextmanager
def unset_generation_config(model: Model) -> Iterator[None]:
    """Take away a checkpoint's own `generation_config.json`, with which `generate` fills in what it is not told.

    Its penalties, beams and suppressed tokens would change answers silently, and count anew in each round.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own

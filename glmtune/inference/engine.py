"""Requests to Completions: many in batches, or one as a stream."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.inference.batch import Batch
from glmtune.inference.completion import Completion, Delta, Request
from glmtune.inference.prompts import check_room, encode_within
from glmtune.inference.reading import AnswerReader
from glmtune.inference.rows import Row
from glmtune.messages import Prompt
from glmtune.methods import Model
from glmtune.models.loading import max_length


class Engine:
    """A model that is ready to be asked.

    How requests are brought together is the engine's own affair; an answer depends on its request alone.

    Attributes:
        limit: longest sequence in tokens that the model takes; None where it states none.
    """

    def __init__(self, model: Model, tokenizer: PreTrainedTokenizerBase, limit: int | None = None):
        """An engine for a model in evaluation mode; `limit` where the model takes less than its config.json says."""
        self.model, self.tokenizer = model, tokenizer
        self.limit = max_length(model.config) if limit is None else limit

    @cached_property
    def reader(self) -> AnswerReader:
        """What reads the model's answers."""
        return AnswerReader.of(self.model, self.tokenizer)

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Answer requests, up to `batch_size` at a time; where one ends, another begins.

        Args:
            requests: what is appended to them in the meantime is answered as well.

        Yields:
            (index of the request, its answer), in the order in which they end. Requests that are cancelled get none.

        Raises:
            UserError: a prompt is too long for the model; told before any is answered.
        """
        for number, request in enumerate(requests, start=1):
            check_room(len(request.input_ids), self.limit, request.settings.longest, f"Prompt {number}")
        reader = self.reader
        batch = self.open(min((request.settings.batch_size for request in requests), default=1))
        rows: dict[Row, int] = {}
        while True:
            # The longest first: one that is begun late goes on when all others have ended.
            new = range(len(rows), len(requests))
            for index in sorted(new, key=lambda index: -len(requests[index].input_ids)):
                row = Row(requests[index], reader)
                rows[row] = index
                batch.add(row)
            if batch.is_idle:
                return
            for row in batch.step():
                if (completion := row.complete()) is not None:
                    yield rows[row], completion

    def open(self, slots: int, most_tokens: int | None = None) -> Batch:
        """Return a batch of rows that this engine answers, for who drives it himself."""
        return Batch(self.model, self.reader, slots, most_tokens)

    def answer(self, prompts: Sequence[Prompt], settings: GenerationSettings, seed: int = 0) -> list[Completion]:
        """Answer prompts, in their order, all by the same settings.

        Args:
            prompts: texts, or messages.
            settings: how to decode.
            seed: of what is sampled; an answer depends on this and on the prompt's number alone.

        Raises:
            UserError: a prompt is too long for the model; told before any is answered.
        """
        encoded = [
            encode_within(self.tokenizer, prompt, (), self.limit, settings.longest, f"Prompt {number}")
            for number, prompt in enumerate(prompts, start=1)
        ]
        requests = [Request(input_ids, settings, number) for number, input_ids in enumerate(encoded, start=seed)]
        answers = dict(self.complete(requests))
        return [answers[index] for index in range(len(prompts))]

    def stream(self, request: Request) -> Generator[Delta, None, Completion | None]:
        """Answer one request piece by piece. All tokens arrive, the last one too.

        Who stops listening stops the model.

        Yields:
            The answer in pieces: their texts make up its text, their tokens are its tokens.

        Returns:
            The whole answer; None if the request was cancelled.

        Raises:
            UserError: the prompt is too long for the model.
        """
        check_room(len(request.input_ids), self.limit, request.settings.longest)
        row, batch = Row(request, self.reader), self.open(slots=1)
        batch.add(row)
        reading = self.reader.follow()
        while not batch.is_idle:
            if batch.step():
                yield reading.next(row, len(row.token_ids), row.has_ended)
        return row.complete()

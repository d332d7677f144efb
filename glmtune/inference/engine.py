"""Requests to Completions: many in batches, or one as a stream."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread

from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.inference.completion import Completion, Delta, Request
from glmtune.inference.decoding import Row, decode
from glmtune.inference.prompts import check_room, encode_within
from glmtune.inference.reading import AnswerReader
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

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Answer requests in batches of similar length, the longest first.

        Yields:
            (index of the request, its answer), in the order of decoding. Requests that are cancelled get none.

        Raises:
            UserError: a prompt is too long for the model; told before any is answered.
        """
        for number, request in enumerate(requests, start=1):
            check_room(len(request.input_ids), self.limit, request.settings.longest, f"Prompt {number}")
        reader = AnswerReader.of(self.model, self.tokenizer)
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index].input_ids))
        batch_size = min((request.settings.batch_size for request in requests), default=1)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = [Row(requests[index]) for index in batch]
            decode(self.model, reader, rows)
            for index, row in zip(batch, rows, strict=True):
                if completion := row.complete(reader):
                    yield index, completion

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
        reader = AnswerReader.of(self.model, self.tokenizer)
        arriving: SimpleQueue[tuple[list[int], list[float]] | BaseException | None] = SimpleQueue()
        row = Row(request, listener=lambda *news: arriving.put(news))

        def run() -> None:
            try:
                decode(self.model, reader, [row])
                arriving.put(None)
            except BaseException as error:  # a library in Rust that gives up raises no Exception; nobody would hear
                arriving.put(error)

        thread = Thread(target=run, daemon=True)
        thread.start()
        sent, text = 0, ""
        try:
            while (news := arriving.get()) is not None:
                if isinstance(news, BaseException):
                    raise news
                token_ids, logprobs = news
                begun = reader.read_begun(token_ids, request.stop)
                piece = begun[len(text) :] if begun.startswith(text) else ""
                yield Delta(piece, token_ids[sent:], logprobs[sent:] if request.logprobs else None)
                sent, text = len(token_ids), text + piece
        finally:
            row.is_abandoned.set()
            thread.join()
        completion = row.complete(reader)
        if completion is not None and len(completion.text) > len(text):
            yield Delta(completion.text[len(text) :], [], [] if request.logprobs else None)
        return completion

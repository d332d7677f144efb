"""An engine whose model is a GGUF file in llama.cpp: the file is asked as it will run, by its own tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from glmtune.data.pieces import lead_in
from glmtune.inference.completion import Completion, Delta, Request
from glmtune.inference.llama_cpp.connections import Connection, Reply, connect
from glmtune.inference.llama_cpp.found import Found
from glmtune.inference.prompts import check_room
from glmtune.inference.reading import AnswerReader
from glmtune.runtime import UserError

ROOM = 256  # tokens by which the context grows


class LlamaCppEngine:
    """A GGUF file that is ready to be asked, one request after the other. Close it, or use it in a `with`.

    A prompt goes to llama.cpp as text, with its control tokens, and is encoded there; no token is put before it, as all
    of the template stands in it. Where that gives other tokens than the tokenizer does, it is said once.

    Attributes:
        tokenizer: with the template.
        limit: longest sequence in tokens that the model takes; None where it states none.
        differing: prompts that llama.cpp has read as other tokens.
    """

    def __init__(
        self,
        found: Found,
        file: Path,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[int],
        limit: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Prepare to ask a file; it is opened with the first request.

        Args:
            found: the llama.cpp.
            file: a GGUF file.
            tokenizer: with the template.
            stops: tokens that end an answer.
            limit: longest sequence in tokens that the model takes.
            threads: of the processor; default: as many as torch takes.
        """
        self.found, self.file, self.tokenizer, self.limit = found, file, tokenizer, limit
        self.reader = AnswerReader(tokenizer, [*stops], lead_in(tokenizer))
        self.threads = threads or torch.get_num_threads()
        self.differing = 0
        self.context = 0
        self.connection: Connection | None = None

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what was started for it."""
        if self.connection is not None:
            self.connection.close()
        self.connection, self.context = None, 0

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Answer requests in their order; see `Engine.complete`.

        Raises:
            UserError: a prompt is too long, an answer is to be sampled, or llama.cpp gives none.
        """
        for number, request in enumerate(requests, start=1):
            check_room(len(request.input_ids), self.limit, request.settings.longest, f"Prompt {number}")
            if request.settings.do_sample:
                raise UserError(
                    "generation.do_sample=true: GGUF files are asked for the likeliest token. Leave it out."
                )
        self._open(max((len(request.input_ids) + request.settings.longest for request in requests), default=0))
        for index, request in enumerate(requests):
            if not request.cancellation.is_set():
                self._open(len(request.input_ids) + request.settings.longest)
                yield index, self._answer(request)

    def stream(self, request: Request) -> Generator[Delta, None, Completion | None]:
        """Answer one request, all of it in one piece; see `Engine.stream`."""
        answers = dict(self.complete([request]))
        if 0 not in answers:
            return None
        yield Delta(answers[0].text, answers[0].token_ids)
        return answers[0]

    def _open(self, needed: int) -> None:
        """Open the file with room for so many tokens, or anew with more."""
        if self.connection is None or needed > self.context:
            self.close()
            step = ROOM if self.found.address is None else 1  # a server that is running has what it has
            context = -(-needed // step) * step
            context = context if self.limit is None else min(context, max(self.limit, needed))
            self.connection = connect(self.found, self.file, context, self.threads)
            self.context = context

    def _answer(self, request: Request) -> Completion:
        assert self.connection is not None
        prompt = self.tokenizer.decode(list(request.input_ids), clean_up_tokenization_spaces=False)
        bos = str(self.tokenizer.bos_token or "")
        reply = self.connection.ask(str(prompt), bos, request.settings.longest, self.reader.stops)
        self._compare(request, reply)
        return read_reply(self.reader, request, reply)

    def _compare(self, request: Request, reply: Reply) -> None:
        """Count prompts that were read as other tokens, and tell of the first."""
        asked, read = list(request.input_ids), list(reply.prompt_ids)
        if asked == read:
            return
        self.differing += 1
        if self.differing > 1:
            return
        place = next((i for i, pair in enumerate(zip(asked, read, strict=False)) if len({*pair}) > 1), len(asked))
        pieces = [self.tokenizer.convert_ids_to_tokens(ids[place : place + 3]) for ids in (read, asked)]
        warnings.warn(
            f"{self.found.name} reads a prompt as {len(read)} tokens where the tokenizer makes {len(asked)}: "
            f"{pieces[0]} for {pieces[1]}. Its answers are those to what it reads.",
            stacklevel=2,
        )


def read_reply(reader: AnswerReader, request: Request, reply: Reply) -> Completion:
    """Return what llama.cpp wrote as any engine's answer: with the token that ended it."""
    ids = list(reply.token_ids)
    stopped = next((place for place, token in enumerate(ids) if token in reader.stops), None)
    if stopped is not None:
        ids = ids[: stopped + 1]
    elif reply.has_ended:
        if ids and ids[-1] in reader.tokenizer.all_special_ids:  # another of those that llama.cpp ends at
            ids.pop()
        with suppress(StopIteration):
            ids.append(next(iter(reader.stops)))
    cut = reader.is_stopped(ids, request.stop)
    has_ended = stopped is not None or reply.has_ended or cut
    return Completion(
        reader.read(ids, request.stop), ids, len(reply.prompt_ids), "stop" if has_ended else "length", None
    )

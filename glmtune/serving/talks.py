"""Answers on their way: what the worker writes becomes events, with the calls of tools between."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from glmtune.inference.completion import Completion, Delta, Request
from glmtune.inference.conversation import Conversation, Exchange, Question
from glmtune.messages import Message
from glmtune.serving.asking import Ended, Event, Piece, RefusedError, Said
from glmtune.serving.questions import Served
from glmtune.serving.thinking import Parting
from glmtune.serving.worker import Ticket, Worker


class Talk:
    """One answer on its way, with the calls of tools between.

    Attributes:
        index: of the answer.
        added: messages that the conversation has added.
    """

    def __init__(
        self, worker: Worker, served: Served, conversation: Conversation, question: Question, index: int
    ) -> None:
        self.worker, self.served, self.question, self.index = worker, served, question, index
        self.added: list[Message] = []
        self.turns = conversation.talk(question, self.added)
        self.written = 0
        self.ticket: Ticket | None = None

    def begin(self) -> None:
        """Put the question in the queue.

        Raises:
            RefusedError: it is full.
        """
        self.hand_in(next(self.turns))

    def hand_in(self, request: Request, goes_on: bool = False) -> None:
        self.ticket = self.worker.hand_in(self.served.info.name, self.served.engine.reader, request, goes_on)

    def cancel(self) -> None:
        """End the answer, if it has not ended."""
        if self.ticket is not None:
            self.ticket.row.is_abandoned.set()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what comes of it, and last that it has ended.

        Text of a turn that may call tools, and thoughts, come when it is known what they are.
        """
        while True:
            completion: Completion | None = None
            assert self.ticket is not None
            request = self.ticket.row.request
            prompt_tokens = len(request.input_ids)
            parting = Parting(
                self.served.engine.tokenizer, request.input_ids, request.stop, is_raw=self.question.is_raw
            )
            try:
                async with aclosing(self.worker.follow(self.ticket)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Completion):
                            completion = piece
                        else:
                            yield self.piece(piece, parting)
            except RefusedError:
                raise
            except ValueError as error:  # the model cannot read it, such as a prompt of another template
                raise RefusedError(str(error), field="prompt") from error
            if completion is None:
                raise RefusedError("The answer was cancelled.", status=503, code="unavailable")
            self.written += len(completion.token_ids)
            before = len(self.added)
            exchange = self.go_on(completion)
            turn, *said = self.added[before:]
            if exchange is not None and exchange.messages[-1] is turn:
                ended = self.ended(exchange, prompt_tokens)
                reasoning, text = parting.rest(ended.message)
                if reasoning or text:
                    yield Piece(self.index, text, reasoning=reasoning)
                yield ended
                return
            for message in (turn, *said):
                yield Said(self.index, message)
            if exchange is not None:  # no room for another turn, or it has had as many as it may
                cut = Completion("", (), prompt_tokens, "length")
                yield self.ended(Exchange([{"role": "assistant", "content": ""}], cut), prompt_tokens)
                return

    def go_on(self, completion: Completion) -> Exchange | None:
        """Let the conversation go on; return it where it has ended."""
        try:
            following = self.turns.send(completion)
            self.hand_in(replace(following, constraint=None), goes_on=True)  # a call that had to be made has been
        except StopIteration as end:
            exchange: Exchange = end.value
            return exchange
        return None

    def piece(self, delta: Delta, parting: Parting) -> Piece:
        """Return a piece for the client, whose text waits where it may be a call, or what is only thought."""
        reasoning, text = ("", "") if self.question.tools else parting.next(delta)
        return Piece(self.index, text, delta.token_ids, delta.logprobs, delta.top_logprobs, reasoning)

    def ended(self, exchange: Exchange, prompt_tokens: int) -> Ended:
        """Return the end of the answer."""
        message = dict(exchange.messages[-1])
        if not self.question.tools and message.pop("tool_calls", None):  # nobody offered any: it is what it looks like
            message["content"] = exchange.completion.text
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{"id": f"call_{secrets.token_hex(12)}", **call} for call in calls]
        completion = exchange.completion
        stop = self.question.request.stop
        whole = self.served.engine.reader.read(completion.token_ids) if stop else ""  # with the text that ended it
        return Ended(
            self.index,
            message,
            completion.finish_reason,
            self.written,
            prompt_tokens,
            exchange.refusal,
            next((one for one in stop if one in whole), None),
        )


async def merged(sources: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """Yield the events of several answers as they come. Who closes this closes all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for event in source:
                yield event
        return
    arriving: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

    async def listen(source: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(source):
                async for event in source:
                    arriving.put_nowait(event)
            arriving.put_nowait(None)
        except Exception as error:
            arriving.put_nowait(error)

    listeners = [asyncio.create_task(listen(source)) for source in sources]
    try:
        left = len(sources)
        while left:
            news = await arriving.get()
            if isinstance(news, BaseException):
                raise news
            if news is None:
                left -= 1
            else:
                yield news
    finally:
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)

"""The thread that decodes: it takes what event loops hand in, and tells them what comes of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread

from glmtune.inference.batch import Batch
from glmtune.inference.completion import Completion, Delta, Request
from glmtune.inference.reading import AnswerReader
from glmtune.inference.rows import Row
from glmtune.serving.asking import Load, RefusedError
from glmtune.serving.floor import Floor

logger = logging.getLogger("glmtune.serving")

TURN = 8  # steps of one model before another has its turn
RETRY = 1  # seconds after which a full queue may be tried again
PAUSE = 0.04  # seconds between pieces of an answer at least: who reads sees no more, and every piece costs a turn;
EACH = 0.0025  # but so many for each of many answers


class FailedError(RuntimeError):
    """The model could not answer; the request may be tried again."""


@dataclass(frozen=True)
class Seat:
    """A model that the worker may ask.

    Attributes:
        batch: of its rows.
        activate: makes it the one that answers, of several on one base.
    """

    batch: Batch
    activate: Callable[[], None]


@dataclass(eq=False)
class Ticket:
    """A row as an event loop sees it, which may look less often than tokens come.

    Attributes:
        row: what is answered, by the worker.
        key: of the model that answers.
        loop: who waits.
        tokens: how many of the row's tokens have been told.
        is_over: no more will.
        due: when the next may be told, by the worker's clock.
        news: set when there are more tokens, or it is over.
    """

    row: Row
    key: Hashable
    loop: asyncio.AbstractEventLoop
    tokens: int = 0
    is_over: bool = False
    due: float = 0.0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, tokens: int, is_over: bool) -> None:
        """Take news; in the event loop."""
        self.tokens, self.is_over = tokens, is_over
        self.news.set()


class Worker:
    """One thread for all models of a server: requests in, tokens out, and nobody waits for another.

    Attributes:
        floor: held in each step.
        fault: why nothing is answered any more; None while it is.
    """

    def __init__(self, max_queue: int) -> None:
        """A worker that has not begun; `max_queue` requests may wait for a slot."""
        self.max_queue = max_queue
        self.seats: dict[Hashable, Seat] = {}
        self.floor = Floor()
        self.fault: str | None = None
        self.is_closing = False
        self.wake = Condition()
        self.arrived: list[Ticket] = []
        self.chores: list[tuple[Callable[[], object], Future[None]]] = []
        self.tickets: dict[Row, Ticket] = {}
        self.thread = Thread(target=self.run, name="decoding", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.thread.start()

    def close(self) -> None:
        """End all answers, and the thread."""
        with self.wake:
            self.is_closing = True
            self.wake.notify()
        self.thread.join()

    def load(self) -> Load:
        """Return how busy it is."""
        with self.wake:
            rows, arrived = list(self.tickets), len(self.arrived)
        running = sum(bool(row.token_ids) for row in rows)
        tokens = sum(len(row.request.input_ids) + len(row.token_ids) for row in rows)
        return Load(running, len(rows) - running + arrived, tokens)

    def hand_in(self, key: Hashable, reader: AnswerReader, request: Request, goes_on: bool = False) -> Ticket:
        """Let a request wait for its answer; from an event loop.

        Args:
            key: of the model that answers.
            reader: of its answers.
            request: what is asked.
            goes_on: with an answer that has begun, which a full queue does not break off.

        Raises:
            RefusedError: the queue is full, or nothing is answered any more.
        """
        ticket = Ticket(Row(request, reader), key, asyncio.get_running_loop())
        waiting = self.load().waiting
        with self.wake:
            self.check()
            if waiting >= self.max_queue and not goes_on:
                message = f"{waiting} requests wait already, which is all that may. Try again in a moment."
                raise RefusedError(message, status=429, code="queue_full", retry_after=RETRY)
            self.arrived.append(ticket)
            self.wake.notify()
        return ticket

    def check(self) -> None:
        """See whether anything is done any more.

        Raises:
            RefusedError: it is not.
        """
        if self.fault is not None or self.is_closing:
            raise RefusedError(self.fault or "The server is ending.", status=503, code="unavailable")

    async def follow(self, ticket: Ticket) -> AsyncGenerator[Delta | Completion, None]:
        """Yield the pieces of an answer as they come, and then all of it. Who closes this cancels the answer.

        Raises:
            FailedError: the model could not answer.
            RefusedError: the server is ending.
        """
        row, reading = ticket.row, ticket.row.reader.follow()
        try:
            while not ticket.is_over or (row.error is None and ticket.tokens > reading.tokens):
                await ticket.news.wait()
                ticket.news.clear()
                is_last = ticket.is_over and row.has_ended
                if row.error is None and ticket.tokens > reading.tokens:
                    piece = reading.next(row, ticket.tokens, is_last)
                    if not piece.text:  # nothing to be seen, such as half a character: the next is not waited for
                        ticket.due = 0.0
                    yield piece
            if (completion := row.complete()) is not None:
                yield completion
        finally:
            row.is_abandoned.set()

    def do(self, chore: Callable[[], object]) -> asyncio.Future[None]:
        """Have something done by the thread, between two steps; from an event loop.

        Raises:
            RefusedError: nothing is done any more.
        """
        done: Future[None] = Future()
        with self.wake:
            self.check()
            self.chores.append((chore, done))
            self.wake.notify()
        return asyncio.wrap_future(done)

    def run(self) -> None:
        """Decode until the end. Whatever else ends it is the server's fault, which is told."""
        try:
            while self.take():
                for seat in [seat for seat in self.seats.values() if not seat.batch.is_idle]:
                    self.turn(seat)
        except BaseException as error:
            logger.exception("The thread that decodes has died")
            self.fault = f"The thread that decodes has died: {type(error).__name__}."
        finally:
            with self.wake:
                reason = self.fault or "The server is ending."
                self.fault = reason
                rows = [*self.tickets, *(ticket.row for ticket in self.arrived)]
                self.tickets |= {ticket.row: ticket for ticket in self.arrived}
                chores, self.chores = self.chores, []
            for row in rows:
                row.error = RefusedError(reason, status=503, code="unavailable")
            self.tell(rows)
            for _, done in chores:
                if done.set_running_or_notify_cancel():
                    done.set_exception(RefusedError(reason, status=503, code="unavailable"))

    def take(self) -> bool:
        """Wait until there is work, and take what has arrived; False at the end."""
        with self.wake:
            self.wake.wait_for(lambda: self.is_closing or self.arrived or self.chores or self.tickets)
            arrived, self.arrived = self.arrived, []
            chores, self.chores = self.chores, []
            self.tickets |= {ticket.row: ticket for ticket in arrived}
        for chore, done in chores:
            if done.set_running_or_notify_cancel():  # who asked for it still waits
                try:
                    chore()
                except Exception as error:
                    done.set_exception(error)
                else:
                    done.set_result(None)
        for ticket in arrived:
            if (seat := self.seats.get(ticket.key)) is None:
                ticket.row.error = RefusedError("The model has been unloaded.", status=404, code="model_not_found")
                self.tell([ticket.row])
            else:
                seat.batch.add(ticket.row)
        return not self.is_closing

    def turn(self, seat: Seat) -> None:
        """Give one model its turn: some steps, or one where it is alone and others may have arrived."""
        alone = sum(not seat.batch.is_idle for seat in self.seats.values()) == 1
        seat.activate()
        for _ in range(1 if alone else TURN):
            try:
                with self.floor:
                    rows = seat.batch.step()
            except Exception as error:
                logger.exception("A step of decoding has failed")
                rows = seat.batch.drop()
                for row in rows:
                    row.error = FailedError(f"The model could not answer: {type(error).__name__}.")
            self.tell(rows)
            self.forget_cancelled()
            if seat.batch.is_idle or self.is_closing:
                return

    def forget_cancelled(self) -> None:
        """Let those go whom nobody listens to, so that they hold no place behind others who wait."""
        cancelled = [row for row in self.tickets if row.is_cancelled]
        for row in cancelled:
            if (seat := self.seats.get(self.tickets[row].key)) is not None:
                seat.batch.withdraw(row)
        self.tell(cancelled)

    def tell(self, rows: list[Row]) -> None:
        """Let those who wait know what is new, all of one event loop at once; but nobody sooner than after a pause."""
        news: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, int, bool]]] = {}
        now, pause = time.monotonic(), max(PAUSE, EACH * len(rows))
        for row in rows:
            ticket = self.tickets.get(row)
            if ticket is None:
                continue
            is_over = row.has_ended or row.error is not None or row.is_cancelled
            if is_over:
                with self.wake:
                    del self.tickets[row]
            elif now < ticket.due:
                continue
            ticket.due = now + pause
            news.setdefault(ticket.loop, []).append((ticket, len(row.token_ids), is_over))
        for loop, told in news.items():
            with suppress(RuntimeError):  # the event loop has ended, and nobody waits
                loop.call_soon_threadsafe(tell_all, told)


def tell_all(told: list[tuple[Ticket, int, bool]]) -> None:
    """Tell tickets their news; in their event loop."""
    for ticket, tokens, is_over in told:
        ticket.tell(tokens, is_over)

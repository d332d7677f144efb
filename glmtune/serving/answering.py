"""Responses that are answered by a model: whole, or as a stream of events."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glmtune.serving.answers import Reply
from glmtune.serving.asking import Accepted, Access, Ended, Event, Limits, Piece, RefusedError, Service
from glmtune.serving.calls import Call, OpenCalls
from glmtune.serving.dialects.bodies import as_json

logger = logging.getLogger(__name__)


class Json(Response):
    """JSON, in which what is no text is replaced."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return as_json(content).encode("utf-8", "replace")


@dataclass(frozen=True)
class Server:
    """What all requests share."""

    service: Service
    limits: Limits
    access: Access
    calls: OpenCalls

    def reply(self, request: Request, reply: Reply, is_stream: bool | None = False) -> Response:
        """Return the response that asks the service, once it is sent."""
        return _Answered(self, request.state.call, reply, bool(is_stream))


class _Answered(Response):
    """Asks when it is sent, so that all that belongs to one request is done, and cancelled, in one place."""

    def __init__(self, server: Server, call: Call, reply: Reply, is_stream: bool) -> None:
        super().__init__()
        self._server, self._call, self._reply, self._is_stream = server, call, reply, is_stream
        self._unsent = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        calls = self._server.calls
        try:
            with calls.open(self._server.limits.answer_seconds):
                async with aclosing(self._server.service.answer(self._reply.asked)) as events:
                    await self._answer(events, scope, receive, send)
                return
            raise RefusedError(*_ENDING) if calls.is_draining else RefusedError(*_DEADLINE)
        except Exception as error:
            await self._fail(error, send)
        finally:
            self._call.completion_tokens = self._reply.completion_tokens

    def _take(self, event: Event) -> None:
        call = self._call
        self._reply.take(event)
        if isinstance(event, Accepted):
            call.model, call.prompt_tokens = event.model, event.prompt_tokens
        elif isinstance(event, Piece) and call.first_token is None:
            call.first_token = time.perf_counter()

    async def _answer(self, events: AsyncIterator[Event], scope: Scope, receive: Receive, send: Send) -> None:
        reply = self._reply
        if not self._is_stream:
            async for event in events:
                self._take(event)
            self._log()
            await Json(reply.whole())(scope, receive, send)
            return
        async for event in events:
            self._take(event)
            if self._call.status is None:
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
            self._unsent += "".join(reply.events(event))
            if self._unsent and not isinstance(event, Accepted | Ended):  # which go out with what follows them
                await self._send_text(send)
        self._log()
        self._unsent += "".join(reply.last_events())
        await self._send_text(send, is_last=True)

    async def _send_text(self, send: Send, is_last: bool = False) -> None:
        body, self._unsent = self._unsent.encode("utf-8", "replace"), ""
        await send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def _fail(self, error: Exception, send: Send) -> None:
        """Say it in the stream, if that has begun."""
        if isinstance(error, RefusedError):
            self._reply.rename(error)
        if self._call.status is None or self._call.is_complete:
            raise error
        if not isinstance(error, RefusedError):
            logger.error("Request %s failed.", self._call.id, exc_info=error)
            error = RefusedError("The server failed. Its log says why", 500)
        self._unsent += "".join(self._reply.fault_events(error))
        await self._send_text(send, is_last=True)

    def _log(self) -> None:
        if self._server.access.logs_prompts:
            said = [answer.end.message for answer in self._reply.answers]
            logger.info("%s asked: %s", self._call.id, as_json({"prompt": self._reply.asked.prompt, "answers": said}))


_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx passes on what it gets
]
_ENDING = ("The server ends. Ask again", 503, None, "server_ending", 5)
_DEADLINE = ("It took too long. Ask for less, or again when the server is less busy", 504, None, "deadline_exceeded")

"""The server around the app: connections within limits, and an end that tells those who wait."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from glmtune.serving.asking import Limits, RefusedError, Service
from glmtune.serving.dialects.bodies import as_json
from glmtune.serving.errors import openai_error
from glmtune.serving.floor import Floor, FloorSelector

HEAD_BYTES = 64 * 2**10  # of a request's first line and headers
IDLE_SECONDS = 15  # that a connection may stay open between requests
LAST_WORDS = 5  # seconds in which streams that are ended are told so
FAULT_SECONDS = 10.0  # that `/health` tells of a fault before the server ends


class _Connection(H11Protocol):
    """A connection that is closed when its requests' heads do not come, or its responses are not read, in time."""

    limits: Limits
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(RefusedError("There are too many connections", 503, retry_after=1))
        else:
            self._head = self.loop.call_later(self.limits.header_seconds, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head is None:  # the next request on this connection has begun
            self._head = self.loop.call_later(self.limits.header_seconds, self._head_is_late)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_unread()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(RefusedError(msg))

    def _head_is_late(self) -> None:
        seconds = self.limits.header_seconds
        self._refuse(RefusedError(f"The request's headers have not come within {seconds:g} seconds", 408))

    def _refuse(self, error: RefusedError) -> None:
        """Answer what is no request yet, unless something is being answered; and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = as_json(openai_error(error)).encode()
            retry = f"retry-after: {error.retry_after}\r\n" if error.retry_after else ""
            head = f"HTTP/1.1 {error.status} \r\ncontent-type: application/json\r\n{retry}connection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class Server(uvicorn.Server):
    """A server that ends by itself once its model has failed, and tells those who wait that it ends."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, service: Service, shutdown_timeout: float) -> None:
        super().__init__(config)
        self._app, self.service, self._timeout = app, service, shutdown_timeout
        self._failed_at: float | None = None

    async def on_tick(self, counter: int) -> bool:
        now = asyncio.get_running_loop().time()
        if self._failed_at is None and self.service.fault is not None:
            self._failed_at = now
        if self._failed_at is not None and now - self._failed_at >= FAULT_SECONDS:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.drain()
        asyncio.get_running_loop().call_later(self._timeout, self._app.state.end)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at a signal, and go on behind the server, where uvicorn would raise the signal once more."""
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()


def make_server(
    app: FastAPI,
    service: Service,
    host: str,
    port: int,
    limits: Limits,
    shutdown_timeout: float = 30.0,
    floor: Floor | None = None,
) -> Server:
    """Return a server that has not been started.

    Args:
        app: of `make_app`.
        service: whoever answers.
        host, port: where it listens.
        limits: of one client.
        shutdown_timeout: seconds that answers may still take once the server is to end.
        floor: taken in turns with the thread that decodes; None: both work at the same time.
    """
    connection = type("Connection", (_Connection,), {"limits": limits})
    loop: Any = "auto" if floor is None else lambda: asyncio.SelectorEventLoop(FloorSelector(floor))
    config = uvicorn.Config(
        app,
        loop=loop,
        host=host,
        port=port,
        http=connection,
        ws="none",
        log_config=None,
        access_log=False,  # the app has its own, without what stands behind the question mark
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(shutdown_timeout) + LAST_WORDS,
    )
    return Server(config, app, service, shutdown_timeout)


def serve(server: Server) -> int:
    """Answer until a signal comes or the model fails.

    Args:
        server: of `make_server`.

    Returns:
        The exit code of the process: 1 where the model has failed or the port could not be had, else 0.
    """
    try:
        server.run()
    except SystemExit:  # of uvicorn, which has logged why
        return 1
    except KeyboardInterrupt:
        pass
    return 1 if server.service.fault else 0

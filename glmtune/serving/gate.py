"""What every request passes: its id, its key, its body within limits, its log line; and its client's going away."""

from __future__ import annotations

import hmac
import logging
from typing import Any
from urllib.parse import parse_qs

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.serving.answering import Json, Server
from glmtune.serving.asking import Access, Limits, RefusedError
from glmtune.serving.calls import Call
from glmtune.serving.errors import anthropic_error, openai_error
from glmtune.serving.metrics import Metrics

logger = logging.getLogger(__name__)

GONE = 499  # what logs and counts say of a client that went away
OPEN = {"/", "/health", "/ready"}  # without a key; of the path `/`, its page alone
KEY_WORDS = {"key", "api_key", "api-key", "apikey", "token", "access_token", "x-api-key"}


class Gate:
    """Lets requests through to an app, and answers what goes wrong on the way."""

    def __init__(self, app: ASGIApp, server: Server, metrics: Metrics) -> None:
        self.app, self._server, self._metrics = app, server, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        call = Call.of(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["call"] = call
        try:
            await self._pass(scope, receive, _noting(call, send), call)
        finally:
            self._note(scope, call)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, call: Call) -> None:
        is_read = False
        try:
            if self._server.calls.is_draining and not _is_open(scope):
                raise RefusedError("The server ends. Ask another, or again", 503, code="server_ending", retry_after=5)
            _check_host(scope, self._server.access)
            _check_key(scope, self._server.access)
            body = await _read(scope, receive, self._server.limits)
            is_read = True
            if body is None:
                call.is_gone = True
                return
            await self._while_connected(scope, body, receive, send, call)
        except Exception as error:
            if not isinstance(error, RefusedError):
                logger.error("Request %s failed.", call.id, exc_info=error)
                error = RefusedError("The server failed. Its log says why", 500)
            if call.status is not None:
                raise error  # the connection is closed
            response = error_response(scope, error)
            if not is_read:  # nobody waits for the rest
                response.headers["connection"] = "close"
            await response(scope, receive, send)

    async def _while_connected(self, scope: Scope, body: bytes, receive: Receive, send: Send, call: Call) -> None:
        """Run the app; cancel it as soon as the client has gone."""
        failed: Exception | None = None

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not call.is_complete:
                call.is_gone = True
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            try:
                await self.app(scope, _replaying(body), send)
            except Exception as error:
                failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            raise failed

    def _note(self, scope: Scope, call: Call) -> None:
        status = GONE if call.is_gone or call.status is None else call.status
        path = scope.get("raw_path", b"").decode("ascii", "replace").partition("?")[0]
        route = scope.get("route")
        self._metrics.count(call, route.path if isinstance(route, Route) else "other", status)
        logger.info(
            "%s %.200s %d model=%s tokens=%d+%d seconds=%.3f id=%s",
            *(scope["method"], path, status, call.model or "-"),
            *(call.prompt_tokens, call.completion_tokens, call.seconds, call.id),
        )


def error_response(scope: Scope, error: RefusedError) -> Json:
    """Return an error in the form of the route that it is on."""
    call: Call = scope["state"]["call"]
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    is_anthropic = scope["path"].startswith("/v1/messages")
    content = anthropic_error(error, call.id) if is_anthropic else openai_error(error)
    return Json(content, error.status, headers)


def _noting(call: Call, send: Send) -> Send:
    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            call.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = call.id
            headers["x-content-type-options"] = "nosniff"
        elif not message.get("more_body", False):
            call.is_complete = True
        await send(message)

    return noting


def _is_open(scope: Scope) -> bool:
    return scope["path"] in OPEN and scope["method"] != "POST"


def _check_host(scope: Scope, access: Access) -> None:
    given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    host = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]
    if access.hosts and given and host.lower() not in access.hosts:
        known = " or ".join(access.hosts)
        raise RefusedError(f"This server is asked as {known}, and by no other name", 403, code="wrong_host")


def _check_key(scope: Scope, access: Access) -> None:
    if not access.keys or _is_open(scope) or scope["path"].startswith("/page/"):
        return
    headers = dict(scope["headers"])
    scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
    given = [bearer.strip() if scheme.lower() == b"bearer" else b"", headers.get(b"x-api-key", b"")]
    same = [hmac.compare_digest(one, key.encode()) for key in access.keys for one in given]  # all are compared
    if any(same):
        return
    if KEY_WORDS & {name.lower() for name in parse_qs(scope["query_string"].decode("latin-1"))}:
        fault = "A key is not taken from the address, where it would stand in logs"
    else:
        fault = "This key is not known" if any(given) else "A key is asked for"
    raise RefusedError(
        f"{fault}. Send it as `Authorization: Bearer KEY`, or as `X-Api-Key`", 401, code="invalid_api_key"
    )


async def _read(scope: Scope, receive: Receive, limits: Limits) -> bytes | None:
    """The body; None if the client went away. What is too long is read on for a while, so that the answer is heard."""
    too_long = RefusedError(f"The body is longer than {limits.body:,} bytes", 413, code="request_too_large")
    stated = dict(scope["headers"]).get(b"content-length", b"0")
    if stated.isdigit() and int(stated[:20]) > 4 * limits.body:
        raise too_long
    chunks: list[bytes] = []
    size, more = 0, True
    with anyio.move_on_after(limits.body_seconds):
        while more and size <= 4 * limits.body:
            message: dict[str, Any] = dict(await receive())
            if message["type"] == "http.disconnect":
                return None
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size <= limits.body:
                chunks.append(chunk)
        if size > limits.body:
            raise too_long
        return b"".join(chunks)
    raise RefusedError(f"The body has not come within {limits.body_seconds:g} seconds", 408)


def _replaying(body: bytes) -> Receive:
    is_given = False

    async def receive() -> Message:
        nonlocal is_given
        if is_given:
            await anyio.sleep_forever()  # that the client goes away is heard elsewhere
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive

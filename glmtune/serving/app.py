"""The app that answers over HTTP: which route speaks which dialect."""

from __future__ import annotations

from asyncio import to_thread
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException

import glmtune
from glmtune.serving.answering import Json, Server
from glmtune.serving.asking import Access, Limits, RefusedError, Service
from glmtune.serving.calls import OpenCalls
from glmtune.serving.dialects.anthropic import CountBody, MessagesBody
from glmtune.serving.dialects.anthropic_reply import AnthropicReply
from glmtune.serving.dialects.chatglm import ChatGLMBody, ChatGLMReply
from glmtune.serving.dialects.completions import CompletionBody, CompletionReply
from glmtune.serving.dialects.openai import ChatBody, ChatReply
from glmtune.serving.dialects.responses import ResponsesBody
from glmtune.serving.dialects.responses_reply import ResponsesReply
from glmtune.serving.errors import invalid_body
from glmtune.serving.gate import Gate, error_response
from glmtune.serving.metrics import Metrics
from glmtune.serving.page_routes import page_routes
from glmtune.serving.routes import model_routes, status_routes

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "What was asked cannot be answered; the error names the field, and the remedy."},
    "5XX": {"description": "The server cannot answer now."},
}


def make_app(service: Service, limits: Limits, access: Access) -> FastAPI:
    """Return the app.

    `app.state.drain()` lets it take no more requests; `app.state.end()` ends the answers that are under way.

    Args:
        service: whoever answers.
        limits: of one client.
        access: who may ask.
    """
    app = FastAPI(title="glmtune", version=glmtune.__version__, docs_url=None, redoc_url=None, responses=ERRORS)
    app.router.redirect_slashes = False
    server, metrics = Server(service, limits, access, OpenCalls()), Metrics(service)
    app.state.drain, app.state.end = server.calls.drain, server.calls.end
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(Gate, server=server, metrics=metrics)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # the clients' own are many
            expose_headers=["x-request-id", "retry-after"],
        )
    for router in (status_routes(server, metrics), model_routes(server), page_routes(server)):
        app.include_router(router)
    _add_openai(app, server)
    _add_anthropic(app, server)
    return app


def _add_openai(app: FastAPI, server: Server) -> None:
    @app.post("/v1/chat/completions", response_class=Response)
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation (OpenAI)."""
        reply = ChatReply(body.asked(server.limits), server.service, body.tells_usage)
        return server.reply(request, reply, body.stream)

    @app.post("/v1/completions", response_class=Response)
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Go on with a text (OpenAI)."""
        reply = CompletionReply(body.asked(server.limits), server.service, body.tells_usage)
        return server.reply(request, reply, body.stream)

    @app.post("/v1/responses", response_class=Response)
    async def respond(body: ResponsesBody, request: Request) -> Response:
        """Answer a conversation (OpenAI), and keep nothing of it."""
        reply = ResponsesReply(body.asked(server.limits), server.service, body.told())
        return server.reply(request, reply, body.stream)

    @app.post("/", response_class=Response)
    async def ask(body: ChatGLMBody, request: Request) -> Response:
        """Answer a prompt with its history (the original ChatGLM-6B `api.py`)."""
        asked = await to_thread(body.asked, server.limits, server.service)
        return server.reply(request, ChatGLMReply(asked, server.service, body))


def _add_anthropic(app: FastAPI, server: Server) -> None:
    @app.post("/v1/messages", response_class=Response)
    async def answer(body: MessagesBody, request: Request) -> Response:
        """Answer a conversation (Anthropic)."""
        return server.reply(request, AnthropicReply(body.asked(server.limits), server.service), body.stream)

    @app.post("/v1/messages/count_tokens", response_class=Response)
    async def count(body: CountBody) -> Response:
        """Return how many tokens a conversation has (Anthropic)."""
        input_ids = await to_thread(server.service.encode, body.asked(server.limits))
        return Json({"input_tokens": len(input_ids)})


async def _invalid(request: Request, error: Any) -> Response:
    return error_response(request.scope, invalid_body(error.errors(), error.body))


async def _refused(request: Request, error: Any) -> Response:
    """What the framework itself refuses: no such path, no such method, a body that cannot be read."""
    said = {
        404: "There is no such path. `/openapi.json` names all that there are",
        405: f"{request.method} is not taken here",
    }
    message = said.get(error.status_code) or f"The body is no JSON: {error.__cause__ or error.detail}"
    response = error_response(request.scope, RefusedError(message, error.status_code))
    response.headers.update(error.headers or {})
    return response

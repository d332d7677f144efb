"""The page for people, and what it asks beside the dialects."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from glmtune.serving.answering import Json, Server
from glmtune.serving.asking import RefusedError
from glmtune.serving.dialects.bodies import RequestBody, check_conversation
from glmtune.serving.dialects.openai import Call, ChatMessage

FOLDER = Path(__file__).with_name("page")
# Not as the machine has them: browsers run no script of another kind.
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# The page runs its own script alone; a report, which has none, runs nothing at all.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class ScoreBody(RequestBody):
    """The body of `/api/score`: a question, as text or as messages, and what was answered."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    completion: str
    tool_calls: list[Call] | None = None


def page_routes(server: Server) -> APIRouter:
    """Return the page, its files, and what it asks."""
    router, service = APIRouter(default_response_class=Response), server.service

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return _file(name)

    @router.get("/api/models")
    async def models() -> Response:
        """List the models, with their tasks and what was seen of them."""
        return Json([asdict(model) for model in service.models()])

    @router.get("/api/runs")
    async def runs() -> Response:
        """List the runs beside the server, the newest first."""
        return Json([dict(run) for run in service.runs()])

    @router.get("/api/runs/{name:path}/report")
    async def report(name: str) -> Response:
        """Return the report of a run."""
        content = service.report(name)
        if content is None:
            raise RefusedError(f"no report of a run {name!r}", 404)
        return _guarded(content, "text/html; charset=utf-8", REPORT_POLICY)

    @router.post("/api/score")
    async def score(body: ScoreBody) -> Response:
        """Say whether an answer is right, where the model's task can tell."""
        return Json(await to_thread(_score, server, body))

    return router


def _score(server: Server, body: ScoreBody) -> Mapping[str, Any]:
    if (body.prompt is None) == (body.messages is None):
        raise RefusedError("give either `prompt` or `messages`", field="prompt")
    prompt: Any = body.prompt
    if body.messages is not None:
        prompt = check_conversation([message.plain() for message in body.messages], server.limits)
    called = {"role": "assistant", "tool_calls": [call.model_dump(exclude_none=True) for call in body.tool_calls or ()]}
    calls = check_conversation([called], server.limits, "tool_calls")[0]["tool_calls"] if body.tool_calls else []
    return server.service.score(body.model, prompt, body.completion, calls)


def _file(name: str) -> Response:
    """A file of the page: one that stands in the folder itself."""
    files = {path.name: path for path in FOLDER.iterdir() if path.is_file()} if FOLDER.is_dir() else {}
    if name not in files:
        raise RefusedError(f"no file {name!r}", 404)
    kind = KINDS[Path(name).suffix]
    return _guarded(files[name].read_bytes(), f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)


def _guarded(content: bytes, kind: str, policy: str = PAGE_POLICY) -> Response:
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
    return Response(content, headers={**headers, "content-type": kind})

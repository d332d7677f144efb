"""Routes beside those that a model answers: what is served, how it fares, tokens, and adapters."""

from __future__ import annotations

from asyncio import to_thread
from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from glmtune.serving.answering import Json, Server
from glmtune.serving.asking import RefusedError, ServedModel, Service
from glmtune.serving.dialects.vllm import (
    DetokenizeBody,
    LoadAdapterBody,
    TokenizeBody,
    UnloadAdapterBody,
    model_entry,
)
from glmtune.serving.metrics import Metrics


def status_routes(server: Server, metrics: Metrics) -> APIRouter:
    """Return `/health`, `/ready` and `/metrics`."""
    router, service = APIRouter(default_response_class=Response), server.service

    @router.get("/health")
    async def health() -> Response:
        """Say whether the model's worker lives."""
        fault = service.fault
        return Json({"status": fault or "ok"}, 503 if fault else 200)

    @router.get("/ready")
    async def ready() -> Response:
        """Say whether all models answer as their runs' reports say, and more requests are taken."""
        fault = service.fault or ("the server ends" if server.calls.is_draining else None)
        models = {model.name: {"is_ready": model.is_ready, "remark": model.remark} for model in service.models()}
        is_ready = fault is None and all(model["is_ready"] for model in models.values())
        status = fault or ("ok" if is_ready else "not all models are ready")
        return Json({"status": status, "models": models}, 200 if is_ready else 503)

    @router.get("/metrics")
    async def counts() -> Response:
        """Return what was counted, for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def model_routes(server: Server) -> APIRouter:
    """Return the routes of models, of their tokens and of their adapters."""
    router, service = APIRouter(default_response_class=Response), server.service

    @router.get("/v1/models")
    async def models() -> Response:
        """List the models that may be asked."""
        return Json({"object": "list", "data": [model_entry(model) for model in service.models()]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """Tell of one model."""
        return Json(model_entry(_find(service, name)))

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        """Return the tokens of a text or of messages (vLLM)."""
        tokens = await to_thread(service.encode, body.asked(server.limits))
        texts = await to_thread(service.token_texts, body.model, tokens) if body.return_token_strs else None
        most = _find(service, body.model).max_model_len
        return Json({"count": len(tokens), "max_model_len": most, "tokens": tokens, "token_strs": texts})

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        """Return the text of tokens (vLLM)."""
        return Json({"prompt": await to_thread(service.decode, body.model, body.tokens)})

    @router.post("/v1/load_lora_adapter")
    async def load_adapter(body: LoadAdapterBody) -> Response:
        """Let an adapter be asked by a name (vLLM)."""
        _check_loads(server)
        await service.load_adapter(body.lora_name, body.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    async def unload_adapter(body: UnloadAdapterBody) -> Response:
        """Forget an adapter (vLLM)."""
        _check_loads(server)
        await service.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router


def _find(service: Service, name: str | None) -> ServedModel:
    models: Any = {model.name: model for model in service.models()}
    found = models.get(name) if name is not None else next(iter(models.values()), None)
    if found is None:
        raise RefusedError(f"no model {name!r}; there are {', '.join(models)}", 404, "model", "model_not_found")
    return found  # type: ignore[no-any-return]


def _check_loads(server: Server) -> None:
    if not server.access.loads_adapters:
        raise RefusedError("Adapters are not loaded over HTTP, unless the server was started so that they are", 403)

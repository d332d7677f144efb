"""Errors as clients read them: in OpenAI's form, or in Anthropic's on its own routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.serving.asking import RefusedError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_OPENAI = {500: "server_error", 503: "service_unavailable_error", 504: "timeout_error"}
_ANTHROPIC = {413: "request_too_large", 500: "api_error", 503: "overloaded_error", 504: "timeout_error"}


def openai_error(error: RefusedError) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    kind = {**_TYPES, **_OPENAI}.get(error.status, "invalid_request_error")
    return {"error": {"message": _sentence(error), "type": kind, "param": error.field, "code": error.code}}


def anthropic_error(error: RefusedError, request_id: str | None = None) -> dict[str, Any]:
    """Return an error in Anthropic's form."""
    kind = {**_TYPES, **_ANTHROPIC}.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": _sentence(error)}, "request_id": request_id}


def _sentence(error: RefusedError) -> str:
    text = str(error)
    text = text if text.endswith((".", "!", "?")) else f"{text}."
    return f"{error.field}: {text}" if error.field and not text.startswith(error.field) else text


def invalid_body(faults: Sequence[Mapping[str, Any]], body: Any) -> RefusedError:
    """Return why a body was not valid: the fault that lies deepest, as it tells most.

    Args:
        faults: as pydantic tells them.
        body: that was given.
    """
    if isinstance(body, bytes):
        return RefusedError("The body must be JSON, and `Content-Type: application/json` say so", 415)
    if faults[0]["type"] == "json_invalid":
        return RefusedError(f"The body is no JSON: {faults[0]['ctx']['error']} (character {faults[0]['loc'][-1]})")
    if len(faults[0]["loc"]) == 1 and faults[0]["type"] == "missing":
        return RefusedError("The request has no body; send JSON")
    path, fault = max(((_path(fault, body), fault) for fault in faults), key=lambda found: len(found[0]))
    error = fault.get("ctx", {}).get("error")
    if isinstance(error, RefusedError):
        path = (*path, *([error.field] if error.field else []))
        return RefusedError(str(error), error.status, ".".join(path) or None, error.code)
    said = str(fault["msg"]).removeprefix("Value error, ")
    given = "" if fault["type"] == "missing" or isinstance(fault["input"], dict | list) else f": {fault['input']!r:.80}"
    return RefusedError(f"{said}{given}", field=".".join(path) or None)


def _path(fault: Mapping[str, Any], body: Any) -> tuple[str, ...]:
    """The names and numbers by which one comes to a fault; names of types, which pydantic puts between, go."""
    path: list[str] = []
    for part in fault["loc"][1:]:
        is_name = isinstance(body, dict) and part in body
        if is_name or (isinstance(body, list) and isinstance(part, int)):
            path.append(f"{part:.80}" if is_name else str(part))
            body = body[part]
    if fault["type"] == "missing":
        path.append(str(fault["loc"][-1]))
    return tuple(path)

"""A service whose answers are scripted, and an app with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from glmtune.serving.app import make_app
from glmtune.serving.asking import (
    Accepted,
    Access,
    Asked,
    Ended,
    Event,
    Limits,
    Load,
    Piece,
    RefusedError,
    Said,
    ServedModel,
)

Script = Callable[[Asked], AsyncGenerator[Event, None]]
TOKENS = ["1", "+", "=", " 4", "2", "你", "好", "</s>"]


class FakeService:
    """Answers as `script` says. A prompt of N characters has N tokens.

    Attributes:
        asked: all that was asked.
        closed: how many generators have ended, by themselves or not.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.closed = 0
        self.script: Script = spoken("4", "2")
        self.fault: str | None = None
        self.is_ready = True
        self.adapters: dict[str, str] = {}

    def models(self) -> Sequence[ServedModel]:
        tuned = ServedModel("nano", 1, "runs/nano", "base", 128, "arithmetic", self.is_ready, "12 of 12 as reported")
        return [tuned, ServedModel("base", 1, "checkpoints/nano", max_model_len=128)]

    async def answer(self, asked: Asked) -> AsyncGenerator[Event, None]:
        self.asked.append(asked)
        if asked.model not in (None, "nano", "base"):
            raise RefusedError(f"no model {asked.model!r}", 404, "model", "model_not_found")
        if self.fault:
            raise RefusedError("The model has failed", 503)
        events = self.script(asked)
        try:
            async for event in events:
                yield event
        finally:
            self.closed += 1
            await events.aclose()

    def encode(self, asked: Asked) -> list[int]:
        if asked.model not in (None, "nano", "base"):
            raise RefusedError(f"no model {asked.model!r}", 404, "model", "model_not_found")
        prompt = asked.prompt if asked.is_raw else "".join(str(m["content"]) for m in asked.prompt)  # type: ignore
        return [TOKENS.index(one) if one in TOKENS else 0 for one in prompt] if isinstance(prompt, str) else [*prompt]

    def decode(self, model: str | None, token_ids: Sequence[int]) -> str:
        return "".join(self.token_texts(model, token_ids))

    def token_texts(self, model: str | None, token_ids: Sequence[int]) -> list[str]:
        if any(not 0 <= token < len(TOKENS) for token in token_ids):
            raise RefusedError("no such token", field="tokens")
        return [TOKENS[token] for token in token_ids]

    async def load_adapter(self, name: str, path: str) -> None:
        self.adapters[name] = path

    async def unload_adapter(self, name: str) -> None:
        if self.adapters.pop(name, None) is None:
            raise RefusedError(f"no adapter {name!r}", 404, "lora_name")

    def score(self, model: str | None, prompt: Any, completion: str, calls: Sequence[Any] = ()) -> Mapping[str, Any]:
        return {"verdict": "right" if completion == "42" else "wrong"}

    def runs(self) -> Sequence[Mapping[str, Any]]:
        return [{"name": "nano", "task": "arithmetic", "base": "nano", "accuracy": 0.5, "has_report": True}]

    def report(self, run: str) -> bytes | None:
        return b"<!doctype html><p>report" if run == "nano" else None

    def load(self) -> Load:
        return Load(1, 2, 300)


def spoken(
    *texts: str,
    said: Sequence[dict[str, Any]] = (),
    calls: Sequence[dict[str, Any]] = (),
    finish_reason: str = "stop",
    **ended: Any,
) -> Script:
    """A script that says texts, a token each; then what the server's tools say, and an end."""

    async def script(asked: Asked) -> AsyncGenerator[Event, None]:
        yield Accepted(asked.model or "nano", 3)
        for place, text in enumerate(texts):
            for index in range(asked.n):
                top = [[(place, -0.5), (7, -float("inf"))][: asked.top_logprobs]] if asked.logprobs else None
                yield Piece(index, text, [place], [-0.5] if asked.logprobs else None, top)
        for index in range(asked.n):
            for message in said:
                yield Said(index, message)
            message = {"role": "assistant", "content": "".join(texts), **({"tool_calls": [*calls]} if calls else {})}
            yield Ended(index, message, finish_reason, len(texts), 3, **ended)  # type: ignore[arg-type]

    return script


def called(name: str, **arguments: Any) -> dict[str, Any]:
    """A call of a tool."""
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


async def endless(asked: Asked) -> AsyncGenerator[Event, None]:
    """A script that never ends."""
    yield Accepted("nano", 3)
    while True:
        yield Piece(0, "0" * 1000, [0])
        await asyncio.sleep(0.001)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


Asks = Callable[..., Any]


@pytest.fixture
def client_of(service: FakeService) -> Callable[..., Any]:
    """A client of an app with limits and keys."""

    @contextmanager
    def make(access: Access | None = None, **limits: Any) -> Iterator[TestClient]:
        with TestClient(
            make_app(service, Limits(**limits), access or Access()), raise_server_exceptions=False
        ) as client:
            yield client

    return make


@pytest.fixture
def client(client_of: Callable[..., Any]) -> Iterator[TestClient]:
    with client_of() as client:
        yield client

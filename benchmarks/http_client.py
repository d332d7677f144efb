"""A small client of one server, as light as the benchmark of a server on the same two cores needs it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"


@dataclass
class Answered:
    """What came of one request; times in seconds from its beginning, None of what did not come."""

    status: int = 0
    text: str = ""
    tokens: int = 0
    first: float | None = None
    last: float | None = None
    chunks: list[str] = field(default_factory=list)


@asynccontextmanager
async def sent(port: int, path: str, body: Any) -> AsyncIterator[asyncio.StreamReader]:
    """A request that has been sent, and its response; closed at the end, whatever has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    try:
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        yield reader
    finally:
        writer.close()


async def ask(port: int, body: dict[str, Any], leave_after: int | None = None) -> Answered:
    """Ask for a streamed answer, and read it; or as many chunks of it as are wanted."""
    found, start = Answered(), time.perf_counter()
    async with sent(port, CHAT, {**body, "stream": True, "stream_options": {"include_usage": True}}) as reader:
        found.status = int((await reader.readline()).split()[1])
        async for line in reader:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            chunk = json.loads(line[6:])
            if usage := chunk.get("usage"):
                found.tokens = usage["completion_tokens"]
            for choice in chunk.get("choices", ()):
                if content := choice["delta"].get("content"):
                    found.text += content
                    found.last = time.perf_counter() - start
                    found.first = found.first or found.last
                    found.chunks.append(content)
            if leave_after is not None and len(found.chunks) >= leave_after:
                break
    return found

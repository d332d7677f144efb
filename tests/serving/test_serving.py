"""A real server: slow clients, ones that go away, many of them, and its end."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.conftest import FakeService, endless
from serving.live import live, wait_for
from serving.test_openai import ASKED, CHAT, chunks_of

from glmtune.serving import serving
from glmtune.serving.asking import Accepted, Asked, Event, Limits, Piece

BODY = json.dumps({**ASKED, "stream": True}).encode()
HEAD = (
    f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


BEGINNINGS = [b"GET /hea", b"GET /health HTTP/1.1\r\nhost: x\r\n"]


@pytest.mark.parametrize(
    ("beginning", "is_second"), [(b"", False), *((beginning, second) for beginning in BEGINNINGS for second in (0, 1))]
)
def test_heads_that_do_not_come_are_not_waited_for(service: FakeService, beginning: bytes, is_second: bool) -> None:
    with live(service, Limits(header_seconds=0.2)) as server, connect(server.port) as connection:
        if is_second:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(65536)
        connection.sendall(beginning)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b'{"error":' in answer


def test_a_head_in_time_may_wait_for_its_answer(service: FakeService) -> None:
    service.script = endless
    limits = Limits(header_seconds=0.1, answer_seconds=0.5)
    with live(service, limits) as server:
        last = chunks_of(httpx.post(server.url + CHAT, json={**ASKED, "stream": True}).text)[-1]
    assert last["error"]["code"] == "deadline_exceeded"


def test_bodies_that_do_not_come_are_not_waited_for(service: FakeService) -> None:
    with live(service, Limits(body_seconds=0.2)) as server, connect(server.port) as connection:
        connection.sendall(HEAD + BODY[:5])
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b'{"error":' in answer


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [2_000, 10_000])
def test_bodies_that_are_too_long(service: FakeService, size: int, chunked: bool) -> None:
    content: Any = (b"x" * 100 for _ in range(size // 100)) if chunked else b"x" * size
    with live(service, Limits(body=1000)) as server:
        response = httpx.post(server.url + CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413 and response.json()["error"]["code"] == "request_too_large"


def test_what_is_no_http(service: FakeService) -> None:
    with live(service) as server, connect(server.port) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400")


def test_heads_that_are_too_long(service: FakeService) -> None:
    with live(service) as server, connect(server.port) as connection:
        with suppress(ConnectionError):  # what has not been read may cut off what is said of it
            connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"x" * 2 * serving.HEAD_BYTES)
            assert read_all(connection).startswith(b"HTTP/1.1 400")
        wait_for(lambda: not server.server.server_state.connections)


def test_too_many_connections(service: FakeService) -> None:
    with live(service, Limits(connections=2)) as server:
        first, second = connect(server.port), connect(server.port)
        wait_for(lambda: len(server.server.server_state.connections) == 2)
        with connect(server.port) as third:
            answer = read_all(third)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer and b'{"error":' in answer
        first.close()
        second.close()
        wait_for(lambda: not server.server.server_state.connections)
        assert httpx.get(server.url + "/health").status_code == 200


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_goes_away_is_not_answered_on(service: FakeService, streams: bool) -> None:
    service.script = endless
    body = json.dumps({**ASKED, "stream": streams}).encode()
    with live(service) as server:
        with connect(server.port) as connection:
            connection.sendall(HEAD.replace(str(len(BODY)).encode(), str(len(body)).encode()) + body)
            wait_for(lambda: len(service.asked) == 1)
        wait_for(lambda: service.closed == 1)


async def flooding(asked: Asked) -> AsyncGenerator[Event, None]:
    yield Accepted("nano", 3)
    while True:
        yield Piece(0, "0" * 200_000, [0])
        await asyncio.sleep(0)


def test_who_does_not_read_is_not_written_to(service: FakeService) -> None:
    service.script = flooding
    with live(service, Limits(write_seconds=0.2)) as server, connect(server.port) as connection:
        connection.sendall(HEAD + BODY)
        wait_for(lambda: service.closed == 1)
        wait_for(lambda: not server.server.server_state.connections)


def test_the_end_of_the_server_is_told(service: FakeService) -> None:
    service.script = endless
    with live(service, timeout=0.2) as server:
        client = httpx.Client(timeout=30)
        with client.stream("POST", server.url + CHAT, json={**ASKED, "stream": True}) as response:
            pieces = response.iter_text()
            text = next(pieces)
            server.server.should_exit = True
            text += "".join(pieces)
        assert chunks_of(text)[-1]["error"]["code"] == "server_ending"
        server.end()


def test_a_server_whose_model_has_failed_ends(service: FakeService, monkeypatch: Any) -> None:
    monkeypatch.setattr(serving, "FAULT_SECONDS", 0.5)
    with live(service) as server:
        service.fault = "the worker died"
        assert httpx.get(server.url + "/health").status_code == 503
        server.thread.join(20)
        assert not server.thread.is_alive()


SERVER = """
import sys
from serving.conftest import FakeService
from glmtune.serving.app import make_app
from glmtune.serving.asking import Access, Limits
from glmtune.serving import serving
serving.FAULT_SECONDS = 0.0
service, limits = FakeService(), Limits()
service.fault = sys.argv[2] or None
app = make_app(service, limits, Access())
code = serving.serve(serving.make_server(app, service, "127.0.0.1", int(sys.argv[1]), limits, 1.0))
print("behind the server", flush=True)
sys.exit(code)
"""


@pytest.mark.parametrize(("fault", "code"), [("", 0), ("the worker died", 1)])
def test_exit_codes(fault: str, code: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port), fault]
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 60
    while not fault and time.monotonic() < deadline:
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
            process.terminate()
            break
        except httpx.TransportError:
            time.sleep(0.1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code and said == b"behind the server\n"

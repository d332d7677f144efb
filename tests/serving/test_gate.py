"""What every request passes: keys, limits, ids, log lines; and what goes wrong stays with the one it happens to."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from serving.conftest import FakeService, endless, spoken
from serving.test_openai import ASKED, CHAT, chunks_of
from starlette.testclient import TestClient

from glmtune.serving.app import make_app
from glmtune.serving.asking import Accepted, Access, Asked, Event, Limits, Piece, RefusedError

KEYS = Access(keys=("first-key", "zweiter-schlüssel"))
JSON = {"content-type": "application/json"}


def logged(caplog: Any) -> str:
    """What we log, and not the client."""
    return "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))


@pytest.mark.parametrize(
    ("headers", "is_known"),
    [
        ({"authorization": "Bearer first-key"}, True),
        ({"authorization": "bearer  first-key "}, True),
        ({"authorization": "Bearer zweiter-schlüssel".encode()}, True),
        ({"x-api-key": "first-key"}, True),
        ({"authorization": "Bearer wrong", "x-api-key": "first-key"}, True),
        ({}, False),
        ({"authorization": "Bearer "}, False),
        ({"authorization": "Bearer first-ke"}, False),
        ({"authorization": "Basic first-key"}, False),
        ({"authorization": "first-key"}, False),
        ({"x-api-key": "Bearer first-key"}, False),
    ],
)
def test_keys(client_of: Any, caplog: Any, headers: dict[str, Any], is_known: bool) -> None:
    caplog.set_level(logging.DEBUG)
    with client_of(KEYS) as client:
        for method, path in (
            ("POST", CHAT),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/nope"),
            ("POST", "/"),
        ):
            body = json.dumps(ASKED if path == CHAT else {"prompt": "1"})
            response = client.request(method, path, headers={**JSON, **headers}, content=body)
            assert (response.status_code != 401) is is_known
            if not is_known:
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.json()["error"]["code"] == "invalid_api_key"
        for path in ("/health", "/ready", "/page/none.js"):
            assert client.get(path).status_code in (200, 404)
    assert "first-key" not in logged(caplog)


def test_a_key_in_the_wrong_place_is_no_key(client_of: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    with client_of(KEYS) as client:
        response = client.post(f"{CHAT}?api_key=first-key", json={**ASKED, "api_key": "first-key"})
    assert response.status_code == 401 and "address" in response.json()["error"]["message"]
    assert "first-key" not in logged(caplog) + response.text


def test_anthropics_routes_have_anthropics_errors(client_of: Any) -> None:
    with client_of(KEYS) as client:
        assert client.post("/v1/messages", json={}).json()["error"]["type"] == "authentication_error"
        assert client.get("/v1/messages", headers={"x-api-key": "first-key"}).json()["type"] == "error"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"null", 400),
        (b"[]", 400),
        (b"\xff\xfe\x00", 400),
        (b'{"messages": "\xff"}', 400),
        (b"[" * 100_000, 400),
        (b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}", 400),
        (b'{"tools": ' + b'{"a":' * 400 + b"1" + b"}" * 400 + b"}", 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"temperature": NaN}', 400),
        (b'{"temperature": -Infinity}', 400),
        (b'{"temperature": 1e999}', 400),
        (b'{"\\ud800": 1}', 400),
        (b'{"model": "\\udc00"}', 400),
        (b"x" * 2000, 413),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses", "/v1/completions", "/", "/tokenize"])
def test_what_is_no_request_is_refused(client_of: Any, path: str, content: bytes, status: int) -> None:
    most = 1500 if status == 413 else 2**20
    with client_of(body=most) as client:
        response = client.post(path, content=content, headers=JSON)
        assert response.status_code == status and response.json()["error"]["message"]
        assert client.get("/health").status_code == 200


def test_duplicate_names_are_one(client: TestClient, service: FakeService) -> None:
    content = b'{"prompt": "a", "prompt": "b"}'
    assert client.post("/v1/completions", content=content, headers=JSON).status_code == 200
    assert service.asked[0].prompt == "b"


def test_json_must_be_said_to_be_json(client: TestClient) -> None:
    """Pages of others may send text without asking first, but not JSON."""
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        assert client.post(CHAT, content=json.dumps(ASKED), headers=headers).status_code == 415


def test_unknown_paths_and_methods(client: TestClient) -> None:
    assert client.get("/nope").json()["error"]["type"] == "not_found_error"
    response = client.get(CHAT)
    assert response.status_code == 405 and response.headers["allow"] == "POST" and "error" in response.json()
    assert client.post(f"{CHAT}/", json=ASKED).status_code == 404


def test_request_ids(client: TestClient, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "glmtune")
    assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert "id=mine-1" in caplog.text
    for given in ("a" * 65, "a b", "a\tb", "", "ü".encode()):
        made = client.get("/nope", headers={"x-request-id": given}).headers["x-request-id"]
        assert len(made) == 32 and made != given


def test_log_lines_hold_no_prompts(client_of: Any, caplog: Any, service: FakeService) -> None:
    caplog.set_level(logging.INFO, "glmtune")
    asked = {"messages": [{"role": "user", "content": "my secret"}]}
    with client_of() as client:
        client.post(f"{CHAT}?secret=1%0a", json=asked)
        client.get("/a%0ab%1b[31m")
    chat, other = [record.message for record in caplog.records if "glmtune" in record.name]
    assert chat.startswith(f"POST {CHAT} 200 model=nano tokens=3+2 ") and "secret" not in logged(caplog)
    assert other.isprintable()
    with client_of(Access(logs_prompts=True)) as client:
        client.post(CHAT, json=asked)
    assert "my secret" in caplog.text


def test_who_is_refused_before_he_has_said_all_is_not_listened_to(client_of: Any) -> None:
    with client_of(KEYS) as client:
        assert client.post(CHAT, json=ASKED).headers["connection"] == "close"
        known = client.post(CHAT, json={}, headers={"x-api-key": "first-key"})
        assert known.status_code == 400 and "connection" not in known.headers


def test_a_server_that_ends_takes_no_question(client_of: Any) -> None:
    with client_of() as client:
        client.app.state.drain()
        assert client.get("/health").status_code == 200
        for path, body in ((CHAT, ASKED), ("/", {"prompt": "1"})):
            assert client.post(path, json=body).status_code == 503


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("LOCALHOST", 200), ("evil.example:8000", 403)],
)
def test_a_server_of_this_machine_has_no_other_name(client_of: Any, host: str, status: int) -> None:
    with client_of(Access(hosts=("localhost", "127.0.0.1", "::1"))) as client:
        answered = client.post(CHAT, json=ASKED, headers={"host": host})
    assert answered.status_code == status
    assert status == 200 or answered.json()["error"]["code"] == "wrong_host"


def test_pages_of_others(client_of: Any) -> None:
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with client_of(Access(keys=("key",), origins=("https://a.example",))) as client:
        allowed = client.options(CHAT, headers={"origin": "https://a.example", **preflight})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-credentials" not in allowed.headers
        refused = client.post(CHAT, json=ASKED, headers={"origin": "https://a.example"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://a.example"
        other = client.options(CHAT, headers={"origin": "https://b.example", **preflight})
        assert "access-control-allow-origin" not in other.headers
    with client_of() as client:
        assert "access-control-allow-origin" not in client.get("/health", headers={"origin": "https://a"}).headers
    with client_of(Access(origins=("*",))) as client:
        headers = client.get("/health", headers={"origin": "https://a"}).headers
        assert headers["access-control-allow-origin"] == "*" and "access-control-allow-credentials" not in headers


def failing(after: int, error: Exception) -> Any:
    async def script(asked: Asked) -> AsyncGenerator[Event, None]:
        if after:
            yield Accepted("nano", 3)
        for _ in range(after - 1):
            yield Piece(0, "4", [0])
        raise error

    return script


def test_a_full_queue(client: TestClient, service: FakeService) -> None:
    service.script = failing(0, RefusedError("The queue is full", 429, code="queue_full", retry_after=7))
    for streams in (False, True):
        response = client.post(CHAT, json={**ASKED, "stream": streams})
        assert response.status_code == 429 and response.headers["retry-after"] == "7"
        assert response.json()["error"] == {
            "message": "The queue is full.",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_error_is_told_without_its_traceback(
    client: TestClient, service: FakeService, caplog: Any, after: int
) -> None:
    service.script = failing(after, KeyError("inner secret"))
    response = client.post(CHAT, json=ASKED)
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    streamed = client.post(CHAT, json={**ASKED, "stream": True})
    error = chunks_of(streamed.text)[-1]["error"] if after else streamed.json()["error"]
    assert error["type"] == "server_error"
    assert "secret" not in response.text + streamed.text
    for answer in (response, streamed):
        assert answer.headers["x-request-id"] in caplog.text
    service.script = spoken("4")
    assert client.post(CHAT, json=ASKED).status_code == 200


async def ask(app: Any, body: dict[str, Any], receive: Any = None) -> list[dict[str, Any]]:
    """Send one request; return what was sent back."""
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def first() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await receive()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}
    await app(scope, first, send)
    return sent


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_goes_away_is_not_answered_on(service: FakeService, streams: bool) -> None:
    service.script = endless
    app = make_app(service, Limits(), Access())

    async def goes_away() -> None:
        await asyncio.sleep(0.05)

    asyncio.run(ask(app, {**ASKED, "stream": streams}, goes_away))
    assert service.closed == 1


def test_the_end_of_the_server(service: FakeService) -> None:
    service.script = endless
    app = make_app(service, Limits(), Access())

    async def ends() -> tuple[list[dict[str, Any]], ...]:
        forever = asyncio.Event().wait
        streamed = asyncio.ensure_future(ask(app, {**ASKED, "stream": True}, forever))
        whole = asyncio.ensure_future(ask(app, ASKED, forever))
        while len(service.asked) < 2:
            await asyncio.sleep(0.01)
        app.state.drain()
        late = await ask(app, ASKED, forever)
        assert not streamed.done() and not whole.done()
        app.state.end()
        return await streamed, await whole, late

    streamed, whole, late = asyncio.run(ends())
    assert late[0]["status"] == 503 and (b"retry-after", b"5") in late[0]["headers"]
    assert whole[0]["status"] == 503 and b"server_ending" in whole[1]["body"]
    *_, last = chunks_of("".join(message["body"].decode() for message in streamed[1:]))
    assert last["error"]["code"] == "server_ending"
    assert service.closed == 2 and len(service.asked) == 2

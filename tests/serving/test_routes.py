"""What stands beside the answers: models, tokens, adapters, health, counts, and what the page asks."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving.conftest import FakeService
from serving.test_openai import ASKED, CALL, CHAT
from starlette.testclient import TestClient

from glmtune.serving import page_routes
from glmtune.serving.asking import Access


def test_models(client: TestClient) -> None:
    nano, base = client.get("/v1/models").json()["data"]
    assert nano["id"] == "nano" and nano["parent"] == base["id"] == "base" and nano["object"] == "model"
    assert client.get("/v1/models/base").json() == base
    response = client.get("/v1/models/gpt")
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"


def test_tokens(client: TestClient, service: FakeService) -> None:
    body = client.post("/tokenize", json={"prompt": "1+1=", "return_token_strs": True}).json()
    assert body == {"count": 4, "max_model_len": 128, "tokens": [0, 1, 0, 2], "token_strs": ["1", "+", "1", "="]}
    body = client.post("/tokenize", json={**ASKED, "add_generation_prompt": True, "add_special_tokens": False}).json()
    assert body["tokens"] == [0, 1, 0, 2] and body["token_strs"] is None
    assert client.post("/detokenize", json={"tokens": [0, 1, 0, 2]}).json() == {"prompt": "1+1="}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {**ASKED, "prompt": "1"}, "prompt"),
        ("/tokenize", {"prompt": "1", "add_special_tokens": False}, "add_special_tokens"),
        ("/tokenize", {**ASKED, "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "1", "model": "gpt"}, "model"),
        ("/detokenize", {"tokens": [99]}, "tokens"),
        ("/detokenize", {"tokens": ["1"]}, "tokens.0"),
        ("/v1/load_lora_adapter", {"lora_name": "x"}, "lora_path"),
        ("/v1/unload_lora_adapter", {"lora_name": "x"}, "lora_name"),
        ("/api/score", {"completion": "2"}, "prompt"),
        ("/api/score", {**ASKED, "completion": None}, "completion"),
    ],
)
def test_faults_are_named(client_of: Any, path: str, body: dict[str, Any], field: str) -> None:
    with client_of(Access(loads_adapters=True)) as client:
        response = client.post(path, json=body)
    assert response.status_code in (400, 404) and response.json()["error"]["param"] == field


def test_adapters_are_loaded_where_that_is_allowed(client_of: Any, service: FakeService) -> None:
    body = {"lora_name": "a", "lora_path": "runs/a"}
    with client_of() as client:
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 403 and not service.adapters
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "a"}).status_code == 403
    with client_of(Access(loads_adapters=True)) as client:
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 200
        assert service.adapters == {"a": "runs/a"}
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "a"}).status_code == 200
    assert not service.adapters


def test_health_and_readiness(client: TestClient, service: FakeService) -> None:
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    service.is_ready = False
    response = client.get("/ready")
    assert response.status_code == 503 and response.json()["models"]["nano"]["remark"] == "12 of 12 as reported"
    assert client.get("/health").status_code == 200
    service.is_ready, service.fault = True, "the worker died"
    assert client.get("/health").json() == {"status": "the worker died"}
    assert client.get("/health").status_code == client.get("/ready").status_code == 503


def counted(client: TestClient) -> dict[tuple[str, ...], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_all_is_counted(client: TestClient) -> None:
    for streams in (False, True):
        client.post(CHAT, json={**ASKED, "stream": streams})
    client.post(CHAT, json={})
    client.get("/v1/models/gpt")
    for word in range(3):
        client.get(f"/{word}")
    counts = counted(client)
    assert counts[("glmtune_requests_total", *sorted((CHAT, "200", "nano")))] == 2
    assert counts[("glmtune_requests_total", *sorted((CHAT, "400", "")))] == 1
    assert counts[("glmtune_requests_total", *sorted(("/v1/models/{name:path}", "404", "")))] == 1
    assert counts[("glmtune_requests_total", *sorted(("other", "404", "")))] == 3
    assert counts["glmtune_tokens_total", "nano", "prompt"] == 6
    assert counts["glmtune_tokens_total", "completion", "nano"] == 4
    assert counts["glmtune_time_to_first_token_seconds_count", "nano"] == 2
    assert [counts[(f"glmtune_{name}_now",)] for name in ("running", "waiting", "tokens")] == [1, 2, 300]


def test_what_the_page_asks(client: TestClient) -> None:
    assert [model["task"] for model in client.get("/api/models").json()] == ["arithmetic", None]
    assert client.get("/api/runs").json()[0]["name"] == "nano"
    response = client.get("/api/runs/nano/report")
    assert response.text.endswith("report") and response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert client.get("/api/runs/none/report").status_code == 404
    scored = client.post("/api/score", json={**ASKED, "completion": "42", "tool_calls": [CALL]})
    assert scored.json() == {"verdict": "right"}
    wrong = client.post("/api/score", json={"prompt": "1+1=", "completion": "2", "tool_calls": [{"function": {}}]})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"].startswith("tool_calls.0.function")


def test_only_files_of_the_page_are_given(client: TestClient, tmp_path: Any, monkeypatch: Any) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html>")
    (folder / "page.js").write_text("'use strict'")
    (tmp_path / "secret").write_text("secret")
    (folder / "sub").mkdir()
    monkeypatch.setattr(page_routes, "FOLDER", folder)
    index = client.get("/")
    assert index.status_code == 200 and index.headers["content-type"] == "text/html; charset=utf-8"
    for piece in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"):
        assert piece in index.headers["content-security-policy"]
    assert index.headers["x-content-type-options"] == "nosniff" and index.headers["referrer-policy"] == "no-referrer"
    assert "javascript" in client.get("/page/page.js").headers["content-type"]
    for name in ("..%2Fsecret", "%2e%2e/secret", "sub", "none", "", "%00"):
        assert client.get(f"/page/{name}").status_code == 404

"""Whatever is sent, the server does not fail: what it does not take, it refuses in the one form of errors."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.config import (
    CoveragePhaseConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from serving.conftest import FakeService
from serving.test_anthropic import ASKED as ANTHROPIC
from serving.test_openai import ASKED as CHAT
from serving.test_responses import ASKED as RESPONSES
from starlette.testclient import TestClient

from glmtune.serving.app import make_app
from glmtune.serving.asking import Access, Limits

SERVICE = FakeService()
APP = make_app(SERVICE, Limits(body=100_000), Access(loads_adapters=True))
CLIENT = TestClient(APP, raise_server_exceptions=False)
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "1+1="},
    "/v1/messages": ANTHROPIC,
    "/v1/messages/count_tokens": {"messages": ANTHROPIC["messages"]},
    "/v1/responses": RESPONSES,
    "/tokenize": {"prompt": "1"},
    "/detokenize": {"tokens": [1]},
    "/": {"prompt": "1"},
    "/api/score": {"prompt": "1", "completion": "2"},
    "/v1/load_lora_adapter": {"lora_name": "a", "lora_path": "b"},
}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["auto", "user", "function", "json_schema", "text", "\ud800", 2**70, -1, 0]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=3)
            | st.sampled_from(
                ["type", "role", "content", "function", "name", "json_schema", "schema", "text", "format"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def names_of(path: str) -> list[str]:
    """The fields of a route's body."""
    schema = APP.openapi()
    reference = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return [*schema["components"]["schemas"][reference.rpartition("/")[2]]["properties"], "user", "store", "nonsense"]


def is_well_formed(path: str, response: Any) -> bool:
    """An error has the form of its dialect, and says something."""
    body = response.json()
    if path.startswith("/v1/messages"):
        return body["type"] == "error" and bool(body["error"]["type"] and body["error"]["message"])
    return set(body["error"]) == {"message", "type", "param", "code"} and bool(body["error"]["message"])


@pytest.mark.parametrize("path", BODIES)
@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_answered_or_refused(path: str, data: st.DataObject) -> None:
    changes = data.draw(st.dictionaries(st.sampled_from(names_of(path)), VALUES, max_size=2))
    body = data.draw(st.just({**BODIES[path], **changes}) | VALUES)
    content = json.dumps(body)
    response = CLIENT.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code < 500
    assert response.status_code == 200 or is_well_formed(path, response)


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_that_are_changed_are_taken(path: str) -> None:
    assert CLIENT.post(path, json=BODIES[path]).status_code == 200


@given(content=st.binary(max_size=200))
@settings(max_examples=60)
def test_any_bytes_are_refused(content: bytes) -> None:
    response = CLIENT.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500 and is_well_formed("", response)


few = PhasesConfig(coverage=CoveragePhaseConfig(enabled=False))
by_chance = schemathesis.openapi.from_asgi(
    "/openapi.json", APP, config=SchemathesisConfig(projects=ProjectsConfig(default=ProjectConfig(phases=few)))
)
thorough = schemathesis.openapi.from_asgi("/openapi.json", APP)


def check_case(case: Any) -> None:
    """What the description allows and what it does not: never 5xx, and all that is refused in the one form."""
    response = case.call()
    assert response.status_code < 500
    assert 200 <= response.status_code < 300 or "error" in response.json()


@by_chance.parametrize()
@settings(max_examples=5, suppress_health_check=list(HealthCheck))
def test_the_description_is_kept_to(case: Any) -> None:
    check_case(case)


@pytest.mark.slow
@thorough.parametrize()
@settings(suppress_health_check=list(HealthCheck))
def test_the_description_is_kept_to_at_its_edges(case: Any) -> None:
    check_case(case)

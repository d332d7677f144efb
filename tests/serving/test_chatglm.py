"""The dialect of the original ChatGLM-6B `api.py`."""

from datetime import datetime
from typing import Any

import pytest
from serving.conftest import FakeService, spoken
from serving.test_openai import SAID
from starlette.testclient import TestClient


def test_a_prompt_with_its_history(client: TestClient, service: FakeService) -> None:
    body = {"prompt": "1+1=", "history": [["你好", "好"]], "max_length": 20, "top_p": 0.7, "temperature": 0.95}
    answer = client.post("/", json=body).json()
    assert answer["response"] == "42" and answer["history"] == [["你好", "好"], ["1+1=", "42"]]
    assert answer["status"] == 200 and datetime.strptime(answer["time"], "%Y-%m-%d %H:%M:%S")
    assert set(answer) == {"response", "history", "status", "time"}
    (asked,) = service.asked
    assert [message["role"] for message in asked.prompt] == ["user", "assistant", "user"]
    assert asked.max_tokens == 20 - 7 and (asked.top_p, asked.temperature) == (0.7, 0.95)


def test_what_is_left_out_is_as_the_run_says(client: TestClient, service: FakeService) -> None:
    service.script = spoken("2", said=SAID)
    assert client.post("/", json={"prompt": "1+1=", "history": None}).json()["messages"][1] == SAID[1]
    assert service.asked[0].max_tokens is service.asked[0].temperature is service.asked[0].top_p is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x", "history": [["a"]]}, "history.0"),
        ({"prompt": "x", "history": [["a", None]]}, "history.0.1"),
        ({"prompt": "x", "history": [["a", "b"]] * 501}, "history"),
        ({"prompt": "1+1=", "max_length": 4}, "max_length"),
        ({"prompt": "x", "stream": True}, "stream"),
    ],
)
def test_faults_are_named(client: TestClient, body: dict[str, Any], field: str) -> None:
    response = client.post("/", json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == field

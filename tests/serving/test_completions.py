"""OpenAI's older dialect: a text is gone on with."""

from typing import Any

import pytest
from openai.types import completion_create_params
from serving.conftest import FakeService
from serving.test_openai import chunks_of
from starlette.testclient import TestClient

from glmtune.serving.dialects.completions import CompletionBody

PATH = "/v1/completions"


@pytest.mark.parametrize(("prompt", "asked"), [("1+1=", "1+1="), ([0, 1], [0, 1]), (["1+"], "1+"), ([[0, 1]], [0, 1])])
def test_a_prompt_is_gone_on_with(client: TestClient, service: FakeService, prompt: Any, asked: Any) -> None:
    body = client.post(PATH, json={"prompt": prompt, "n": 2, "best_of": 2, "max_tokens": 5, "echo": False}).json()
    assert body["object"] == "text_completion" and [choice["text"] for choice in body["choices"]] == ["42", "42"]
    assert service.asked[0].prompt == asked and service.asked[0].is_raw and service.asked[0].max_tokens == 5


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_a_stream_says_what_the_whole_does(client: TestClient, logprobs: int | None) -> None:
    asked = {"prompt": "1+1=", "logprobs": logprobs}
    whole = client.post(PATH, json=asked).json()
    response = client.post(PATH, json={**asked, "stream": True, "stream_options": {"include_usage": True}})
    *chunks, usage = chunks_of(response.text)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"] == "42"
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    told = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    if logprobs is None:
        assert told == [] and whole["choices"][0]["logprobs"] is None
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs") if logprobs else ():
        assert [value for piece in told for value in piece[name]] == whole["choices"][0]["logprobs"][name]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "messages": []}, "messages"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(client: TestClient, body: dict[str, Any], field: str) -> None:
    response = client.post(PATH, json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == field


def test_every_field_of_openai_is_decided_on() -> None:
    official = completion_create_params.CompletionCreateParamsBase.__annotations__.keys()
    assert official - CompletionBody.model_fields.keys() <= CompletionBody.unsupported.keys()
    assert not CompletionBody.model_fields.keys() & CompletionBody.unsupported.keys()

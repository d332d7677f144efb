"""OpenAI's chat dialect: what is asked, and what is answered."""

import json
from typing import Any

import pytest
from openai.types.chat import completion_create_params
from serving.conftest import FakeService, called, endless, spoken
from starlette.testclient import TestClient

from glmtune.serving.asking import Format
from glmtune.serving.dialects.openai import ChatBody

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "1+1="}]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
SAID = [
    {"role": "assistant", "content": "", "tool_calls": [called("calculator", expression="1+1")]},
    {"role": "tool", "content": "2", "tool_call_id": "call_1"},
]


def chunks_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream that ends as it must."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def stream(client: TestClient, **more: Any) -> list[dict[str, Any]]:
    response = client.post(CHAT, json={**ASKED, "stream": True, **more})
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    return chunks_of(response.text)


def test_an_answer(client: TestClient) -> None:
    body = client.post(CHAT, json=ASKED).json()
    assert body["object"] == "chat.completion" and body["model"] == "nano"
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "42" and choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert "messages" not in choice
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_says_what_the_whole_does(client: TestClient, service: FakeService, n: int) -> None:
    service.script = spoken("4", "", "2", calls=[called("add", a=1, b="你")], finish_reason="tool_calls")
    asked = {"n": n, "logprobs": True, "top_logprobs": 2, "tools": [TOOL]}
    whole = client.post(CHAT, json={**ASKED, **asked}).json()["choices"]
    chunks = stream(client, **asked)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    for index in range(n):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        deltas = [choice["delta"] for choice in choices]
        assert deltas[0]["role"] == "assistant" and all("role" not in delta for delta in deltas[1:])
        assert "".join(delta.get("content") or "" for delta in deltas) == whole[index]["message"]["content"]
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert [call.pop("index") for call in calls] == [0] and calls == whole[index]["message"]["tool_calls"]
        assert json.loads(calls[0]["function"]["arguments"]) == {"a": 1, "b": "你"}
        tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
        assert tokens == whole[index]["logprobs"]["content"] and len(tokens) == 3
        reasons = [choice["finish_reason"] for choice in choices]
        assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"] and whole[index]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(("options", "tells"), [({"include_usage": True}, True), ({}, False), (None, False)])
def test_usage_stands_in_the_last_chunk_where_it_is_asked_for(client: TestClient, options: Any, tells: bool) -> None:
    *others, last = stream(client, stream_options=options)
    assert (last["choices"] == []) is tells
    if tells:
        assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        assert all(chunk["usage"] is None for chunk in others)


def test_logprobs_are_numbers_of_json(client: TestClient) -> None:
    body = client.post(CHAT, json={**ASKED, "logprobs": True}).json()
    assert [token["top_logprobs"] for token in body["choices"][0]["logprobs"]["content"]] == [[], []]
    body = client.post(CHAT, json={**ASKED, "logprobs": True, "top_logprobs": 2}).json()
    first = body["choices"][0]["logprobs"]["content"][0]
    assert (first["token"], first["logprob"], first["bytes"]) == ("1", -0.5, [49])
    assert [top["logprob"] for top in first["top_logprobs"]] == [-0.5, -9999.0]


def test_what_the_servers_tools_say_is_not_lost(client: TestClient, service: FakeService) -> None:
    service.script = spoken("2", said=SAID)
    (choice,) = client.post(CHAT, json=ASKED).json()["choices"]
    assert choice["message"]["content"] == "2" and "tool_calls" not in choice["message"]
    assert json.loads(choice["messages"][0]["tool_calls"][0]["function"]["arguments"]) == {"expression": "1+1"}
    assert choice["messages"][1] == SAID[1]
    assert stream(client)[-1]["choices"][0]["messages"] == choice["messages"]


def test_a_refusal_is_told(client: TestClient, service: FakeService) -> None:
    service.script = spoken("2", refusal="no working")
    assert client.post(CHAT, json=ASKED).json()["choices"][0]["message"]["refusal"] == "no working"
    assert stream(client)[-1]["choices"][0]["delta"] == {"refusal": "no working"}


def test_all_that_is_asked_arrives(client: TestClient, service: FakeService) -> None:
    given = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "seed": -1,
        "model": "base",
        "n": 2,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}, "strict": True}}
    more = {"max_completion_tokens": 7, "stop": "\n", "tools": [TOOL], "response_format": shape}
    choice = {"type": "function", "function": {"name": "add"}}
    assert client.post(CHAT, json={**ASKED, **given, **more, "tool_choice": choice}).status_code == 200
    (asked,) = service.asked
    assert {name: getattr(asked, name) for name in given} == given
    assert asked.max_tokens == 7 and asked.stop == ("\n",) and asked.tools == [TOOL] and asked.tool_choice == "add"
    assert asked.format == Format("json_schema", {"type": "integer"}, "response_format.json_schema.schema")


def test_messages_come_in_all_shapes(client: TestClient, service: FakeService) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1="}], "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
        {"role": "tool", "content": "2", "tool_call_id": "a"},
    ]
    assert client.post(CHAT, json={"messages": messages}).status_code == 200
    system, user, assistant, tool = service.asked[0].prompt
    assert system == {"role": "system", "content": "Be brief."} and tool == messages[3]
    assert user == {"role": "user", "content": "1+1=", "name": "me"}
    assert assistant["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    ]


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", None),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", {"type": "null"}),
        ({"guided_json": '{"type": "null"}'}, "json_schema", {"type": "null"}),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a"]}, "choice", ["a"]),
        ({"guided_grammar": 'start: "a"'}, "grammar", 'start: "a"'),
        ({"structured_outputs": {"choice": ["a", '"\n你']}}, "choice", ["a", '"\n你']),
    ],
)
def test_what_an_answer_must_be(client: TestClient, service: FakeService, given: Any, kind: str, value: Any) -> None:
    assert client.post(CHAT, json={**ASKED, **given}).status_code == 200
    form = service.asked[0].format
    assert form is not None and (form.kind, form.value) == (kind, value)
    assert form.field.split(".")[0] in given


def test_text_is_no_format(client: TestClient, service: FakeService) -> None:
    assert client.post(CHAT, json={**ASKED, "response_format": {"type": "text"}}).status_code == 200
    assert service.asked[0].format is None


TWO_FORMATS = {"response_format": {"type": "json_object"}, "guided_regex": "a"}


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"audio": {}}, "audio"),
        ({"store": True}, "store"),
        ({"parallel_tool_calls": False, "tools": [TOOL]}, "parallel_tool_calls"),
        ({"max_tokenz": 1}, "max_tokenz"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": "0.5"}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10**30}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 10_000}, "stop"),
        ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "add", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}, "tools": [TOOL]}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools.1"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]}, "tools.0.function.strict"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        (TWO_FORMATS, "guided_regex"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"messages": []}, "messages"),
        ({"messages": "1+1="}, "messages"),
        ({"messages": ASKED["messages"] * 1001}, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"messages": [{"role": "user", "content": "", "tool_calls": [CALL]}]}, "messages.0.tool_calls"),
        ({"model": "gpt"}, "model"),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_what_is_not_supported_is_refused_by_its_name(
    client: TestClient, service: FakeService, more: dict[str, Any], field: str | None, streams: bool
) -> None:
    response = client.post(CHAT, json={**ASKED, "stream": streams, **more})
    error = response.json()["error"]
    assert 400 <= response.status_code < 500 and error["type"].endswith("_error")
    assert error["param"] == (field or "messages.0.content.0.image_url")
    assert error["message"].startswith(error["param"])


@pytest.mark.parametrize("choice", ["required", "none", {"type": "function", "function": {"name": "add"}}])
def test_one_call_of_its_schema_is_promised_where_a_call_is_demanded(
    client: TestClient, service: FakeService, choice: Any
) -> None:
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    more = {"tools": [strict], "tool_choice": choice, "parallel_tool_calls": False}
    assert client.post(CHAT, json={**ASKED, **more}).status_code == 200
    assert service.asked[0].tools == [TOOL]


def test_what_is_harmless_is_taken(client: TestClient) -> None:
    nulls = dict.fromkeys(("logit_bias", "audio", "tools", "stop", "n", "seed", "response_format"))
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "modalities": ["text"]}
    assert client.post(CHAT, json={**ASKED, **nulls, **harmless, "parallel_tool_calls": True}).status_code == 200


def test_every_field_of_openai_is_decided_on() -> None:
    official = completion_create_params.CompletionCreateParamsBase.__annotations__.keys()
    assert official - ChatBody.model_fields.keys() <= ChatBody.unsupported.keys()
    assert not ChatBody.model_fields.keys() & ChatBody.unsupported.keys()


def test_a_stream_that_takes_too_long_ends_with_an_error(client_of: Any, service: FakeService) -> None:
    service.script = endless
    with client_of(answer_seconds=0.05) as client:
        *_, last = chunks_of(client.post(CHAT, json={**ASKED, "stream": True}).text)
        assert last["error"]["code"] == "deadline_exceeded"
        response = client.post(CHAT, json=ASKED)
        assert response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"
    assert service.closed == 2

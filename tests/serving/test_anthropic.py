"""Anthropic's dialect: what is asked, and what is answered."""

import json
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from serving.conftest import FakeService, called, endless, spoken
from serving.test_openai import SAID
from starlette.testclient import TestClient

from glmtune.serving.dialects.anthropic import CountBody, MessagesBody

PATH = "/v1/messages"
ASKED: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "1+1="}]}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each of which says its name twice."""
    events = []
    for piece in text.strip().split("\n\n"):
        name, data = piece.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def gather(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream adds up to, as the official client does it."""
    message: dict[str, Any] = {}
    for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append({**event["content_block"], "json": ""})
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                for name in ("text", "thinking"):
                    block.update({name: block[name] + delta[name]} if name in delta else {})
                block["json"] += delta.get("partial_json", "")
            case "content_block_stop":
                block = message["content"][event["index"]]
                text = block.pop("json")
                block.update({"input": json.loads(text)} if text else {})
            case "message_delta":
                message.update(event["delta"])
                message["usage"].update(event["usage"])
                message.update({name: event[name] for name in ("messages", "refusal") if name in event})
    return message


@pytest.mark.parametrize(
    ("script", "reason", "kinds"),
    [
        (spoken("4", "2"), "end_turn", ["text"]),
        (spoken("4", finish_reason="length"), "max_tokens", ["text"]),
        (spoken("4", stop="\n"), "stop_sequence", ["text"]),
        (spoken(), "end_turn", []),
        (spoken("4", calls=[called("add", a=1)], finish_reason="tool_calls"), "tool_use", ["text", "tool_use"]),
        (
            spoken(calls=[called("add"), called("add", b="你")], finish_reason="tool_calls"),
            "tool_use",
            ["tool_use"] * 2,
        ),
        (spoken("2", said=SAID), "end_turn", ["text"]),
        (spoken("2", refusal="no working"), "end_turn", ["text"]),
    ],
)
def test_a_stream_says_what_the_whole_does(
    client: TestClient, service: FakeService, script: Any, reason: str, kinds: list[str]
) -> None:
    service.script = script
    whole = client.post(PATH, json=ASKED).json()
    assert whole["type"] == "message" and whole["stop_reason"] == reason
    assert [block["type"] for block in whole["content"]] == kinds
    events = events_of(client.post(PATH, json={**ASKED, "stream": True}).text)
    assert events[0]["type"] == "message_start" and events[-1] == {"type": "message_stop"}
    streamed = gather(events)
    assert {**streamed, "id": ""} == {**whole, "id": ""}
    assert whole["usage"]["input_tokens"] == 3


def test_what_the_servers_tools_say_is_not_lost(client: TestClient, service: FakeService) -> None:
    service.script = spoken("2", said=SAID)
    called_, told = client.post(PATH, json=ASKED).json()["messages"]
    assert called_["content"][0] == {
        "type": "tool_use",
        "id": "call_1",
        "name": "calculator",
        "input": {"expression": "1+1"},
    }
    assert told["content"][0]["content"] == "2" and told["role"] == "user"


def test_all_that_is_asked_arrives(client: TestClient, service: FakeService) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "1+1=", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "add", "input": {"a": 1}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "2"}]},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    form = {"format": {"type": "json_schema", "schema": {"type": "integer"}}}
    more = {"system": "Be brief.", "stop_sequences": ["\n"], "tools": [TOOL], "output_config": form, "top_k": 2}
    body = {
        "max_tokens": 9,
        "messages": messages,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "temperature": 0,
        **more,
    }
    assert client.post(PATH, json=body).status_code == 200
    (asked,) = service.asked
    call = {"id": "a", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert asked.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "a"},
        {"role": "user", "content": "And?"},
    ]
    assert (asked.max_tokens, asked.stop, asked.temperature, asked.top_k) == (9, ("\n",), 0, 2)
    assert asked.tool_choice == "required" and asked.format is not None and asked.format.value == {"type": "integer"}
    assert asked.tools[0]["function"] == {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}


def test_tokens_are_counted(client: TestClient) -> None:
    response = client.post(f"{PATH}/count_tokens", json={"messages": ASKED["messages"], "system": "12"})
    assert response.json() == {"input_tokens": 6}


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"tool_choice": {"type": "tool", "name": "add"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [{**TOOL, "strict": True}]}, "tools.0.strict"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            "tool_choice.disable_parallel_tool_use",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        ({"messages": [{"role": "system", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0.source"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0.id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": ""}]}]},
            "messages.0.content.0.type",
        ),
        ({"model": "gpt"}, "model"),
    ],
)
def test_errors_are_in_anthropics_form(client: TestClient, more: dict[str, Any], field: str) -> None:
    response = client.post(PATH, json={**ASKED, **more})
    body = response.json()
    assert 400 <= response.status_code < 500 and body["type"] == "error"
    assert body["error"]["message"].startswith(f"{field}: ")
    assert body["request_id"] == response.headers["x-request-id"]


def test_a_stream_that_takes_too_long_ends_with_an_error(client_of: Any, service: FakeService) -> None:
    service.script = endless
    with client_of(answer_seconds=0.05) as client:
        *_, last = events_of(client.post(PATH, json={**ASKED, "stream": True}).text)
    assert last["type"] == "error" and last["error"]["type"] == "timeout_error" and service.closed == 1


@pytest.mark.parametrize(
    ("body", "official"),
    [
        (MessagesBody, message_create_params.MessageCreateParamsBase),
        (CountBody, message_count_tokens_params.MessageCountTokensParams),
    ],
)
def test_every_field_of_anthropic_is_decided_on(body: Any, official: Any) -> None:
    assert official.__annotations__.keys() - body.model_fields.keys() <= body.unsupported.keys()

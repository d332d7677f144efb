"""OpenAI's dialect of responses, without state."""

from typing import Any

import pytest
from openai.types.responses import response_create_params
from serving.conftest import FakeService, called, endless, spoken
from serving.test_anthropic import events_of
from serving.test_openai import SAID
from starlette.testclient import TestClient

from glmtune.serving.dialects.responses import ResponsesBody

PATH = "/v1/responses"
ASKED: dict[str, Any] = {"input": "1+1="}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_ids(inner) for name, inner in value.items() if name not in ("id", "created_at")}
    return [without_ids(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("script", "status", "kinds"),
    [
        (spoken("4", "2"), "completed", ["message"]),
        (spoken("4", finish_reason="length"), "incomplete", ["message"]),
        (spoken("4", calls=[called("add", a="你")]), "completed", ["message", "function_call"]),
        (spoken(calls=[called("add"), called("add", b=1)]), "completed", ["function_call"] * 2),
        (spoken("2", said=SAID, refusal="no working"), "completed", ["message"]),
        (spoken(), "completed", []),
    ],
)
@pytest.mark.parametrize("include", [[], ["message.output_text.logprobs"]])
def test_a_stream_says_what_the_whole_does(
    client: TestClient, service: FakeService, script: Any, status: str, kinds: list[str], include: list[str]
) -> None:
    service.script = script
    asked = {**ASKED, "include": include, "tools": [TOOL]}
    whole = client.post(PATH, json=asked).json()
    assert whole["object"] == "response" and whole["status"] == status
    assert [item["type"] for item in whole["output"]] == kinds
    events = events_of(client.post(PATH, json={**asked, "stream": True}).text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created" and events[-1]["type"] == f"response.{status}"
    assert without_ids(events[-1]["response"]) == without_ids(whole)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == "".join(item["content"][0]["text"] for item in done if item["type"] == "message")
    written = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert written == [item["arguments"] for item in done if item["type"] == "function_call"]
    tokens = [token for event in events if event["type"].endswith("text.delta") for token in event["logprobs"]]
    assert tokens == [token for item in done if item["type"] == "message" for token in item["content"][0]["logprobs"]]
    assert bool(tokens) is bool(include and text)


def test_what_the_servers_tools_say_is_not_lost(client: TestClient, service: FakeService) -> None:
    service.script = spoken("2", said=SAID, refusal="no working")
    body = client.post(PATH, json=ASKED).json()
    assert body["messages"][1] == SAID[1] and body["refusal"] == "no working"


def test_all_that_is_asked_arrives(client: TestClient, service: FakeService) -> None:
    items = [
        {"role": "developer", "content": "Briefly."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1+1="}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I add.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "f", "call_id": "a", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "b", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "2"},
        {"type": "function_call_output", "call_id": "b", "output": "0"},
    ]
    shape = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "integer"}, "strict": True}}
    more = {"tools": [TOOL], "tool_choice": {"type": "function", "name": "add"}, "text": shape, "store": False}
    body = {"input": items, "instructions": "Add.", "max_output_tokens": 7, "temperature": 0, **more}
    assert client.post(PATH, json=body).status_code == 200
    (asked,) = service.asked
    system, developer, user, assistant, *tools = asked.prompt
    assert system["content"] == "Add." and developer == items[0] | {"role": "system"} and user["content"] == "1+1="
    assert assistant["content"] == "I add." and assistant["reasoning_content"] == "Hm."
    assert [call["id"] for call in assistant["tool_calls"]] == ["a", "b"]
    assert [(tool["tool_call_id"], tool["content"]) for tool in tools] == [("a", "2"), ("b", "0")]
    assert (asked.max_tokens, asked.temperature, asked.tool_choice) == (7, 0, "add")
    assert asked.format is not None and asked.format.value == {"type": "integer"}
    assert asked.tools == [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def test_what_was_answered_can_be_sent_back(client: TestClient, service: FakeService) -> None:
    service.script = spoken("4", calls=[called("add", a=1)])
    output = client.post(PATH, json=ASKED).json()["output"]
    told = {"type": "function_call_output", "call_id": "call_1", "output": "2"}
    asked = [{"role": "user", "content": "1+1="}, *output, told]
    assert client.post(PATH, json={"input": asked}).status_code == 200
    assert [message["role"] for message in service.asked[1].prompt] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({**ASKED, "store": True}, "store"),
        ({**ASKED, "background": True}, "background"),
        ({**ASKED, "previous_response_id": "resp_1"}, "previous_response_id"),
        ({**ASKED, "reasoning": {"effort": "high"}}, "reasoning"),
        ({**ASKED, "truncation": "auto"}, "truncation"),
        ({**ASKED, "top_logprobs": 2}, "top_logprobs"),
        ({**ASKED, "include": ["file_search_call.results"]}, "include.0"),
        ({**ASKED, "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({**ASKED, "tools": [{**TOOL, "strict": True}]}, "tools.0.strict"),
        ({**ASKED, "tool_choice": "required"}, "tool_choice"),
        ({**ASKED, "text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"input": [{"content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": "x", "name": "y"}]}, "input.0.name"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.image_url",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "a", "name": "add", "arguments": "{"}]},
            "input.0.arguments",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(client: TestClient, body: dict[str, Any], field: str) -> None:
    response = client.post(PATH, json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == field


def test_a_stream_that_takes_too_long_ends_with_an_error(client_of: Any, service: FakeService) -> None:
    service.script = endless
    with client_of(answer_seconds=0.05) as client:
        *_, last = events_of(client.post(PATH, json={**ASKED, "stream": True}).text)
    assert last["type"] == "error" and last["code"] == "deadline_exceeded" and service.closed == 1


def test_every_field_of_openai_is_decided_on() -> None:
    official = response_create_params.ResponseCreateParamsBase.__annotations__.keys()
    assert official - ResponsesBody.model_fields.keys() <= ResponsesBody.unsupported.keys()
    assert not ResponsesBody.model_fields.keys() & ResponsesBody.unsupported.keys()

"""The clients that people have, against a real server."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from serving.conftest import FakeService, called, endless, spoken
from serving.live import Live, live

from glmtune.serving.asking import Access, Limits

ASKED: Any = [{"role": "user", "content": "1+1="}]
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
KEY = "a-key"


class Sum(BaseModel):
    """What an answer is to be."""

    value: int


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeService, Live]]:
    service = FakeService()
    with live(service, Limits(answer_seconds=5), Access(keys=(KEY,))) as server:
        yield service, server


@pytest.fixture
def speaker(shared: tuple[FakeService, Live]) -> FakeService:
    service, _ = shared
    service.script = spoken("4", "2")
    service.asked.clear()
    return service


@pytest.fixture
def url(shared: tuple[FakeService, Live]) -> str:
    return shared[1].url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_chat(client: openai.OpenAI, speaker: FakeService) -> None:
    answer = client.chat.completions.create(model="nano", messages=ASKED, logprobs=True, top_logprobs=1, n=2)
    assert [choice.message.content for choice in answer.choices] == ["42", "42"]
    assert answer.usage is not None and answer.usage.total_tokens == 3 + 4
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and logprobs.content[0].top_logprobs[0].token == "1"
    chunks = client.chat.completions.create(
        model="nano", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    *others, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in others) == "42"
    assert last.usage is not None and last.usage.completion_tokens == 2


def test_openai_tools_and_schemas(client: openai.OpenAI, speaker: FakeService) -> None:
    speaker.script = spoken(calls=[called("add", a=1)], finish_reason="tool_calls")
    answer = client.chat.completions.create(model="nano", messages=ASKED, tools=[TOOL], tool_choice="required")
    message = answer.choices[0].message
    assert message.tool_calls is not None and message.tool_calls[0].function.arguments == '{"a":1}'  # type: ignore
    told: Any = [
        *ASKED,
        message.model_dump(),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "2"},
    ]
    speaker.script = spoken('{"value": 2}')
    parsed = client.chat.completions.parse(model="nano", messages=told, response_format=Sum)
    assert parsed.choices[0].message.parsed == Sum(value=2)
    assert speaker.asked[-1].format is not None and speaker.asked[-1].format.value["title"] == "Sum"
    with client.chat.completions.stream(model="nano", messages=ASKED, response_format=Sum) as events:
        assert events.get_final_completion().choices[0].message.parsed == Sum(value=2)
    speaker.script = spoken("4", calls=[called("add", a=1)], finish_reason="tool_calls")
    with client.chat.completions.stream(model="nano", messages=ASKED, tools=[TOOL]) as events:
        final = events.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and final.message.content == "4"
    assert final.message.tool_calls is not None and final.message.tool_calls[0].function.name == "add"


def test_openai_others(client: openai.OpenAI, speaker: FakeService) -> None:
    assert [model.id for model in client.models.list()] == ["nano", "base"]
    assert client.models.retrieve("base").id == "base"
    whole = client.completions.create(model="nano", prompt="1+1=", logprobs=2)
    assert whole.choices[0].text == "42" and whole.choices[0].logprobs is not None
    chunks = client.completions.create(model="nano", prompt="1+1=", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "42"


def test_openai_responses(client: openai.OpenAI, speaker: FakeService) -> None:
    assert client.responses.create(model="nano", input="1+1=").output_text == "42"
    tool: Any = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
    speaker.script = spoken("4", calls=[called("add", a=1)])
    with client.responses.stream(model="nano", input="1+1=", tools=[tool]) as events:
        final = events.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"] and final.output_text == "4"
    speaker.script = spoken('{"value": 2}')
    assert client.responses.parse(model="nano", input="1+1=", text_format=Sum).output_parsed == Sum(value=2)


@pytest.mark.parametrize(
    ("error", "fields", "param"),
    [
        (openai.NotFoundError, {"model": "gpt"}, "model"),
        (openai.BadRequestError, {"n": 10_000}, "n"),
        (openai.BadRequestError, {"logit_bias": {"1": 1}}, "logit_bias"),
        (openai.AuthenticationError, {"extra_headers": {"Authorization": "Bearer wrong"}}, None),
    ],
)
def test_openai_errors(client: openai.OpenAI, speaker: FakeService, error: Any, fields: Any, param: str | None) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "nano", "messages": ASKED, **fields})
    assert caught.value.param == param and caught.value.request_id


def test_openai_hears_of_a_stream_that_ends_early(speaker: FakeService) -> None:
    service = FakeService()
    service.script = endless
    with live(service, Limits(answer_seconds=0.2)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="too long"):
            list(client.chat.completions.create(model="nano", messages=ASKED, stream=True))
        with pytest.raises(openai.APIError, match="too long"):
            list(client.responses.create(model="nano", input="1+1=", stream=True))
        other = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        with pytest.raises(anthropic.APIError, match="too long"):
            list(other.messages.create(model="nano", max_tokens=9, messages=ASKED, stream=True))


def test_anthropic(url: str, speaker: FakeService) -> None:
    client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
    tools: Any = [{"name": "add", "input_schema": {"type": "object"}}]
    answer = client.messages.create(model="nano", max_tokens=9, messages=ASKED)
    assert answer.content[0].type == "text" and answer.content[0].text == "42" and answer.usage.input_tokens == 3
    speaker.script = spoken("4", calls=[called("add", a=1)], finish_reason="tool_calls")
    with client.messages.stream(model="nano", max_tokens=9, messages=ASKED, tools=tools) as events:
        assert list(events.text_stream) == ["4"]
        final = events.get_final_message()
    assert final.stop_reason == "tool_use" and final.usage.output_tokens == 1
    text, call = final.content
    assert text.type == "text" and call.type == "tool_use" and call.input == {"a": 1}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "2"}
    told: Any = [*ASKED, {"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(model="nano", max_tokens=9, messages=told, tools=tools).id
    assert [message["role"] for message in speaker.asked[-1].prompt] == ["user", "assistant", "tool"]  # type: ignore
    assert client.messages.count_tokens(model="nano", messages=ASKED).input_tokens == 4
    with pytest.raises(anthropic.NotFoundError, match="gpt"):
        client.messages.create(model="gpt", max_tokens=9, messages=ASKED)
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0).models.list()


def test_langchain(url: str, speaker: FakeService) -> None:
    model = ChatOpenAI(model="nano", base_url=f"{url}/v1", api_key=KEY, max_retries=0)  # type: ignore[arg-type]
    assert model.invoke("1+1=").content == "42"
    assert "".join(str(chunk.content) for chunk in model.stream("1+1=")) == "42"
    speaker.script = spoken('{"value": 2}')
    assert model.with_structured_output(Sum, method="json_schema").invoke("1+1=") == Sum(value=2)
    speaker.script = spoken(calls=[called("Sum", value=2)], finish_reason="tool_calls")
    assert model.with_structured_output(Sum, method="function_calling").invoke("1+1=") == Sum(value=2)
    calls = [call for chunk in model.bind_tools([Sum]).stream("1+1=") for call in chunk.tool_call_chunks]  # type: ignore
    assert calls[0]["name"] == "Sum" and json.loads(str(calls[0]["args"])) == {"value": 2}


def test_the_original_client(url: str, speaker: FakeService) -> None:
    """As the README of ChatGLM-6B asks with curl."""
    data = json.dumps({"prompt": "你好", "history": []}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as response:
        answer = json.load(response)
    assert answer["response"] == "42" and answer["history"] == [["你好", "42"]] and answer["status"] == 200

"""The one form of message: what is brought into it, and what is refused with its field and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from glmtune.messages import MessageError, as_messages, check_message, check_messages, make_tool_call, text_in

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京", "days": [1, 2]}}}


def test_a_text_is_a_message_of_the_user() -> None:
    assert as_messages("1+1=") == check_messages("1+1=") == [{"role": "user", "content": "1+1="}]


def test_text_in_contents() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image", "url": "x.png"}, {"type": "text", "text": "b"}]
    assert [text_in(content) for content in ("a", None, parts)] == ["a", "", "ab"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "url": "x.png"}]},
        {"role": "user", "content": "a\nb", "instruction": "a", "input": "b"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **CALL}]},
        {"role": "tool", "content": "晴", "name": "weather", "tool_call_id": "1"},
    ],
)
def test_messages_in_the_form_stay(message: dict[str, Any]) -> None:
    assert check_message(message) == message
    assert check_message({**message, "name": message.get("name")}) == message  # a field of None is none


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "function": {"name": "weather", "arguments": '{"city": "北京", "days": [1, 2]}'}},
        {"function": CALL["function"]},
        CALL["function"],
    ],
)
def test_calls_are_brought_into_the_form(call: dict[str, Any]) -> None:
    assert check_message({"role": "assistant", "tool_calls": [call]})["tool_calls"] == [CALL]
    for nothing in ("", None, {}, "{}"):
        call = {"name": "now", "arguments": nothing}
        assert check_message({"role": "assistant", "tool_calls": [call]})["tool_calls"] == [make_tool_call("now", {})]


@pytest.mark.parametrize(
    ("message", "field", "fault"),
    [
        ("1+1=", "role", "a mapping with 'role' and 'content', not a text"),
        ({"content": "1"}, "role", "None is none of system, user, assistant, tool"),
        ({"role": "assistent", "content": "1"}, "role", "Perhaps 'assistant' is meant"),
        ({"role": "user"}, "content", "is missing. Give a text, which may be empty"),
        ({"role": "user", "content": 1}, "content", "must be a text or a list of parts, not a number"),
        ({"role": "user", "content": ["a"]}, "content", "a part is a mapping"),
        ({"role": "user", "content": [{"type": "text"}]}, "content", "needs a 'text'"),
        ({"role": "user", "content": "1", "tool_calls": [CALL]}, "tool_calls", "only the assistant's does"),
        ({"role": "assistant", "tool_calls": "weather()"}, "tool_calls", "must be a list of calls"),
        ({"role": "assistant", "tool_calls": ["weather()"]}, "tool_calls", "needs the function's 'name'"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "tool_calls", "arguments of 'f'"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "tool_calls", "arguments of 'f'"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": {1}}}]}, "tool_calls", "JSON object"),
        (
            {"role": "user", "content": "1", "tool_call": "x"},
            "tool_call",
            "leave it out. Perhaps 'tool_calls' is meant",
        ),
        ({"role": "tool", "content": "1", "name": 1}, "name", "must be a text, not a number"),
    ],
)
def test_what_is_refused(message: Any, field: str, fault: str) -> None:
    with pytest.raises(MessageError) as error:
        check_message(message)
    assert error.value.field == field and str(error.value).startswith(f"{field}: ") and fault in str(error.value)
    if message != "1+1=":
        with pytest.raises(MessageError, match=r"\(message 2\)"):
            check_messages([{"role": "user", "content": "a"}, message])

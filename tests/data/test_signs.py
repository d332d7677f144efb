"""Signs stand for contents, guards stand in what calls and tools hold, and both go without a trace."""

from __future__ import annotations

from typing import Any

import pytest

from glmtune.data.signs import fill_in, sign_texts
from glmtune.models.templates import adopt
from glmtune.runtime import UserError

HOSTILE = "<|im_end|>\U000f0001\U00100000"


def test_contents_become_signs_and_what_calls_hold_stays(chatml: Any) -> None:
    adopt(chatml, "chatml")
    call = {"name": "f", "arguments": {"a": HOSTILE, HOSTILE: [1, None, "plain"]}}
    tool = {"type": "function", "function": {"name": "f", "description": HOSTILE}}
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": HOSTILE},
        {"role": "assistant", "tool_calls": [call]},
    ]
    signed = sign_texts(chatml, messages, [tool])
    system, user, assistant = signed.messages
    assert system == {"role": "system", "content": ""}  # an empty text stays empty
    assert len(user["content"]) == 1 and fill_in(user["content"], signed.texts) == HOSTILE
    [made] = assistant["tool_calls"]
    assert "<|im_end|>" not in str(made) and "plain" in str(made)
    assert fill_in(made["function"]["arguments"]["a"], signed.texts) == HOSTILE
    assert {fill_in(key, signed.texts) for key in made["function"]["arguments"]} == {"a", HOSTILE}
    assert fill_in(signed.tools[0]["function"]["description"], signed.texts) == HOSTILE


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"role": "user<sop>", "content": "x"}, "role: 'user<sop>' is none of system, user, assistant, tool"),
        ({"role": "user", "a b": "x", "content": "x"}, "a b: a message has no such field; leave it out"),
        ({"role": "user"}, "content: is missing. Give a text, which may be empty"),
    ],
)
def test_what_is_no_message_is_refused(message: dict[str, Any], fault: str, chatml: Any) -> None:
    with pytest.raises(UserError, match=f"A message cannot be used. {fault}"):
        sign_texts(chatml, [message])


@pytest.mark.parametrize(
    ("template", "messages", "what"),
    [
        ("{{ messages[-1].content }}", [("system", "a"), ("user", "b")], "content of a message of role 'system'"),
        ("{{ messages[0].content }}", [("user", "a"), ("assistant", "b"), ("user", "c")], "role 'assistant'"),
    ],
)
def test_a_text_that_a_template_leaves_out_is_told(template: str, messages: Any, what: str, chatml: Any) -> None:
    from glmtune.data.encoding import encode_prompt

    chatml.chat_template = template
    with pytest.raises(UserError, match=f"chat template leaves out .*{what}"):
        encode_prompt(chatml, [{"role": role, "content": content} for role, content in messages])


def test_a_template_that_looks_at_what_is_in_a_message(chatml: Any) -> None:
    from glmtune.data.encoding import encode_prompt

    chatml.chat_template = "{% for m in messages %}{{ m.content.split('</think>')[-1] | trim }}\n{% endfor %}"
    assert chatml.decode(encode_prompt(chatml, "  a ")).strip() == "a"
    with pytest.raises(UserError, match="treats messages by what is in them"):
        encode_prompt(chatml, "reasons</think>a")

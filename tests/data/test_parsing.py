"""Parsing inverts rendering: what a model was taught to write is read as the message that it was taught by."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from glmtune.data.encoding import IGNORED, encode_example, encode_prompt
from glmtune.data.parsing import find_response_template, parse_answer
from glmtune.messages import Message, check_message, make_tool_call
from glmtune.models.loading import EMBEDDED
from glmtune.models.templates import adopt, list_presets

CONTROLS = ["</s>", "[gMASK]", "<sop>", *(f"<|{role}|>" for role in ("system", "user", "assistant", "observation"))]
CONTROLS += ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
WITH_CALLS = ["chatglm3", "chatml", "glm4"]


@cache
def with_template(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer over bytes with the control tokens of every preset; the words around calls are added, not special."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE({letter: index for index, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(CONTROLS[:-2])
    core.add_tokens(CONTROLS[-2:])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")
    adopt(tokenizer, name)
    return tokenizer


def write(tokenizer: PreTrainedTokenizerBase, prompt: Any, answer: Message | str, tools: Any = ()) -> list[int]:
    """The ids that a model would write that has learned the answer."""
    labels = encode_example(tokenizer, prompt, answer, tools=tools)["labels"]
    return [label for label in labels if label != IGNORED]


def read(tokenizer: PreTrainedTokenizerBase, prompt: Any, answer: Message | str, tools: Any = ()) -> Message:
    ids = write(tokenizer, prompt, answer, tools)
    return parse_answer(tokenizer, encode_prompt(tokenizer, prompt, tools), ids, tools)


FRAGMENTS = [*CONTROLS, "\n", " ", "'", '"', "\\", "}", ")\n```", "```python\ntool_call(a=1)", "x=1, ", "\u0000", "{"]
FRAGMENTS += [
    "calculate(",
    '{"name": "f", "arguments": {}}',
    "f\n{}",
    "ASSISTANT:",
    "### Response:",
    "你好",
    "\U000f0000",
]
TEXTS = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), st.sampled_from(FRAGMENTS)), max_size=6
).map("".join)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
CALLS = st.lists(st.builds(make_tool_call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3)


@pytest.mark.parametrize("name", list_presets())
@settings(max_examples=60)
@given(content=TEXTS, asked=TEXTS)
def test_contents(name: str, content: str, asked: str) -> None:
    tokenizer = with_template(name)
    assert read(tokenizer, asked, content) == {"role": "assistant", "content": content}


@pytest.mark.parametrize("name", WITH_CALLS)
@settings(max_examples=150)
@given(calls=CALLS, content=TEXTS, asked=TEXTS)
def test_calls(name: str, calls: list[dict[str, Any]], content: str, asked: str) -> None:
    """Nested arguments and several calls, with something said before them or nothing."""
    tokenizer = with_template(name)
    answer = {"role": "assistant", "content": content or None, "tool_calls": calls}
    assert read(tokenizer, asked, answer) == answer
    assert read(tokenizer, asked, {**answer, "content": None}) == {**answer, "content": None}


@settings(max_examples=60)
@given(expression=st.text(st.sampled_from("0123456789.+-*/() ^x'\\"), min_size=1))
def test_calls_of_nano(expression: str) -> None:
    tokenizer = with_template("nano")
    answer = {
        "role": "assistant",
        "content": None,
        "tool_calls": [make_tool_call("calculate", {"expression": expression})],
    }
    assert read(tokenizer, "1+1", answer) == answer


def test_nano_reads_calls_as_it_did() -> None:
    """The embedded model's own tokenizer has the template; texts that are no call alone are contents."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED["nano"])
    answer = {
        "role": "assistant",
        "content": None,
        "tool_calls": [make_tool_call("calculate", {"expression": "57+13"})],
    }
    assert read(tokenizer, "57+13=", answer) == answer
    assert write(tokenizer, "57+13=", answer) == write(tokenizer, "57+13=", 'calculate("57+13")')
    for text in ("70", 'calculate("57+13") is 70', 'calculate("57"13")', "calculate(57+13)", "calculate", ""):
        assert parse_answer(tokenizer, "57+13=", text) == {"role": "assistant", "content": text}
        assert read(tokenizer, "57+13=", text) == {"role": "assistant", "content": text}
    assert parse_answer(tokenizer, "57+13=", 'calculate("57+13")') == answer


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", '<tool_call>\n{"name": "f"'),
        ("chatml", '<tool_call>\n{"name": 1, "arguments": {}}\n</tool_call>'),
        ("chatml", "<tool_call>\n" + "[" * 5000 + "\n</tool_call>"),
        ("glm4", "f\n{not JSON}"),
        ("glm4", "python\nprint(1)"),
        ("glm4", "no line for a name"),
        ("chatglm3", "plain text"),
    ],
)
def test_what_cannot_be_parsed_is_a_content(name: str, text: str) -> None:
    assert parse_answer(with_template(name), "asked", text) == {"role": "assistant", "content": text}


def test_arguments_become_what_their_schema_says() -> None:
    """ChatGLM3-6B writes them as Python does."""
    properties = {"exact": {"type": "boolean"}, "days": {"type": "integer"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    text = "f\n ```python\ntool_call(exact=True, days=3, city='北京')\n```"
    message = parse_answer(with_template("chatglm3"), "asked", text, [tool])
    assert message["tool_calls"] == [make_tool_call("f", {"exact": True, "days": 3, "city": "北京"})]


QWEN = """{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name }}
{{- '", "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def test_known_templates_of_others() -> None:
    """As transformers' server does: Qwen's calls are read though its tokenizers have no response template."""
    tokenizer = with_template.__wrapped__("chatml")
    tokenizer.chat_template, tokenizer.response_template = QWEN, None
    answer = {"role": "assistant", "content": "So:", "tool_calls": [make_tool_call("f", {"a": [1, "<|im_end|>"]})] * 2}
    assert read(tokenizer, "asked", answer) == answer
    assert check_message(read(tokenizer, "asked", "4")) == {"role": "assistant", "content": "4"}
    thought = parse_answer(tokenizer, "asked", "<think>hm</think>4")
    assert thought == {"role": "assistant", "content": "4", "reasoning_content": "hm"}
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert find_response_template(tokenizer) is None
    assert parse_answer(tokenizer, "asked", json.dumps(answer)) == {"role": "assistant", "content": json.dumps(answer)}


@pytest.mark.parametrize("name", list_presets())
def test_both_templates_travel_with_the_tokenizer(name: str, tmp_path: Any) -> None:
    tokenizer = with_template(name)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == tokenizer.chat_template
    assert again.response_template == tokenizer.response_template is not None

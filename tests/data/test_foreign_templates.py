"""Templates of others: what is in a record is in what is learned, to the id what transformers renders, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from glmtune.data.encoding import IGNORED, check_template, encode_example, encode_prompt
from glmtune.data.pieces import lead_in
from glmtune.messages import Message, make_tool_call
from glmtune.models.templates import adopt, list_presets
from glmtune.runtime import UserError

# What they do with roles, contents, tools and reasoning is theirs; the words around these are in short.
FOLDER = Path(__file__).parents[1] / "golden" / "foreign_templates"
FOREIGN = {file.stem: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.jinja"))}
CONTROLS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "[gMASK]", "<sop>"]
CONTROLS += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


def tokenizer_with(template: str) -> Any:
    """A token for each byte and control token, and a template: a preset's name, or one of others."""
    core = Tokenizer(models.BPE({char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(CONTROLS)
    end = "</s>" if template in ("mistral", "r1", "dropping") else "<|im_end|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, pad_token="</s>")
    if template in FOREIGN:
        tokenizer.chat_template = FOREIGN[template]
    else:
        adopt(tokenizer, template)
    return tokenizer


TOKENIZERS = {name: tokenizer_with(name) for name in (*FOREIGN, *list_presets())}
every_template = pytest.mark.parametrize("name", list(TOKENIZERS))


def user(content: str = "USER_71", **more: Any) -> Message:
    return {"role": "user", "content": content, **more}


def said(content: str = "ANSWER_72", **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


TOOL = {
    "type": "function",
    "function": {
        "name": "TOOL_81",
        "description": "DESCRIPTION_82",
        "parameters": {
            "type": "object",
            "properties": {
                "PARAMETER_83": {"type": "string", "description": "MEANING_84", "enum": ["CHOICE_85", "CHOICE_86"]},
                "INNER_87": {"type": "object", "properties": {"type": {"type": "number", "minimum": 88001}}},
            },
            "required": ["PARAMETER_83"],
        },
    },
}
CALL = {"id": "CALL_9101", **make_tool_call("TOOL_81", {"PARAMETER_83": "VALUE_92", "INNER_87": {"type": 93001}})}
RESULT = {"role": "tool", "content": "RESULT_94", "name": "TOOL_81", "tool_call_id": "CALL_9101"}
SYSTEM = {"role": "system", "content": "SYSTEM_70"}
CALCULATE = json.loads(json.dumps(TOOL).replace("TOOL_81", "calculate"))
# What a record may hold; the last message is the answer.
RECORDS: dict[str, tuple[list[Message], list[Any]]] = {
    "plain": ([user(), said()], []),
    "system": ([SYSTEM, user(), said()], []),
    "system later": (
        [user(), said("EARLIER_73"), {"role": "system", "content": "SYSTEM_70"}, user("X_74"), said()],
        [],
    ),
    "turns": ([user(), said("EARLIER_73"), user("LATER_74"), said()], []),
    "same role": ([user(), user("SECOND_75"), said()], []),
    "tools": ([user(), said()], [TOOL]),
    "a tool of a known name": ([user(), said()], [CALCULATE]),
    "tools and system": ([SYSTEM, user(), said()], [TOOL]),
    "call": ([user(), said("", tool_calls=[CALL])], []),
    "call and content": ([user(), said("WHY_76", tool_calls=[CALL])], [TOOL]),
    "two calls": ([user(), said("", tool_calls=[CALL, make_tool_call("OTHER_95", {"A_96": "B_97"})])], []),
    "result": ([user(), said("", tool_calls=[CALL]), RESULT, said()], []),
    "result of another name": ([user(), said("", tool_calls=[CALL]), {**RESULT, "name": "OTHER_98"}, said()], []),
    "result of another call": ([user(), said("", tool_calls=[CALL]), {**RESULT, "tool_call_id": "C_99"}, said()], []),
    "result without a call": ([user(), said("EARLIER_73"), {"role": "tool", "content": "RESULT_94"}, said()], []),
    "reasoning": ([user(), said(reasoning_content="THOUGHT_77")], []),
    "reasoning before": ([user(), said("A_79", reasoning_content="THOUGHT_77"), user("LATER_74"), said()], []),
    "thoughts": ([user(), said("<think>\nTHOUGHT_77\n</think>\n\nANSWER_72")], []),
    "thoughts before": ([user(), said("<think>THOUGHT_77</think>A_79"), user("LATER_74"), said()], []),
    "thoughts in a question": ([user("<think>THOUGHT_77</think>USER_71"), said()], []),
    "no thoughts": ([user(), said("<think>\n\n</think>\n\nANSWER_72")], []),
    "a name": ([user(name="NAME_78"), said()], []),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "USER_71"}]}, said()], []),
    "an image": ([{"role": "user", "content": [{"type": "image", "url": "IMAGE_79"}]}, said()], []),
}
SENTINEL = re.compile(r"[A-Z]+_\d+|\d{5}")


def sentinels(messages: list[Message], tools: list[Any]) -> set[str]:
    """What must arrive: but ids of calls, and names that only repeat the call which is answered."""
    repeated = {"CALL_9101"}
    return set(SENTINEL.findall(json.dumps([messages, tools]))) - repeated


@every_template
@pytest.mark.parametrize("record", list(RECORDS))
def test_what_is_in_a_record_is_learned_or_refused(name: str, record: str) -> None:
    tokenizer, (messages, tools) = TOKENIZERS[name], RECORDS[record]
    *prompt, answer = messages
    try:
        encoding = encode_example(tokenizer, prompt, answer, tools=tools)
    except UserError as error:
        assert "\n" not in str(error)
        assert record != "plain" or name == "r1"
        return
    text = tokenizer.decode(encoding["input_ids"])
    assert {word for word in sentinels(messages, tools) if word not in text} == set()
    learned = tokenizer.decode([label for label in encoding["labels"] if label != IGNORED])
    assert {word for word in sentinels([answer], []) if word not in learned} == set()


@every_template
def test_what_is_learned_is_what_transformers_renders(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    taken = 0
    for record, (messages, tools) in RECORDS.items():
        *prompt, answer = messages
        if record == "parts":  # which many templates write as a list; here they are one text
            continue
        try:
            encoding = encode_example(tokenizer, prompt, answer, tools=tools)
        except UserError:
            continue
        taken += 1
        ids = encoding["input_ids"]
        whole = tokenizer.apply_chat_template(messages, tools=tools or None)["input_ids"]
        assert whole[: len(ids)] == ids and tokenizer.decode(whole[len(ids) :]).strip() == ""
        asked = tokenizer.apply_chat_template(prompt, tools=tools or None, add_generation_prompt=True)["input_ids"]
        assert ids[: len(asked)] == asked == encode_prompt(tokenizer, prompt, tools)
        assert encoding["labels"][: len(asked)] == [IGNORED] * len(asked)
        assert encoding["labels"][len(asked) :] == ids[len(asked) :]
    assert taken or name == "r1"


BLANKS = st.text(st.sampled_from(" \n\tab"), min_size=1, max_size=6)
PARTS = st.lists(st.one_of(BLANKS, st.sampled_from(["<think>", "</think>", "<think>\n\n</think>\n\n", "\n\n", "x"])))


@every_template
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(PARTS.map("".join), min_size=2, max_size=5))
def test_also_of_contents_that_templates_change(name: str, texts: list[str]) -> None:
    """Templates trim, drop and split; what they make of a text is learned, or the record is refused."""
    tokenizer = TOKENIZERS[name]
    texts = texts if len(texts) % 2 == 0 else ["system", *texts[1:]]
    roles = (["system"] if len(texts) % 2 else []) + ["user", "assistant"] * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    *prompt, answer = messages
    try:
        encoding = encode_example(tokenizer, prompt, answer)
    except UserError as error:
        assert "\n" not in str(error)
        return
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    ids = encoding["input_ids"]
    assert whole[: len(ids)] == ids and tokenizer.decode(whole[len(ids) :]).strip() == ""
    text = tokenizer.decode(ids)
    assert all(message["content"].strip() in text for message in messages if "think>" not in message["content"])


@pytest.mark.parametrize(
    ("name", "record", "told"),
    [
        ("gemma", "system", "System role not supported"),
        ("gemma", "same role", "Conversation roles must alternate"),
        ("mistral", "result", "no form for calls of tools"),
        ("mistral", "tools", "no form for definitions of tools"),
        ("llama3", "two calls", "no form for several calls in one message"),
        ("qwen3", "reasoning before", r"leaves out reasoning_content of a message of role 'assistant' \(message 2\)"),
        ("qwen3", "thoughts before", r"leaves out reasoning_content of a message of role 'assistant' \(message 2\)"),
        ("qwen25", "reasoning", "leaves out reasoning_content"),
        ("dropping", "thoughts", "leaves out reasoning_content"),
        ("dropping", "reasoning", "leaves out reasoning_content"),
        ("r1", "plain", r"asks for an answer with '<think>\\n', but goes on with '\.\.\.</s>'"),
        ("chatml", "a name", "leaves out name of a message of role 'user'"),
        ("chatml", "result of another call", "leaves out tool_call_id of a message of role 'tool'"),
        ("nano", "a tool of a known name", "no form for definitions of tools"),
        ("glm4", "an image", "a part of type 'image' cannot be read"),
    ],
)
def test_a_refusal_says_what_is_left_out(name: str, record: str, told: str) -> None:
    (*prompt, answer), tools = RECORDS[record]
    with pytest.raises(UserError, match=told):
        encode_example(TOKENIZERS[name], prompt, answer, tools=tools)


@pytest.mark.parametrize("name", ["qwen25", "qwen3", "llama3", "mistral", "gemma", "dropping"])
def test_models_learn_by_them(name: str) -> None:
    check_template(TOKENIZERS[name])


def test_a_block_of_reasoning_is_learned_once() -> None:
    tokenizer = TOKENIZERS["qwen3"]
    for content, block in [
        ("7", "<think>\n\n</think>\n\n7"),
        ("<think>\nr\n</think>\n\n7", "<think>\nr\n</think>\n\n7"),
        ("<think>r</think>7", "<think>\nr\n</think>\n\n7"),
        ("<think>\n\n</think>\n\n7", "<think>\n\n</think>\n\n7"),
    ]:
        labels = [label for label in encode_example(tokenizer, "1+1=", content)["labels"] if label != IGNORED]
        assert tokenizer.decode(labels) == f"{block}<|im_end|>"
    apart = encode_example(tokenizer, "1+1=", said("7", reasoning_content="r"))
    assert apart == encode_example(tokenizer, "1+1=", "<think>\nr\n</think>\n\n7")


def test_a_template_that_asks_otherwise_can_still_be_asked() -> None:
    tokenizer = TOKENIZERS["r1"]
    assert tokenizer.decode(encode_prompt(tokenizer, "1+1=")) == "<s><|User|>1+1=<|Assistant|><think>\n"
    assert lead_in(tokenizer) == ""
    with pytest.raises(UserError, match=r"no form for a question and its answer: .*would never be asked"):
        check_template(tokenizer)


@pytest.mark.parametrize("text", ["\ud83d", "a\udcffb"])
def test_half_a_character_is_refused(text: str) -> None:
    tokenizer = TOKENIZERS["chatml"]
    for messages, tools in [
        ([user(text)], []),
        ([SYSTEM | {"content": text}, user()], []),
        ([user(), said("", tool_calls=[make_tool_call("f", {"a": [text]})])], []),
        ([user(name=text)], []),
        ([user()], [{"name": "f", "description": text}]),
    ]:
        with pytest.raises(UserError, match="half of a character"):
            encode_prompt(tokenizer, messages, tools)
    with pytest.raises(UserError, match="content: holds half of a character"):
        encode_example(tokenizer, "1", text)


def test_a_template_may_raise_whatever_it_likes() -> None:
    tokenizer = tokenizer_with("plain")
    for template in ("{{ 1 // 0 }}", "{{ messages[0].content.nothing.at.all }}", "{{ [] | first.x }}", "{% if %}"):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match="does not take this conversation: "):
            encode_prompt(tokenizer, "1+1=")

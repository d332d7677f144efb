"""Layouts of turns, of tools and of values: each is read with all that it says, or refused by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.config import DataSettings
from glmtune.messages import make_tool_call
from glmtune.records import Fault, read, read_examples, read_questions
from glmtune.records.fields import FieldError
from glmtune.records.formats import examples_of
from glmtune.runtime import UserError, read_json_lines

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ADD = {"type": "function", "function": {"name": "add"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [make_tool_call("add", {"a": 1})]}
RESULT = {"role": "tool", "content": "2"}


def written(tmp_path: Path, *lines: str, name: str = "some.jsonl") -> str:
    file = tmp_path / name
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(file)


# --------------------------------------------------------------------------- tools


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "target": "a"},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "response": "a", "history": [["q0", "a0"]]},
        {"instruction": "q", "output": "a"},
        {"question": "q", "answer": "a #### 1"},
        {"question": "q", "answer": "x=1"},
        {"question": "q", "std_answer": "a"},
        {"original_text": "q", "equation": "x=1", "ans": "1"},
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]},
        {"prompt": [USER], "target": "a"},
        {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
    ],
)
def test_no_format_loses_tools_or_a_system_message(row: dict[str, Any]) -> None:
    tools = [{"name": "add", "description": "d"}]
    for given_as in ({"tools": tools}, {"tools": json.dumps(tools)}, {"functions": tools}):
        (example,) = examples_of({**row, **given_as, "system": "s"})
        assert list(example.tools) == tools
        assert example.prompt[0] == {"role": "system", "content": "s"}


@pytest.mark.parametrize("content", ["", None, "s"])
def test_glm4_has_tools_in_its_system_message_and_calls_in_texts(content: str | None) -> None:
    for text in ('{"name": "add", "arguments": {"a": 1}}', '{"name": "add", "parameters": {"a": 1}}', 'add\n{"a": 1}'):
        said = [{"role": "assistant", "content": text}, {"role": "observation", "content": "2"}]
        system = {"role": "system", "content": content, "tools": [ADD]}
        (example,) = examples_of({"messages": [system, USER, *said, ANSWER]})
        told = [{"role": "system", "content": "s"}] if content else []
        assert example.prompt == [*told, USER, CALL, RESULT]
        assert (example.target, example.tools) == ("a", (ADD,))


@pytest.mark.parametrize(("observation", "said"), [("2", "2"), ({"r": [2]}, '{"r": [2]}'), (2, "2"), (True, "true")])
def test_chatglm3_has_call_and_result_in_one_turn(observation: Any, said: str) -> None:
    turn = {"role": "tool", "name": "add", "parameters": {"a": 1}, "observation": observation}
    (example,) = examples_of({"tools": [{"name": "add"}], "conversations": [USER, turn, ANSWER]})
    assert example.prompt == [USER, CALL, {"role": "tool", "content": said}]
    assert list(example.tools) == [{"name": "add"}]
    thought = {"role": "assistant", "content": "Let me see."}
    (example,) = examples_of({"tools": [{"name": "add"}], "conversations": [USER, thought, turn, ANSWER]})
    assert example.prompt == [USER, {**CALL, "content": "Let me see."}, {"role": "tool", "content": said}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": ["add"]}, "'tools', entry 1: a text, not the definition of a tool"),
        ({"tools": [{"function": "add"}]}, "'tools', entry 1: an object, not the definition of a tool"),
        ({"tools": {"name": "add"}}, "'tools' is an object, not a list"),
        ({"tools": [ADD], "functions": [{"name": "sub"}]}, "'tools' stand in several places and differ"),
        ({"messages": [USER, {**ANSWER, "reasoning_content": 5.0}]}, None),
        ({"messages": [USER, {**ANSWER, "reasoning_content": ["x"]}]}, "turn 2: 'reasoning_content' is a list"),
        ({"messages": [USER, {**ANSWER, "name": "Eve"}]}, "the answer to learn has a 'name'"),
        ({"messages": [USER, {**ANSWER, "loss": False}, USER, ANSWER]}, "turn 2: 'loss' says that this answer is not"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "turn 2: 'weight' says that this answer is not learned"),
        ({"messages": [{**USER, "loss": False}, {**ANSWER, "weight": 1}]}, None),
    ],
)
def test_what_cannot_be_kept_is_told(row: dict[str, Any], message: str | None) -> None:
    row = {"messages": [USER, ANSWER], **row}
    if message is None:
        assert len(examples_of(row)) == 1
        return
    with pytest.raises(FieldError, match=message):
        examples_of(row)


def test_names_and_thoughts_stay() -> None:
    for field in ("reasoning_content", "reasoning", "thinking"):
        before = {**ANSWER, field: "t0", "name": "Eve"}
        turns = [{**USER, "name": "Bob"}, before, USER, {**ANSWER, field: "t"}]
        (example,) = examples_of({"messages": turns})
        assert example.prompt == [
            {**USER, "name": "Bob"},
            {**ANSWER, "name": "Eve", "reasoning_content": "t0"},
            USER,
        ]
        assert example.answer == {"role": "assistant", "content": "a", "reasoning_content": "t"}


def test_images_of_a_question_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, '{"prompt": "q", "images": ["cat.png"]}', '{"prompt": "q"}')
    fault, question = read_questions(file)
    assert isinstance(fault, Fault) and (fault.line, fault.field) == (1, "images")
    assert not isinstance(question, Fault)


# --------------------------------------------------------------------------- turns of one role in a row


def test_turns_in_a_row_are_joined_on_request(tmp_path: Path) -> None:
    roles = ("system", "system", "user", "user", "assistant")
    turns = [{"role": role, "content": text} for role, text in zip(roles, "abcde", strict=True)]
    file = written(tmp_path, json.dumps({"messages": [*turns, {**ANSWER, "content": "f"}]}))
    with pytest.raises(
        UserError, match=r"some\.jsonl, line 1: .*system comes first|data\.join_turns=true joins the two"
    ):
        read_examples(file)
    (example,) = read_examples(file, DataSettings(join_turns=True))
    assert example.prompt == [{"role": "system", "content": "a\nb"}, {"role": "user", "content": "c\nd"}]
    assert example.target == "e\nf"
    shared = {"conversations": [{"from": "human", "value": "c"}, {"from": "user", "value": "d"}]}
    file = written(tmp_path, json.dumps(shared))
    (question,) = read_questions(file, joins_turns=True)
    assert not isinstance(question, Fault) and question.prompt == "c\nd"


def test_what_is_more_than_a_text_is_not_joined(tmp_path: Path) -> None:
    calls = [CALL, {**RESULT}, {**RESULT}]
    file = written(tmp_path, json.dumps({"messages": [USER, *calls, ANSWER]}))
    (example,) = read_examples(file, DataSettings(join_turns=True))
    assert example.prompt == [USER, CALL, RESULT, RESULT]
    file = written(tmp_path, json.dumps({"messages": [{**USER, "name": "Bob"}, {**USER, "name": "Eve"}, ANSWER]}))
    with pytest.raises(UserError, match="user follows user"):
        read_examples(file, DataSettings(join_turns=True))


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5", "5"),
        ("1.50", "1.50"),
        ("-0.0", "-0.0"),
        ("1e5", "1e5"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("true", "true"),
        ("false", "false"),
    ],
)
def test_numbers_are_the_texts_that_they_were_written_as(value: str, text: str, tmp_path: Path) -> None:
    lines = (f'{{"prompt": "q", "target": {value}}}', f'{{"question": "q", "answer": {value}}}')
    for line in (
        *lines,
        f'{{"messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": {value}}}]}}',
    ):
        for name, content in (("a.jsonl", line), ("a.json", f"[{line}]")):
            (example,) = read_examples(written(tmp_path, content, name=name))
            assert (example.prompt, example.target) == ("q", text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "null", "[1]", "{}"])
def test_what_is_no_number_is_no_text(value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: 'target' is missing, empty or not a text"):
        read_examples(written(tmp_path, f'{{"prompt": "q", "target": {value}}}'))


# --------------------------------------------------------------------------- LMFlow


@pytest.mark.parametrize(
    ("kind", "instances", "question", "target"),
    [
        ("text2text", [{"input": "q", "output": "a"}, {"input": "q", "output": "a"}], "q", "a"),
        ("text_only", [{"text": "t"}] * 2, "t", ""),
        ("conversation", [{"conversation_id": 1, "system": "", "tools": [], "messages": [USER, ANSWER]}] * 2, "q", "a"),
    ],
)
def test_data_sets_of_lmflow(kind: str, instances: list[Any], question: str, target: str, tmp_path: Path) -> None:
    for indent in (None, 4):
        file = tmp_path / "train.json"
        file.write_text(json.dumps({"type": kind, "instances": instances}, indent=indent))
        examples = read_examples(str(file))
        assert [(example.question, example.target) for example in examples] == [(question, target)] * 2


def test_an_instance_of_lmflow_is_named(tmp_path: Path) -> None:
    for instance, told in ((5, "entry 2: a number, not an object"), ({"input": "q"}, "entry 2: 'output' is missing")):
        value = {"type": "text2text", "instances": [{"input": "q", "output": "a"}, instance]}
        with pytest.raises(UserError, match=rf"line 1: 'instances', {told}"):
            read_examples(written(tmp_path, json.dumps(value), name="train.json"))


# --------------------------------------------------------------------------- lines that are cut off

DOCUMENT = r'{"prompt": "1+1 \" \u4f60", "target": [2, -1.5e-3, true, false, null, {"a": "b\\"}], "n": -12}'


@given(end=st.integers(1, len(DOCUMENT) - 1))
def test_a_line_that_is_cut_off_is_told_as_that(end: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("cut") / "a.jsonl"
    file.write_text('{"prompt": "q", "target": "a"}\n' + DOCUMENT[:end] + "\n", encoding="utf-8")
    _, fault = read(str(file))
    assert isinstance(fault, Fault) and fault.line == 2 and "the line ends in mid-record" in fault.message
    with pytest.raises(UserError, match="line 2: not JSON: the line ends in mid-record"):
        list(read_json_lines(file))


@pytest.mark.parametrize(
    "line", ['{"a": b}', "{'a': 1}", '{"a": 1]', '{"a": 1}}', '{"a": "\t"}', '{"a" 1}', "plain text"]
)
def test_other_faults_are_told_as_they_are(line: str, tmp_path: Path) -> None:
    (fault,) = read(written(tmp_path, line))
    assert isinstance(fault, Fault) and "not JSON: " in fault.message and "mid-record" not in fault.message

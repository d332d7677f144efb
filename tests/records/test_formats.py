"""Every format by small examples and, where they are, by real files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.examples import Example
from glmtune.messages import make_tool_call
from glmtune.records import Fault, formats, read
from glmtune.records.conversations import each_answer
from glmtune.records.fields import FieldError
from glmtune.records.formats import FORMATS, examples_of, format_of, mapped_format, recognise
from glmtune.records.readers import pair

SHARED = Path(__file__).parents[3] / "shared" / "data"

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}
RESULT = {"role": "tool", "content": "2"}


def with_input(instruction: str, given: str) -> list[dict[str, str]]:
    """A question as one text, and as Alpaca's own template writes it."""
    return [{"role": "user", "content": f"{instruction}\n{given}", "instruction": instruction, "input": given}]


# format -> row, prompt, target
EXAMPLES: dict[str, tuple[dict[str, Any], Any, str]] = {
    "preference": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "q", "a"),
    "alpaca_preference": (
        {"instruction": "do", "input": "x", "chosen": "a", "rejected": "b"},
        with_input("do", "x"),
        "a",
    ),
    "sharegpt_preference": (
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"},
        "q",
        "a",
    ),
    "question_preference": ({"question": "q", "chosen": "a", "rejected": "b", "system": "s"}, [SYSTEM, USER], "a"),
    "implicit_preference": (
        {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "b"}]},
        "q",
        "a",
    ),
    "labelled": ({"prompt": "q", "completion": "a", "label": True}, "q", "a"),
    "labelled_messages": ({"messages": [SYSTEM, USER, ANSWER], "label": True}, [SYSTEM, USER], "a"),
    "labelled_sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": True},
        "q",
        "a",
    ),
    "messages": ({"messages": [SYSTEM, USER, ANSWER]}, [SYSTEM, USER], "a"),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "q",
        "a",
    ),
    "lmflow": ({"type": "text2text", "instances": [{"input": "q", "output": "a"}]}, "q", "a"),
    "belle_seed": ({"instruction": "do", "instances": [{"input": "x", "output": "y"}]}, with_input("do", "x"), "y"),
    "alpaca": ({"instruction": "do", "input": "", "output": "y"}, "do", "y"),
    "math23k": ({"original_text": "5/5=?", "equation": "x=5/5", "ans": "1"}, "5/5=?", "x=5/5=1"),
    "prompt_target": ({"prompt": "q", "target": "a"}, "q", "a"),
    "chatglm_history": (
        {"prompt": "q2", "response": "a2", "history": [["q", "a"]]},
        [USER, ANSWER, {"role": "user", "content": "q2"}],
        "a2",
    ),
    "prompt_response": ({"prompt": "q", "response": "a"}, "q", "a"),
    "prompt_completion": ({"prompt": "q", "completion": "a"}, "q", "a"),
    "adgen": ({"content": "类型#裙", "summary": "一条裙子"}, "类型#裙", "一条裙子"),
    "gsm8k": ({"question": "q", "answer": "1+1=<<1+1=2>>2\n#### 2"}, "q", "1+1=<<1+1=2>>2\n#### 2"),
    "ape210k": ({"question": "q", "answer": "x=(5+1)/-5=1"}, "q", "x=(5+1)/-5=1"),
    "question_answer": ({"question": "q", "answer": "a"}, "q", "a"),
    "belle_eval": ({"question": "q", "std_answer": "a", "class": "math"}, "q", "a"),
    "query_response": ({"query": "q", "response": "a"}, "q", "a"),
    "context_target": ({"context": "q", "target": "a"}, "q", "a"),
    "input_output": ({"input": "q", "output": "a"}, "q", "a"),
    "text": ({"text": "once upon a time"}, "", ""),
}


def fault_of(row: dict[str, Any], own: Any = None) -> FieldError:
    with pytest.raises(FieldError) as told:
        examples_of(row, own)
    return told.value


def test_every_format_has_an_example() -> None:
    assert [known.name for known in FORMATS] == list(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_formats(name: str) -> None:
    row, prompt, target = EXAMPLES[name]
    (record,) = examples_of(row)
    assert (record.source.format, record.prompt, record.target) == (name, prompt, target)


@pytest.mark.parametrize("name", EXAMPLES)
def test_from_file_to_record(name: str, tmp_path: Path) -> None:
    row, prompt, target = EXAMPLES[name]
    (tmp_path / "one.json").write_text(json.dumps([row] * 3, ensure_ascii=False))
    found = list(read(str(tmp_path / "one.json")))
    assert [(r.source.format, r.prompt, r.target) for r in found if isinstance(r, Example)] == [
        (name, prompt, target)
    ] * 3


def test_preferences() -> None:
    for name, (row, _, _) in EXAMPLES.items():
        (example,) = examples_of(row)
        assert example.rejected == ("b" if "preference" in name else None)
    answers = {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "b"}]}
    (example,) = examples_of({"prompt": "q", **answers})  # as UltraFeedback has it
    assert (example.prompt, example.target, example.rejected) == ("q", "a", "b")
    assert fault_of({"prompt": "q", "chosen": "a", "rejected": " "}).field == "rejected"
    assert fault_of({"prompt": "q", "chosen": [USER], "rejected": "b"}).field == "chosen"
    assert "different conversations" in str(fault_of({**answers, "chosen": [SYSTEM, USER, ANSWER]}))


def test_talks_as_one_text() -> None:
    """Anthropic's HH-RLHF: what both talks begin with is the prompt."""
    talk = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 1+1?\nNow.\n\nAssistant: "
    (example,) = examples_of({"chosen": f"{talk}2", "rejected": f"{talk}3\n\nor 4"})
    asked = [("user", "hi"), ("assistant", "hello"), ("user", "1+1?\nNow.")]
    assert example.prompt == [{"role": role, "content": text} for role, text in asked]
    assert (example.target, example.rejected) == ("2", "3\n\nor 4")
    assert "different conversations" in str(fault_of({"chosen": f"{talk}2", "rejected": f"{talk[7:]}3"}))
    assert "ends without an answer" in str(fault_of({"chosen": talk, "rejected": f"{talk}3"}))
    assert fault_of({"chosen": "\n\nHuman: q", "rejected": f"{talk}3"}).field == "chosen"


def test_labels() -> None:
    """A bad answer is no target; a label that is something else, such as the number of a class, is no label."""
    for label in (False, "false", "FALSE"):
        (example,) = examples_of({"prompt": "q", "completion": "a", "label": label})
        assert (example.prompt, example.target, example.rejected) == ("q", "", "a")
    (example,) = examples_of({"prompt": [USER], "completion": [ANSWER], "label": False})  # as trl has it
    assert (example.prompt, example.target, example.rejected) == ("q", "", "a")
    (example,) = examples_of({"prompt": "q", "completion": "a", "label": 1})
    assert (example.target, example.source and example.source.format) == ("a", "prompt_completion")
    own = recognise([{"prompt": "q", "completion": "a", "label": True}])
    with pytest.raises(FieldError, match="'label' must be true or false"):
        examples_of({"prompt": "q", "completion": "a", "label": None}, own)
    assert "calls of tools" in str(fault_of({"messages": [USER, CALL], "label": False}))


def test_plain_text() -> None:
    (example,) = examples_of({"text": "once upon a time", "facts": {"kind": "tale"}})
    assert example.question == example.text == "once upon a time" and example.facts == {"kind": "tale"}


def test_images_are_kept() -> None:
    (example,) = examples_of({"prompt": "<image> what is it?", "target": "a cat", "images": ["cat.png"]})
    assert example.images == ("cat.png",) and example.prompt == "<image> what is it?"
    assert examples_of({"prompt": "q", "target": "a", "image": "cat.png"})[0].images == ("cat.png",)
    assert "entry 2: a number" in str(fault_of({"prompt": "q", "target": "a", "images": ["a.png", 7]}))


def test_a_new_format_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        formats, "FORMATS", [*FORMATS, formats.Format("riddle", ("riddle",), pair("riddle", "solution"))]
    )
    (example,) = examples_of({"riddle": "q", "solution": "a"})
    assert (example.prompt, example.target, example.source.format) == ("q", "a", "riddle")
    assert fault_of({"riddle": "q"}).field == "solution"


def test_facts() -> None:
    def facts(name: str) -> dict[str, Any]:
        return examples_of(EXAMPLES[name][0])[0].facts

    assert facts("gsm8k") == {"steps": 1}
    assert facts("ape210k") == {"operations": 2}
    assert facts("math23k") == {"operations": 1}
    assert facts("belle_eval") == {"class": "math"}
    assert examples_of({"prompt": "q", "response": "a", "facts": {"kind": "x"}})[0].facts == {"kind": "x"}


def test_most_of_the_first_rows_decide() -> None:
    plain, solved = EXAMPLES["question_answer"][0], EXAMPLES["gsm8k"][0]
    own = recognise([solved, plain, solved])
    assert own is not None and own.name == "gsm8k"
    assert "no '#### RESULT'" in str(fault_of(plain, own))
    other = recognise([plain, plain, solved])
    assert other is not None and examples_of(solved, other)[0].source.format == "question_answer"
    assert recognise([{"a": 1}]) is None and recognise([]) is None
    assert format_of(EXAMPLES["alpaca"][0], own).name == "alpaca"


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({"instruction": "a", "ouput": "b"}, "output", "Did you mean 'ouput'.*Rename it"),
        ({"foo": 1, "bar": 2}, "prompt", r"has foo, bar\. No known format.*data\.columns\.prompt=FIELD"),
        ({"instruction": "a", "input": 5, "output": "b"}, "input", "'input' is a number, not a text"),
        ({"prompt": "a", "response": None}, "response", "'response' is missing"),
        ({"prompt": "a", "response": ["b"]}, "response", "not a text but a list"),
        ({"prompt": "a\0", "target": "b"}, "prompt", "NUL"),
        ({"prompt": "a", "target": "\ud800"}, "target", "half of a character"),
        ({"prompt": "a" * 2_000_001, "target": "b"}, "prompt", "2,000,001 characters"),
        ({"prompt": "q", "response": "a", "history": "[1"}, "history", "not JSON of a list"),
        ({"prompt": "q", "response": "a", "history": {"a": 1}}, "history", "an object, not a list"),
        ({"prompt": "q", "response": "a", "history": [["a"]]}, "history", r"round 1: must be \[question, answer\]"),
        ({"original_text": "q", "equation": "5+5", "ans": "10"}, "equation", "must begin with x="),
        ({"original_text": "q", "equation": "x=5", "ans": " "}, "ans", "'ans' is empty"),
        ({"instruction": "a", "instances": []}, "instances", "no entries"),
        ({"instruction": "a", "instances": [{"input": ""}]}, "output", "'output' is missing"),
        ({"messages": []}, "messages", "no turns"),
        ({"messages": ["hi"]}, "messages", "turn 1: a text, not a message"),
        ({"messages": [{"role": "usr", "content": "q"}, ANSWER]}, "messages", "unknown role 'usr'.*mean 'user'"),
        ({"messages": [USER, USER, ANSWER]}, "messages", "turn 2: wrong order of roles: user follows user"),
        ({"messages": [ANSWER, USER]}, "messages", "turn 1: wrong order of roles: assistant comes first"),
        ({"messages": [USER, SYSTEM, ANSWER]}, "messages", "turn 2: wrong order of roles: system follows user"),
        ({"messages": [USER, ANSWER, USER]}, "messages", "ends with user: it has no answer"),
        ({"messages": [USER, CALL, RESULT]}, "messages", "ends with tool: it has no answer"),
        (
            {"prompt": "q", "target": "", "tool_calls": [{"name": ""}]},
            "tool_calls",
            "a call needs the function's 'name'",
        ),
        ({"prompt": "q", "chosen": [CALL], "rejected": "b"}, "chosen", "compared as texts"),
        ({"messages": [USER, CALL, ANSWER]}, "messages", "assistant follows call, not tool"),
        ({"messages": [{"role": "user", "content": ""}, ANSWER]}, "messages", "the user's text is empty"),
        ({"messages": [{"role": "user"}, ANSWER]}, "messages", "content is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}, ANSWER]},
            "messages",
            "a part that is neither text nor an image",
        ),
        ({"conversations": [{"from": "human", "value": "q"}] * 2}, "conversations", "user follows user"),
    ],
)
def test_faults_name_the_field(row: dict[str, Any], field: str, message: str) -> None:
    fault = fault_of(row)
    assert fault.field == field and re.search(message, str(fault)), fault


def test_calls_and_tools_become_messages_in_the_one_form() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    (record,) = examples_of({"messages": [USER, CALL, RESULT, ANSWER], "tools": tools})
    assert list(record.tools) == tools
    assert record.prompt == [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [make_tool_call("add", {"a": 1})]},
        {"role": "tool", "content": "2"},
    ]
    shared = [("human", "q"), ("function_call", '{"name": "add", "arguments": {"a": 1}}'), ("observation", "2")]
    turns = [{"from": role, "value": text} for role, text in [*shared, ("gpt", "a")]]
    assert examples_of({"conversations": turns})[0].prompt == record.prompt


def test_answers_may_call_tools() -> None:
    call = make_tool_call("add", {"a": 1})
    shared = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
    ]
    own = {"prompt": "q", "target": "", "tool_calls": [call]}  # as `glmtune data` writes it
    for row in ({"messages": [USER, CALL]}, {"conversations": shared}, own):
        (example,) = examples_of(row)
        assert (example.prompt, example.target, example.tool_calls, example.notes) == ("q", "", (call,), ())


@pytest.mark.parametrize(
    ("calls", "fault"), [("add", "not JSON of a list"), ({"name": "add"}, "an object, not a list")]
)
def test_calls_that_are_no_list(calls: Any, fault: str) -> None:
    with pytest.raises(FieldError, match=f"'messages', turn 2: 'tool_calls' is .*{fault}"):
        examples_of({"messages": [USER, {**ANSWER, "tool_calls": calls}]})


def test_calls_as_a_table_has_them() -> None:
    call = make_tool_call("add", {"a": 1})
    (example,) = examples_of({"messages": [USER, {**ANSWER, "tool_calls": json.dumps([call])}]})
    assert example.tool_calls == (call,)


def test_tools_in_a_system_message() -> None:
    """As GLM-4 has them."""
    tools = [{"type": "function", "function": {"name": "add"}}]
    (example,) = examples_of({"messages": [{**SYSTEM, "tools": tools}, USER, ANSWER]})
    assert list(example.tools) == tools and example.prompt == [SYSTEM, USER]


def test_a_call_and_its_result_in_one_turn() -> None:
    """As ChatGLM3 has them."""
    turn = {"role": "tool", "name": "add", "parameters": {"a": 1}, "observation": "2"}
    (example,) = examples_of({"tools": [{"name": "add"}], "conversations": [USER, turn, ANSWER]})
    call = {"role": "assistant", "content": None, "tool_calls": [make_tool_call("add", {"a": 1})]}
    assert example.prompt == [USER, call, {"role": "tool", "content": "2"}] and example.target == "a"


def test_images_within_messages() -> None:
    """A content with images stays a list of parts; one of texts becomes a text."""
    image = {"type": "image_url", "image_url": {"url": "cat.png"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "q"}, image, {"type": "image"}]}
    (example,) = examples_of({"messages": [asked, ANSWER], "images": ["dog.png"]})
    parts = [{"type": "text", "text": "q"}, {"type": "image", "image": "cat.png"}, {"type": "image"}]
    assert example.prompt == [{"role": "user", "content": parts}]
    assert example.images == ("dog.png", "cat.png")
    assert examples_of({"messages": [{**asked, "content": asked["content"][:1]}, ANSWER]})[0].prompt == "q"


def test_prompts_may_call_roles_as_they_like() -> None:
    (example,) = examples_of({"prompt": [{"from": "human", "value": "q"}], "target": "a", "tools": [{"name": "add"}]})
    assert (example.prompt, list(example.tools)) == ("q", [{"name": "add"}])


def test_odd_starts_and_ends_are_left_out_and_told() -> None:
    turns = [("gpt", "hello"), ("human", "q"), ("gpt", "a"), ("human", "thanks")]
    (record,) = examples_of({"conversations": [{"from": role, "value": text} for role, text in turns]})
    assert (record.prompt, record.target) == ("q", "a")
    assert record.notes == (
        "began with a turn of the assistant, which is left out",
        "ended with a turn of the user, which is left out",
    )


def test_alpaca_with_system_and_history() -> None:
    row = {"instruction": "q2", "input": "i", "output": "a2", "system": "s", "history": [["q", "a"]]}
    (record,) = examples_of(row)
    assert record.prompt == [SYSTEM, USER, ANSWER, *with_input("q2", "i")]
    assert examples_of({**row, "system": "", "history": '[["q", "a"]]'})[0].prompt == record.prompt[1:]


def test_several_instances() -> None:
    row = {"instruction": "do", "instances": [{"input": "1", "output": "a"}, {"input": "", "output": "b"}]}
    assert [(record.prompt, record.target) for record in examples_of(row)] == [
        (with_input("do", "1"), "a"),
        ("do", "b"),
    ]


def test_columns() -> None:
    known = mapped_format({"prompt": "问题", "target": "答案"})
    assert examples_of({"问题": "q", "答案": "a", "other": 1}, known)[0].prompt == "q"
    fault = fault_of({"问题": "q", "答": "a"}, known)
    assert fault.field == "答案" and "data.columns.target: no field '答案'; the record has 问题, 答" in str(fault)
    with_system = mapped_format({"prompt": "q", "target": "a", "system": "s", "history": "h"})
    row = {"q": "q2", "a": "a2", "s": "s", "h": [["q", "a"]]}
    assert len(examples_of(row, with_system)[0].prompt) == 4


def test_each_answer() -> None:
    (record,) = examples_of({"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]})
    assert [(one.prompt, one.target) for one in each_answer(record)] == [
        ([SYSTEM, USER], "a"),
        ([SYSTEM, USER, ANSWER, USER], "a"),
    ]
    (plain,) = examples_of({"messages": [USER, CALL, RESULT, ANSWER, USER, ANSWER]})
    called, *_ = answers = each_answer(plain)
    assert [len(one.prompt) for one in answers] == [1, 3, 5]
    assert (called.prompt, called.target, called.tool_calls) == ("q", "", (make_tool_call("add", {"a": 1}),))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(str.strip)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.none() | TEXT)
def test_conversations_come_back(rounds: list[tuple[str, str]], system: str | None) -> None:
    texts = [text for entry in rounds for text in entry]
    roles = ["user", "assistant"] * len(rounds)
    first = [] if system is None else [{"role": "system", "content": system}]
    messages = [*first, *({"role": role, "content": text} for role, text in zip(roles, texts, strict=True))]
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    shared = [{"from": names[message["role"]], "value": message["content"]} for message in messages]
    history = {"prompt": rounds[-1][0], "response": rounds[-1][1], "history": rounds[:-1]}
    expected: Any = messages[:-1] if len(messages) > 2 else messages[0]["content"]
    for row in ({"messages": messages}, {"conversations": shared}, {**history, "system": system}):
        (record,) = examples_of(json.loads(json.dumps(row)))
        assert (record.prompt, record.target, record.notes) == (expected, rounds[-1][1], ())
        for one in each_answer(record):
            assert one.target in texts


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real files are not here: {SHARED}")
@pytest.mark.parametrize(
    ("file", "known", "records", "faults"),
    [
        ("alpaca_zh.json", "alpaca", 3996, 4),  # four empty outputs
        ("ape210k_mwp.jsonl", "ape210k", 1997, 3),  # three equations without x=
        ("belle_eval.jsonl", "belle_eval", 295, 205),  # open questions have no answer
        ("belle_seed_tasks.jsonl", "belle_seed", 175, 0),
        ("gsm8k.jsonl", "gsm8k", 600, 0),
        ("math23k_trainset.sample.json", "math23k", 37, 0),
    ],
)
def test_real_files(file: str, known: str, records: int, faults: int) -> None:
    entries = list(read(str(SHARED / file)))
    found = [entry for entry in entries if isinstance(entry, Example)]
    told = [entry for entry in entries if isinstance(entry, Fault)]
    assert (len(found), len(told)) == (records, faults)
    assert {record.source.format for record in found} == {known}
    assert all(fault.line and fault.field in ("output", "answer", "std_answer") for fault in told)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_field_that_a_format_reads_is_read_from_a_table(name: str, tmp_path: Path) -> None:
    """Columns that no format reads are left out; of those that one reads, none is."""
    pyarrow = pytest.importorskip("pyarrow", reason="tables are read by pyarrow")
    from pyarrow import parquet

    row, _, _ = EXAMPLES[name]
    more = {"facts": {"kind": "x"}, "system": "s", "history": [["a", "b"]], "images": ["c.png"]}
    row = {**({} if name == "text" else more), **row}
    if name == "sharegpt_preference":  # a text here, a message there: no type of a table
        row["rejected"] = {"from": "gpt", "value": "b"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(row), "utf-8")
    assert [*read(str(tmp_path / "a.parquet"))] == [*read(str(tmp_path / "a.jsonl"))]

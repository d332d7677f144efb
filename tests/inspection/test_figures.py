"""What is counted of files of records: everything planted is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.commands.inspect import run
from glmtune.data.encoding import IGNORED, encode_example
from glmtune.resolution import resolve

SHARED = Path(__file__).parents[3] / "shared" / "data"
GOOD = [{"prompt": f"第 {i} 个问题是什么？", "target": f"第 {i} 个答案。"} for i in range(40)]


def test_whole_records(write_records: Any, tmp_path: Path) -> None:
    file = str(write_records(*GOOD, name="good.jsonl"))
    report = run([file], str(tmp_path / "report.json"))
    assert report == json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (report["format"], report["records"], report["faults"], report["duplicates"]) == ("prompt_target", 40, [], 0)
    assert sum(report["splits"].values()) == 40
    tokenizer = resolve("nano").tokenizer
    encodings = [encode_example(tokenizer, record["prompt"], record["target"]) for record in GOOD]
    tokens = report["tokens"]
    assert tokens["total"] == sum(len(encoding["input_ids"]) for encoding in encodings)
    assert tokens["learned"] == sum(label != IGNORED for encoding in encodings for label in encoding["labels"])
    assert tokens["whole"]["max"] == max(len(encoding["input_ids"]) for encoding in encodings)
    assert tokens["too_long"] == 0 and tokens["limit"] == 512


def test_planted_leak(write_records: Any, tmp_path: Path) -> None:
    learned = [{"prompt": "57.84+13.64=", "target": "71.48"}, *GOOD]
    judged = [
        {"prompt": "计算：13.64 + 57.840 = ？", "target": "71.48"},
        {"prompt": "第3个问题是什么?", "target": "?"},
        {"prompt": "57.84+13.65=", "target": "71.49"},
    ]
    files = [str(write_records(*learned, name="a.jsonl")), str(write_records(*judged, name="b.jsonl"))]
    report = run(files[:1], overrides=[f"task.held_out_file={files[1]}"])
    assert report["leaks"] == 2 and report["splits"] == {"train": 41, "held_out": 3}
    assert [(fault["file"], fault["line"], fault["field"]) for fault in report["faults"]] == [
        (files[1], 1, "prompt"),
        (files[1], 2, "prompt"),
    ]
    assert all(fault["message"].startswith(f"leak: {files[0]}, line") for fault in report["faults"])


def test_what_the_template_refuses_is_a_fault_of_its_record(write_records: Any, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "1+1"}}}
    messages = [
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "2"},
    ]
    file = str(write_records(*[{"messages": messages}] * 2, name="calls.jsonl"))
    report = run([file])
    assert report["records"] == 0 and report["examples"] == []
    assert [(fault["file"], fault["line"]) for fault in report["faults"]] == [(file, 1), (file, 2)]
    assert "calculate(expression)" in report["faults"][0]["message"]


def test_planted_duplicates(write_records: Any, tmp_path: Path) -> None:
    again = [{"prompt": "第3个问题是什么?", "target": "第 3 个答案"}, {"prompt": GOOD[5]["prompt"], "target": "又一个"}]
    file = str(write_records(*[*GOOD, *again], name="a.jsonl"))
    report = run([file])
    assert report["duplicates"] == 1 and report["faults"] == [] and report["near_duplicates"] is None
    assert report["duplicate_places"] == [{"file": file, "line": 41, "first_file": file, "first_line": 4}]
    near = run([file], overrides=["data.deduplicate=near"])
    assert near["near_duplicates"] > 30


def test_planted_cut_ends(write_records: Any, tmp_path: Path) -> None:
    cut = [{"prompt": f"问题 {i}", "target": (f"{i}，" + "这个答案很长，后面还有" * 20)[:64]} for i in range(6)]
    file = str(write_records(*[*GOOD, *cut], name="a.jsonl"))
    report = run([file])
    assert [(fault["line"], fault["field"]) for fault in report["faults"]] == [(i, "target") for i in range(41, 47)]
    assert "has 64 characters, the most of all, as 5 others have" in report["faults"][0]["message"]


def test_planted_wrong_order(write_records: Any, tmp_path: Path) -> None:
    turns = [("human", "q"), ("human", "q"), ("gpt", "a")]
    bad = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    good = {"conversations": bad["conversations"][1:]}
    report = run([str(write_records(*[good, bad], name="a.jsonl"))])
    assert (report["format"], report["records"]) == ("sharegpt", 1)
    ((fault),) = report["faults"]
    assert (fault["line"], fault["field"]) == (2, "conversations") and "wrong order of roles" in fault["message"]


def test_notes(write_records: Any, tmp_path: Path) -> None:
    turns = [("gpt", "hello"), ("human", "q"), ("gpt", "a"), ("human", "q"), ("gpt", "a")]
    odd = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    report = run([str(write_records(*[odd, {"prompt": "q", "target": "```python\nprint("}], name="a.jsonl"))])
    assert report["faults"] == [] and report["formats"] == {"sharegpt": 1, "prompt_target": 1}
    notes = "\n".join(report["notes"])
    for part in ("began with a turn of the assistant", "code in the target", "data.turns=each", "No record for the"):
        assert part in notes


def test_texts_and_preferences(write_records: Any, tmp_path: Path) -> None:
    """Of plain text every token is learned; of a preference the better answer."""
    report = run([str(write_records({"text": "once upon a time"}, {"prompt": "q", "chosen": "a", "rejected": "b"}))])
    assert report["formats"] == {"text": 1, "preference": 1} and not report["faults"]
    text = "".join(piece for piece, learned, control in report["examples"][0]["tokens"] if learned and not control)
    assert text == "once upon a time"
    assert any("1 records have a 'rejected' answer" in note for note in report["notes"])


def test_too_long(write_records: Any, tmp_path: Path) -> None:
    file = str(write_records(*[*GOOD, {"prompt": "长" * 200, "target": "a"}], name="a.jsonl"))
    report = run([file], overrides=["data.max_length=100"])
    assert report["tokens"]["limit"] == 100 and report["tokens"]["too_long_places"] == [{"file": file, "line": 41}]
    assert report["faults"] == []


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real files are not here: {SHARED}")
@pytest.mark.parametrize(
    ("file", "known", "whole"),
    [
        ("math23k_trainset.sample.json", "math23k", True),
        ("belle_seed_tasks.jsonl", "belle_seed", True),
        ("gsm8k.jsonl", "gsm8k", True),
        ("ape210k_mwp.jsonl", "ape210k", False),
        ("belle_eval.jsonl", "belle_eval", False),
        ("alpaca_zh.json", "alpaca", False),
    ],
)
def test_real_files(file: str, known: str, whole: bool, tmp_path: Path) -> None:
    report = run([str(SHARED / file)])
    assert report["format"] == known and (not report["faults"]) == whole
    assert {fault["field"] for fault in report["faults"]} <= {"output", "answer", "std_answer"}

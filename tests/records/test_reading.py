"""From files to examples, with what is wrong told together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glmtune.config import DataSettings
from glmtune.examples import Example, Source
from glmtune.records import SHOWN, read, read_all, read_examples, until_many
from glmtune.records.faults import MOST
from glmtune.runtime import UserError

ROWS = [{"prompt": f"问 {i}", "target": f"答\n{i}"} for i in range(5)]


def write(path: Path, *records: Any) -> str:
    """A JSONL file; texts are lines as they are."""
    written = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("".join(line + "\n" for line in written), encoding="utf-8")
    return str(path)


def test_examples_know_where_they_stand(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "q", "target": "a"}, {"instruction": "do", "output": "b"})
    sources = [example.source for example in read_examples(file)]
    assert sources == [Source(file, 1, "prompt_target"), Source(file, 2, "alpaca")]
    assert str(sources[1]) == f"line 2 of {file}"


@pytest.mark.parametrize(
    ("record", "example"),
    [
        ({"prompt": "你好", "target": "你好！"}, Example("你好", "你好！")),
        ({"prompt": " a\n", "target": "b", "more": 1}, Example(" a\n", "b")),
        ({"prompt": "a", "target": "b", "facts": {"kind": "x"}}, Example("a", "b", {"kind": "x"})),
        ({"prompt": "a", "target": "b", "facts": "none"}, Example("a", "b")),
        (
            {"instruction": "Add", "input": "1+1", "output": "2"},
            Example([{"role": "user", "content": "Add\n1+1", "instruction": "Add", "input": "1+1"}], "2"),
        ),
        ({"instruction": "Greet", "input": "", "output": "Hi"}, Example("Greet", "Hi")),
        ({"instruction": "Greet", "output": "Hi", "facts": {"k": 1}}, Example("Greet", "Hi", {"k": 1})),
    ],
)
def test_records(record: dict[str, Any], example: Example, tmp_path: Path) -> None:
    assert read_examples(write(tmp_path / "one.jsonl", record)) == [example]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({}, "'prompt' is missing.*has nothing"),
        ({"prompt": "a"}, "'target' is missing.*has prompt"),
        ({"ask": "a", "reply": "b"}, "'prompt' is missing.*has ask, reply"),
        ({"prompt": "a", "target": "  "}, "'target' is missing, empty"),
        ({"prompt": "a", "target": [5]}, "'target'.*not a text"),
        ({"prompt": ["a"], "target": "b"}, "'prompt'.*not a text"),
        ({"instruction": "a", "input": "b"}, "'output' is missing.*has instruction, input"),
        ({"instruction": "", "input": "b", "output": "c"}, "'instruction' is missing, empty"),
    ],
)
def test_faulty_records(record: dict[str, Any], fault: str, tmp_path: Path) -> None:
    file = write(tmp_path / "faulty.jsonl", {"prompt": "a", "target": "b"}, record)
    with pytest.raises(UserError, match=rf"faulty\.jsonl, line 2: {fault}"):
        read_examples(file)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [(["{"], "line 1: not JSON"), (["[]"], "line 1: a list"), ([""], "line 1: empty"), ([], "no records")],
)
def test_faulty_files(lines: list[str], fault: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=fault):
        read_examples(write(tmp_path / "faulty.jsonl", *lines))


def test_every_format_is_read(tmp_path: Path) -> None:
    turns = [
        {"from": role, "value": text} for role, text in [("human", "q"), ("gpt", "a"), ("human", "q2"), ("gpt", "b")]
    ]
    file = write(tmp_path / "mixed.jsonl", {"conversations": turns}, {"question": "q", "answer": "a"})
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    last = Example([*history, {"role": "user", "content": "q2"}], "b")  # type: ignore[arg-type]
    assert read_examples(file) == [replace(last, train_on_all_turns=True), Example("q", "a")]
    assert read_examples(file, DataSettings(turns="last")) == [last, Example("q", "a")]
    assert read_examples(file, DataSettings(turns="each")) == [Example("q", "a"), last, Example("q", "a")]


def test_deduplicate(tmp_path: Path) -> None:
    pairs = [
        ("写一首关于春天的诗", "春眠不觉晓"),
        ("写一首关于 春天的诗。", "春眠不觉晓"),
        ("写一首关于秋天的诗", "春眠不觉晓"),
    ]
    file = write(tmp_path / "again.jsonl", *({"prompt": prompt, "target": target} for prompt, target in pairs))
    counts = [len(read_examples(file, DataSettings(deduplicate=rule))) for rule in ("none", "exact", "near")]  # type: ignore[arg-type]
    assert counts == [3, 2, 1]


def test_faults_are_told_together(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *ROWS, *({"prompt": "q", "taget": "a"} for _ in range(30)))
    with pytest.raises(UserError) as told:
        read_all(source)
    message = str(told.value).splitlines()
    assert message[0] == f"{source}: 30 faults:"
    assert message[1].startswith(f"  {source}, line 6: 'target' is missing") and "Did you mean 'taget'" in message[1]
    assert len(message) == SHOWN + 3 and "and 10 more" in message[-2] and "data.on_error=skip" in message[-1]


def test_reading_stops_at_many_faults(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *["{"] * (MOST + 1), ROWS[0])
    with pytest.raises(UserError) as told:
        read_all(source)
    message = str(told.value).splitlines()
    assert message[0] == f"{source}: at least {MOST} faults:" and f"and {MOST - SHOWN} more" in message[-2]
    assert len(list(until_many(read(source)))) == MOST
    assert len(read_all(source, on_error="skip")) == 1  # of which none is left unread


def test_skipped_records_are_written(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ROWS[0], {"prompt": "q"}, "{", ROWS[1])
    assert [record.source.line for record in read_all(source, on_error="skip")] == [1, 4]
    left_out = [json.loads(line) for line in (tmp_path / "a.jsonl.skipped.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["field"], entry["record"]) for entry in left_out] == [
        (2, "target", {"prompt": "q"}),
        (3, None, "{\n"),
    ]
    assert read_all(source, on_error="skip") == read_all(str(tmp_path), on_error="skip")
    nothing = write(tmp_path / "b.jsonl", "{")
    with pytest.raises(UserError, match="no records are left; all 1 are faulty"):
        read_all(nothing, on_error="skip")
    with pytest.raises(UserError, match="no records"):
        read_all(write(tmp_path / "c.jsonl"), on_error="skip")


@pytest.mark.parametrize("files", [1, 2])
def test_whole_files_are_not_said_to_be_left_out(files: int, tmp_path: Path) -> None:
    """data.on_error=skip leaves out records; what ends a file stops with it, too."""
    for number in range(files):
        (tmp_path / f"{number}.json").write_text('[{"prompt": "1", "target": "2"},')
    with pytest.raises(UserError) as told:
        read_all(str(tmp_path))
    assert "on_error" not in str(told.value) and str(told.value).count("cut off") == files
    (tmp_path / "row.jsonl").write_text("{bad\n")
    with pytest.raises(UserError, match=r"Mend them, or leave what is faulty out with data\.on_error=skip\.$"):
        read_all(str(tmp_path))

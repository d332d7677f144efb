from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from glmtune.config import RecipeError, load_recipe
from glmtune.runtime import UserError
from glmtune.tasks import Example, split_of
from glmtune.tasks.instructions import Instructions, InstructionsSettings, example_of, read_examples


def write(path: Path, *records: Any) -> str:
    """A JSONL file; texts are lines as they are."""
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def task(file: str, **values: Any) -> Instructions:
    return Instructions(InstructionsSettings(name="instructions", file=file, **values))


@pytest.fixture
def poems(tmp_path: Path) -> str:
    return write(tmp_path / "poems.jsonl", *({"prompt": f"诗 {i}", "target": f"第 {i} 首"} for i in range(400)))


@pytest.mark.parametrize(
    ("record", "example"),
    [
        ({"prompt": "你好", "target": "你好！"}, Example("你好", "你好！")),
        ({"prompt": " a\n", "target": "b", "more": 1}, Example(" a\n", "b")),
        ({"prompt": "a", "target": "b", "facts": {"kind": "x"}}, Example("a", "b", {"kind": "x"})),
        ({"prompt": "a", "target": "b", "facts": "none"}, Example("a", "b")),
        ({"instruction": "Add", "input": "1+1", "output": "2"}, Example("Add\n1+1", "2")),
        ({"instruction": "Greet", "input": "", "output": "Hi"}, Example("Greet", "Hi")),
        ({"instruction": "Greet", "output": "Hi", "facts": {"k": 1}}, Example("Greet", "Hi", {"k": 1})),
    ],
)
def test_records(record: dict[str, Any], example: Example) -> None:
    assert example_of(record) == example


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({}, "'prompt' is missing.*has nothing"),
        ({"prompt": "a"}, "'target' is missing.*has prompt"),
        ({"question": "a", "answer": "b"}, "'prompt' is missing.*has question, answer"),
        ({"prompt": "a", "target": "  "}, "'target' is missing, empty"),
        ({"prompt": "a", "target": 5}, "'target'.*not a text"),
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


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        task(str(tmp_path / "nowhere.jsonl")).records("train")


def test_splits_are_told_by_the_prompt(poems: str) -> None:
    records = {split: task(poems, held_out=0.2).records(split) for split in ("train", "held_out")}
    assert len(records["train"]) + len(records["held_out"]) == 400
    assert len(records["held_out"]) == pytest.approx(80, abs=30)
    for split, examples in records.items():
        assert {split_of(example.prompt, 0.2) for example in examples} == {split}
        numbers = [int(example.prompt.split()[1]) for example in examples]
        assert numbers == sorted(numbers)  # the file's order


def test_more_records_move_none(poems: str, tmp_path: Path) -> None:
    longer = write(tmp_path / "longer.jsonl", {"prompt": "new", "target": "x"}, *Path(poems).read_text().splitlines())
    assert set(map(repr, task(poems).records("held_out"))) <= set(map(repr, task(longer).records("held_out")))


def test_equal_prompts_stay_together(tmp_path: Path) -> None:
    records = [{"prompt": f"p{i % 40}", "target": f"t{i}"} for i in range(200)]
    made = task(write(tmp_path / "twice.jsonl", *records), held_out=0.3)
    train, held_out = ({example.prompt for example in made.records(split)} for split in ("train", "held_out"))
    assert train and held_out and not train & held_out


def test_held_out_file(poems: str, tmp_path: Path) -> None:
    judged = write(tmp_path / "judged.jsonl", {"prompt": "q", "target": "a"})
    made = task(poems, held_out_file=judged)
    assert len(made.records("train")) == 400
    assert list(made.records("held_out")) == [Example("q", "a")]


def test_a_split_without_records_is_told(tmp_path: Path) -> None:
    lonely = write(tmp_path / "lonely.jsonl", {"prompt": "q", "target": "a"})
    with pytest.raises(UserError, match=r"no record for the .* split \(1 in all\).*task\.held_out_file"):
        task(lonely).records("train")


def test_samples_are_records(poems: str) -> None:
    made = task(poems)
    first, again = ([made.sample(random.Random(7), "held_out") for _ in range(5)] for _ in range(2))
    assert first == again and all(example in made.records("held_out") for example in first)


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("Good morning, 你好", "exact"),
        ("  Good morning, 你好\n", "exact"),
        ("Good  morning,\n你好", "equal"),
        ("good MORNING, 你好", "wrong"),
        ("Good morning", "wrong"),
        ("", "unparseable"),
        (" \n", "unparseable"),
    ],
)
def test_score(completion: str, verdict: str) -> None:
    score = task("unread.jsonl").score(Example("?", "Good morning, 你好\n"), completion)
    assert (score.verdict, score.answer) == (verdict, completion.strip())


def test_settings() -> None:
    with pytest.raises(RecipeError, match=r"task\.file: Field required"):
        load_recipe(None, ["task.name=instructions"])
    recipe = load_recipe(None, ["task.name=instructions", "task.file=a.jsonl", "task.held_out=0.5"])
    assert isinstance(recipe.task, InstructionsSettings) and recipe.task.held_out == 0.5

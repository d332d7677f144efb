"""`glmtune pairs`: right answers against wrong ones of a model, of problems that are not held out."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from glmtune.commands import pairs, train
from glmtune.inference import pairs as inference_pairs
from glmtune.records import read_examples
from glmtune.resolution import resolve
from glmtune.runtime import UserError

SUMS = [
    *("task.operators=+", "task.kinds=[integer]", "task.maximum=30", "task.style=direct", "task.echo=false"),
    *("task.held_out=0.3", "generation.max_new_tokens=6", "generation.batch_size=16"),
]


@pytest.fixture(scope="module")
def partly_right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano after some steps: right now and then."""
    folder = tmp_path_factory.mktemp("runs") / "sums"
    some = ["training.steps=9", "evaluation.num_examples=2", "training.eval_steps=9"]
    train.run(overrides=[*SUMS, *some, f"training.output_dir={folder}"])
    return folder


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_pairs(partly_right: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "pairs.jsonl"
    found = pairs.run(partly_right, 25, str(output), num_samples=6, most=2)
    records = records_of(output)
    assert found.pairs == len(records) > 2 and found.prompts <= 25 and list(tmp_path.iterdir()) == [output]
    rights = [record["right"] for record in records]
    assert rights == sorted(rights) and rights[0] > 0 and rights[-1] < 6, "hard ones first"
    task = resolve(partly_right).task
    for record in records:
        assert not task.holds_out(record["prompt"]) and record["samples"] == 6
        assert task.mark(record["prompt"], record["chosen"])["correct"] == 1
        assert task.mark(record["prompt"], record["rejected"])["correct"] == 0
    assert [(e.prompt, e.target, e.rejected) for e in read_examples(str(output))] == [
        (record["prompt"], record["chosen"], record["rejected"]) for record in records
    ]
    before = output.read_bytes()
    pairs.run(partly_right, 25, str(output), num_samples=6, most=2)
    assert output.read_bytes() == before, "the same seed, the same pairs"
    bar = capsys.readouterr().err  # 16 * 8 // 6 prompts are answered together, and told together
    told = [int(number) for number in re.findall(r"sampling: .*? (\d+)/", bar)]
    assert told[0] == 0 and set(told) <= {0, 21, found.prompts} and told[-1] == found.prompts
    asked = {"output": "pairs.jsonl", "num_samples": 6, "task": None, "settings": ["task.maximum=9", "seed=4"]}
    pairs.show(found, argparse.Namespace(**asked, target=partly_right))
    told = capsys.readouterr().out
    assert f"{found.pairs} pairs written to pairs.jsonl" in told
    whole = (
        f"train {partly_right} task.maximum=9 training.output_dir=NEW objective.name=dpo objective.pairs=pairs.jsonl"
    )
    assert whole in told
    pairs.show(found, argparse.Namespace(**(asked | {"task": "mine.py"}), target="nano"))
    assert "train model.path=nano task.name=mine.py task.maximum=9 objective.name=dpo" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_found(
    partly_right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = inference_pairs.sample_pairs

    def interrupted(*args: Any) -> Any:
        yield next(plain(*args))[:10]
        raise KeyboardInterrupt

    monkeypatch.setattr(inference_pairs, "sample_pairs", interrupted)
    output = tmp_path / "pairs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        pairs.run(partly_right, 25, str(output), num_samples=6)
    assert 0 < len(records_of(output)) <= 10
    assert "of 10 prompts written to" in capsys.readouterr().err


def test_no_pair(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A model that knows nothing is to learn by targets first; nothing is written."""
    with pytest.raises(UserError, match=r"No pair was found.*5 wrong ones alone.*objective\.name=sft first"):
        pairs.run(tiny_checkpoint, 5, str(tmp_path / "pairs.jsonl"), ["task.held_out=0.3", *SUMS[6:], "seed=7"])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n": 0}, "--n 0: must be at least 1"),
        ({"num_samples": 1}, "--num-samples 1: must be at least 2"),
        ({"most": 0}, "--pairs-per-prompt 0: must be at least 1"),
        ({"output": "pairs.csv"}, r"Name it pairs\.jsonl"),
        ({"overrides": ["generation.do_sample=false"]}, "all answers to a prompt would be the same"),
    ],
)
def test_what_makes_no_pair_is_told_first(
    arguments: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        pairs.run(**{"target": "nano", "n": 5, "output": "pairs.jsonl", **arguments})


def test_what_is_asked_is_asked_whole_and_has_an_answer(tmp_path: Path, write_records: Any) -> None:
    """No prompt has the call of a tool in it, and none is left without a target, by which every answer is wrong."""
    asked = pairs.choose_prompts(resolve("nano", ["task.style=tool", "task.operators=+"]), 20, 1)
    assert len(asked) > 10 and all(isinstance(example.prompt, str) and example.target for example in asked)
    call = {"function": {"name": "f", "arguments": {}}}
    answers = ({"content": "x"}, {"content": "", "tool_calls": [call]})
    rows = [
        {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", **answers[number % 2]}]}
        for number in range(40)
    ]
    settings = ["task.name=instructions", f"task.file={write_records(*rows)}", "task.held_out=0.3"]
    asked = pairs.choose_prompts(resolve("nano", settings), 40, 1)
    assert asked and all(example.target == "x" for example in asked)

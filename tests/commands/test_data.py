from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glmtune.arithmetic.problems import Problem
from glmtune.cli import main
from glmtune.commands.data import run
from glmtune.config import RecipeError
from glmtune.examples import split_of
from glmtune.records import read_examples
from glmtune.runtime import UserError


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_records(tmp_path: Path) -> None:
    output = tmp_path / "new" / "data.jsonl"
    assert run("arithmetic", 20, str(output)) == 20
    records = records_of(output)
    assert len(records) == 20
    for record in records:
        assert list(record) == ["prompt", "target", "facts"]
        problem = Problem.parse(record["prompt"])
        assert problem is not None and record["facts"] == problem.facts()
    assert [example.target for example in read_examples(str(output))] == [record["target"] for record in records]
    assert list(output.parent.iterdir()) == [output]


def test_what_is_written_can_be_learned_again(tmp_path: Path) -> None:
    output = str(tmp_path / "data.jsonl")
    run("arithmetic", 20, output, "train", ["task.style=tool"])
    again = [(one.prompt, one.target, list(one.tool_calls), list(one.tools)) for one in read_examples(output)]
    written = records_of(tmp_path / "data.jsonl")
    assert again == [(r["prompt"], r["target"], r.get("tool_calls", []), r.get("tools", [])) for r in written]
    assert any(calls for _, _, calls, _ in again)


def test_no_table_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"written as JSON lines. Name it data\.jsonl"):
        run("arithmetic", 20, str(tmp_path / "data.csv"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_split(split: Any, tmp_path: Path) -> None:
    run("arithmetic", 30, str(tmp_path / "data.jsonl"), split)
    forms = {Problem.parse(record["prompt"]).normal_form for record in records_of(tmp_path / "data.jsonl")}
    assert {split_of(form, 0.1) for form in forms} == {split}


def test_settings_and_seed(tmp_path: Path) -> None:
    def drawn(*overrides: str) -> list[dict[str, Any]]:
        run("arithmetic", 15, str(tmp_path / "data.jsonl"), overrides=list(overrides))
        return records_of(tmp_path / "data.jsonl")

    assert drawn("task.operators=-", "task.kinds=[integer]", "task.prompt_words=true") == drawn(
        "task.operators='-'", "task.kinds=[integer]", "task.prompt_words=true", "seed=42"
    )
    assert drawn("seed=1") == drawn("seed=1") != drawn("seed=2")
    assert {record["facts"]["operator"] for record in drawn("task.operators=×÷")} == {"*", "/"}


def test_chinese_stays_readable(tmp_path: Path) -> None:
    run("arithmetic", 5, str(tmp_path / "data.jsonl"), overrides=["task.prompt_words=true"])
    assert "\\u" not in (tmp_path / "data.jsonl").read_text("utf-8")


def test_a_task_with_records_gives_all_it_has(tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"p{i}", "target": "t"}) + "\n" for i in range(100)))
    output = tmp_path / "data.jsonl"
    counts = [run("instructions", 100, str(output), s, [f"task.file={source}"]) for s in ("train", "held_out")]
    assert sum(counts) == 100 and 0 < counts[1] < 30
    assert len(records_of(output)) == counts[1]
    assert run("instructions", 2, str(output), "train", [f"task.file={source}"]) == 2


@pytest.mark.parametrize(
    ("task", "n", "overrides", "fault"),
    [
        ("arithmetik", 5, [], r"task\.name: unknown name 'arithmetik'\. Did you mean 'arithmetic'"),
        ("arithmetic", 5, ["task.digit=3"], r"task\.digit: unknown setting\. Did you mean 'digits'"),
        ("arithmetic", 0, [], r"--n 0: must be at least 1"),
        ("arithmetic", -1, [], r"--n -1: must be at least 1"),
        ("instructions", 5, [], r"task\.file: is needed"),
        ("instructions", 5, ["task.file=nowhere.jsonl"], r"nowhere\.jsonl: no such file"),
    ],
)
def test_faults_leave_the_output_alone(task: str, n: int, overrides: list[str], fault: str, tmp_path: Path) -> None:
    output = tmp_path / "data.jsonl"
    output.write_text("old")
    with pytest.raises(UserError, match=fault) as told:
        run(task, n, str(output), overrides=overrides)
    assert output.read_text() == "old"
    assert isinstance(told.value, RecipeError) == str(told.value).startswith("The recipe has faults")


def test_command_line(tmp_path: Path) -> None:
    output, again = tmp_path / "data.jsonl", tmp_path / "again.jsonl"
    arguments = ["data", "arithmetic", "--n", "7", "--output", str(output), "--split", "held_out", "task.digits=3"]
    done = subprocess.run([sys.executable, "-m", "glmtune", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"7 examples written to {output}\n"
    run("arithmetic", 7, str(again), "held_out", ["task.digits=3"])
    assert output.read_bytes() == again.read_bytes()


def test_command_line_tells_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["data", "arithmetic", "--output", str(tmp_path / "x.jsonl"), "task.digit=3"])
    assert left.value.code == 2
    assert "task.digit: unknown setting. Did you mean 'digits'?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

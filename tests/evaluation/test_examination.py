"""What a model answered before a training is kept, and recalled for the same questions alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmtune.config import load_recipe
from glmtune.evaluation.evaluator import Evaluation
from glmtune.evaluation.examination import Examination, keep, key_of, recall
from glmtune.evaluation.forgetting import Probe
from glmtune.examples import Example
from glmtune.resolution import ResolvedModel
from glmtune.tasks import Task

EXAMPLES = [Example("1+1=", "2", {"group": "sums"}), Example("2+2=", "4")]


@pytest.fixture
def task() -> Task:
    return ResolvedModel(load_recipe(None, ["task.style=direct", "task.echo=false"])).task


def examined(task: Task) -> Examination:
    texts = ["2", "\u202e5 \u2028"]
    scores = [task.score(example, text, []) for example, text in zip(EXAMPLES, texts, strict=True)]
    held_out = Evaluation(EXAMPLES, texts, scores, task.axes, ["stop", "length"], [[], [{"id": "a"}]])
    return Examination({"accuracy": 0.5, "n": 2}, held_out, Probe(EXAMPLES, texts, [True, False]))


def test_it_comes_back_as_it_was(task: Task, tmp_path: Path) -> None:
    file, found = tmp_path / "before.json", examined(task)
    keep(file, key_of(["base"], EXAMPLES), found)
    assert recall(file, key_of(["base"], EXAMPLES), task, EXAMPLES, EXAMPLES) == found


def test_it_is_of_the_same_questions_to_the_same_model(task: Task, tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    keep(file, key_of(["base"], EXAMPLES), examined(task))
    assert recall(file, key_of(["other"], EXAMPLES), task, EXAMPLES) is None
    assert recall(file, key_of(["base"], EXAMPLES[:1]), task, EXAMPLES[:1]) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', "[" * 100_000])
def test_what_is_damaged_is_asked_again(task: Task, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "before.json"
    assert recall(file, "key", task, EXAMPLES) is None
    file.write_text(damage)
    assert recall(file, "key", task, EXAMPLES) is None

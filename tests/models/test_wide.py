"""The published checkpoint for expressions: small, in bf16, with its recipe, and it can do easy ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from glmtune.arithmetic.problems import Problem
from glmtune.arithmetic.reading import read_answer
from glmtune.commands import predict
from glmtune.config import load_recipe
from glmtune.resolution import resolve

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/arithmetic-wide"
pytestmark = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="checkpoints are not part of a source distribution")


def test_its_files() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 40_000_000
    with safe_open(CHECKPOINT / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    recipe = resolve(str(CHECKPOINT)).recipe
    assert recipe.task.style == "steps" and recipe.generation.max_new_tokens == 3000
    stages = sorted((CHECKPOINT.parents[1] / "recipes").glob("arithmetic_wide*.yaml"))
    assert all(load_recipe(stage).task.style == "steps" for stage in stages)
    assert f"`arithmetic_wide_2.yaml` to `{stages[-1].name}`" in (CHECKPOINT / "README.md").read_text("utf-8")


def test_it_is_asked_by_predict(tmp_path: Path) -> None:
    """Not all that it gets is right; of easy ones most are, small and large."""
    asked, answered = tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"
    problems = ["2016+7172", "1228+1691", "34-879", "-612+99", "4821-366", "1710+(2421+5025)"]
    problems += ["12*7", "5-8", "51+7-3", "(9+5)-8", "-(3+4)*2", "45%*200"]
    asked.write_text("".join(json.dumps({"prompt": f"{text}="}) + "\n" for text in problems))
    predict.run(str(CHECKPOINT), str(asked), str(answered), ["generation.max_new_tokens=300"])
    completions = [json.loads(line)["completion"] for line in answered.read_text("utf-8").splitlines()]
    right = []
    for text, completion in zip(problems, completions, strict=True):
        problem = Problem.exactly(text)
        assert problem is not None
        right.append(read_answer(completion) == problem.answer(2))
    assert sum(right) >= 10, list(zip(problems, completions, strict=True))

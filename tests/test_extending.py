"""The table "What to touch" of docs/design.md, done in a copy of the package: one row or one file each."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

# What the table calls it -> the file, where in it a row goes (None: a file of its own), and what is written.
CHANGES: dict[str, tuple[str, str | None, str]] = {
    "an optimizer": (
        "training/optimizers.py",
        "TABLE = {\n",
        '    "sgd": Optimizer("Stochastic gradient descent", bytes_per_parameter=0, optim="sgd"),\n',
    ),
    "a metric": (
        "scoring.py",
        "METRICS: dict[str, Metric] = {",
        '"caseless": lambda target, completion: exact(target.lower(), completion.lower()), ',
    ),
    "a format": (
        "records/formats.py",
        "FORMATS = [\n",
        '    Format("riddle", ("riddle", "solution"), pair("riddle", "solution")),\n',
    ),
    "a tool": (
        "tools/reverse.py",
        None,
        """
from glmtune.tools import Tool, ToolArguments


class Arguments(ToolArguments):
    text: str


class Reverse(Tool):
    name = "reverse"
    description = "Write a text backwards."
    Arguments = Arguments

    def run(self, arguments):
        return arguments["text"][::-1]
""",
    ),
    "a task": ("tasks/doubling.py", None, ""),  # the one of CONTRIBUTING.md
    "a method": (
        "methods/biases.py",
        None,
        """
from glmtune.config import NamedSettings
from glmtune.methods import Method


class Biases(Method):
    Settings = NamedSettings
    saves_adapter = False

    def apply(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return model
""",
    ),
    "an objective": (
        "objectives/repetition.py",
        None,
        """
from glmtune.config import NamedSettings
from glmtune.objectives import Objective
from glmtune.objectives.sft import SupervisedFineTuning


class Repetition(Objective):
    Settings = NamedSettings
    needs = frozenset({"target"})

    def dataset(self, plan):
        dataset, steps = SupervisedFineTuning(self.settings).dataset(plan)
        return dataset, 2 * steps

    trainer = SupervisedFineTuning.trainer
""",
    ),
    "a family": (
        "models/own/family.py",
        None,
        """
from functools import partial

from glmtune.models.families import Family
from glmtune.models.architecture import gated_sizes

OWN = Family(("own",), partial(gated_sizes, qkv_bias=True))
""",
    ),
}

USE = """
import json, sys
from pathlib import Path

import glmtune
from glmtune import distributed, registry
from glmtune.config import describing, load_recipe
from glmtune.models.families import family_of
from glmtune.records import read_examples
from glmtune.scoring import METRICS

import torch
distributed.local_device = lambda: torch.device("cpu")
record = Path("riddles.jsonl")
record.write_text("".join(json.dumps({"riddle": f"q{i}", "solution": "A"}) + "\\n" for i in range(20)))
run = glmtune.train(
    settings={
        "task.name": "doubling",
        "method.name": "biases",
        "objective.name": "repetition",
        "training": {"optimizer": "sgd", "steps": 1, "batch_size": 2, "output_dir": "run"},
        "evaluation": {"num_examples": 2, "num_examples_during": 1},
        "generation.max_new_tokens": 6,
    },
    quiet=True,
)
metric = load_recipe(None, ["task={name: instructions, file: riddles.jsonl, metric: caseless}"]).task.metric
again = glmtune.load(run)[0]
print(json.dumps({
    "at": glmtune.__file__,
    "an optimizer": "optimizer: sgd" in Path("run/recipe.yaml").read_text(),
    "a metric": METRICS[metric]("A", "a").correct,
    "a format": read_examples("riddles.jsonl")[0].target == "A",
    "a tool": registry.find("glmtune.tools", "reverse")().answer({"text": "abc"}) == "cba",
    "a task": run.after.examples[0].prompt.startswith("double "),
    "a method": not again.training and "doubling" in Path("run/recipe.yaml").read_text(),
    "an objective": [json.loads(line).get("step") for line in Path("run/log.jsonl").read_text().splitlines()][-1] == 2,
    "a family": family_of({"model_type": "own"}).model_types == ("own",),
}))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the package can do in which all of that was added."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "glmtune", copy / "glmtune", ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    example = re.search(r"A whole task:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    for place, mark, text in CHANGES.values():
        file = copy / "glmtune" / place
        if mark is None:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text or example[1])
        else:
            source = file.read_text("utf-8")
            assert source.count(mark) == 1
            file.write_text(source.replace(mark, mark + text), "utf-8")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(copy)!r})\n{USE}"]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert found.pop("at").startswith(str(copy))
    return found


@pytest.mark.parametrize("what", CHANGES)
def test_it_is_one_row_or_one_file(what: str, done: dict[str, Any]) -> None:
    assert done[what] is True


def test_the_table_names_the_same_files() -> None:
    text = (ROOT / "docs" / "design.md").read_text("utf-8").partition("## What to touch")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (an? \w+) \| .*?`([^`]+)`", text, re.MULTILINE))
    named = {
        what: place if mark else re.sub(r"\w+(?=\.py$)", "NAME", place) for what, (place, mark, _) in CHANGES.items()
    }
    named["a family"] = "models/NAME/family.py"
    assert rows == named

"""What is learned is a file; the loop is the same for all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune import registry
from glmtune.config import Recipe, load_recipe
from glmtune.data import EncodedDataset
from glmtune.data.encoding import Encoder
from glmtune.examples import Example
from glmtune.methods import Method
from glmtune.models import loading
from glmtune.objectives import Objective
from glmtune.runtime import RunFolder, UserError, seed_everything
from glmtune.tasks import Task


@dataclass
class Plan:
    """What an objective reads."""

    recipe: Recipe
    task: Task
    method: Method
    tokenizer: Any
    encoder: Encoder
    folder: RunFolder
    dataset: EncodedDataset = None  # type: ignore[assignment]
    steps: int = 0
    general: Sequence[Example] = ()


@dataclass
class Prepared:
    objective: Objective
    plan: Plan
    model: Any


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    rows = [{"text": f"{a}+{b}={a + b} " * 4} for a in range(10) for b in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Prepared]:
    def prepared(*settings: str) -> Prepared:
        recipe = load_recipe(None, ["training.learning_rate=0.002", "training.batch_size=8", *settings])
        seed_everything(recipe.seed)
        base, tokenizer = loading.load_model(recipe.model)
        task, method, objective = (
            registry.find(f"glmtune.{kind}s", section.name)
            for kind, section in (("task", recipe.task), ("method", recipe.method), ("objective", recipe.objective))
        )
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir(exist_ok=True)
        encoder = Encoder(tokenizer, recipe.data.max_length)
        plan = Plan(recipe, task(recipe.task, recipe.data), method(recipe.method), tokenizer, encoder, folder)
        goal = objective(recipe.objective)
        plan.dataset, plan.steps = goal.dataset(plan)
        return Prepared(goal, plan, plan.method.apply(base))

    return prepared


@pytest.mark.parametrize("packing", [False, True])
def test_texts_are_learned(prepare: Callable[..., Prepared], corpus: Path, packing: bool) -> None:
    """nano learns them: the loss and the bits per character of held-out ones fall."""
    made = prepare(
        *("objective.name=pretrain", "task={name: texts, held_out: 0.2}", f"task.file={corpus}"),
        *("data.max_length=32", f"data.packing={packing}", "training.steps=12", "training.logging_steps=1"),
    )
    judge = made.objective.judge(made.plan)
    assert judge is not None
    before = judge(made.model.eval())
    made.objective.trainer(made.plan, made.model, judge).run()
    after = judge(made.model)
    assert after["bits_per_character"] < 0.8 * before["bits_per_character"] and after["n"] == before["n"] > 0
    log = [json.loads(line) for line in made.plan.folder.log.read_text().splitlines()]
    losses = [record["loss"] for record in log if "loss" in record]
    assert len(losses) == 12 and losses[-1] < 0.8 * losses[0]
    judged = [record["bits_per_character"] for record in log if "bits_per_character" in record]
    assert min(judged) == pytest.approx(after["bits_per_character"], rel=1e-4)  # the best weights remain


def test_bits_per_character_are_the_loss_of_the_model_itself(prepare: Callable[..., Prepared], corpus: Path) -> None:
    made = prepare("objective.name=pretrain", "task={name: texts, held_out: 0.2}", f"task.file={corpus}")
    judge = made.objective.judge(made.plan)
    assert judge is not None
    total = 0.0
    held_out = made.plan.task.records("held_out") or []
    for encoding in (made.objective.encode(made.plan, held_out)[index] for index in range(len(held_out))):  # type: ignore[attr-defined]
        ids, labels = (torch.tensor([encoding[part]]) for part in ("input_ids", "labels"))  # type: ignore[literal-required]
        with torch.no_grad():
            loss = made.model.eval()(input_ids=ids, labels=labels).loss.item()
        total += loss * labels.ne(-100).sum().item()
    characters = sum(len(str(example.text)) for example in held_out)
    assert judge(made.model)["bits_per_character"] == pytest.approx(total / math.log(2) / characters, rel=1e-4)


def test_an_objective_needs_what_it_learns(prepare: Callable[..., Prepared], corpus: Path) -> None:
    with pytest.raises(UserError, match=r"objective\.name=pretrain learns from text, which task\.name=arithmetic"):
        prepare("objective.name=pretrain")
    with pytest.raises(UserError, match=r"objective\.name=sft learns from target, which task\.name=texts does not"):
        prepare("task.name=texts", f"task.file={corpus}")


def test_an_objective_of_ones_own(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    own = tmp_path / "echo.py"
    own.write_text(
        "from glmtune.config import NamedSettings\n"
        "from glmtune.data import EncodedDraws, examples_of\n"
        "from glmtune.objectives import Objective\n"
        "from glmtune.training.trainer import make_trainer\n\n\n"
        "class EchoSettings(NamedSettings):\n"
        '    """How it echoes."""\n\n'
        "    times: int = 2\n\n\n"
        "class Echo(Objective):\n"
        "    Settings = EchoSettings\n"
        '    needs = frozenset({"target"})\n\n'
        "    def dataset(self, plan):\n"
        '        return EncodedDraws(examples_of(plan.task, "train", 16, 0), plan.encoder), self.settings.times\n\n'
        "    def trainer(self, plan, model, judge):\n"
        "        return make_trainer(\n"
        "            model, plan.tokenizer, plan.dataset, plan.recipe, plan.steps, judge, plan.folder\n"
        "        )\n"
    )
    made = prepare(f"objective.name={own}", "objective.times=3")
    trainer = made.objective.trainer(made.plan, made.model, lambda model: {"accuracy": 0.0, "n": 0})
    trainer.run()
    assert trainer.state.global_step == 3

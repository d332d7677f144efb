"""What is learned is a file; the loop is the same for all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import glmtune
from glmtune import cli
from glmtune.commands import doctor, ls
from glmtune.config import load_recipe
from glmtune.objectives import Objective
from glmtune.plan import Plan
from glmtune.plan import prepare as plan_of
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError, seed_everything


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
        common = ["training.learning_rate=0.002", "training.batch_size=8", "evaluation.num_examples=8"]
        recipe = load_recipe(None, [*common, *settings])
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir(exist_ok=True)
        plan = plan_of(ResolvedModel(recipe), folder)
        seed_everything(recipe.seed)
        base, _ = plan.model.load()
        return Prepared(plan.objective, plan, plan.method.apply(base))

    return prepared


@pytest.mark.parametrize("packing", [False, True])
def test_texts_are_learned(prepare: Callable[..., Prepared], corpus: Path, packing: bool) -> None:
    """nano learns them: the loss and the bits per character of held-out ones fall."""
    made = prepare(
        *("objective.name=pretrain", "task={name: instructions, held_out: 0.2}", f"task.file={corpus}"),
        *("data.max_length=32", f"data.packing={packing}", "training.steps=12", "training.logging_steps=1"),
    )
    judge = made.objective.judge(made.plan.preparation)
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
    made = prepare("objective.name=pretrain", "task={name: instructions, held_out: 0.2}", f"task.file={corpus}")
    judge = made.objective.judge(made.plan.preparation)
    total = 0.0
    held_out = (made.plan.task.records("held_out") or [])[:8]
    for encoding in (made.objective.encode(made.plan.preparation, held_out)[index] for index in range(len(held_out))):  # type: ignore[attr-defined]
        ids, labels = (torch.tensor([encoding[part]]) for part in ("input_ids", "labels"))  # type: ignore[literal-required]
        with torch.no_grad():
            loss = made.model.eval()(input_ids=ids, labels=labels).loss.item()
        total += loss * labels.ne(-100).sum().item()
    characters = sum(len(str(example.text)) for example in held_out)
    assert judge(made.model)["bits_per_character"] == pytest.approx(total / math.log(2) / characters, rel=1e-4)


def test_an_objective_needs_what_it_learns(prepare: Callable[..., Prepared], corpus: Path) -> None:
    with pytest.raises(UserError, match=r"objective\.name=pretrain learns from text, which task\.name=arithmetic"):
        prepare("objective.name=pretrain")
    with pytest.raises(UserError, match=r"corpus\.jsonl.*text"):
        prepare("task.name=instructions", f"task.file={corpus}")


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


def command(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments])
    return end.value.code


def test_the_whole_run(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], read_page: Any) -> None:
    """`glmtune train` on texts: learned, measured, reported, listed, resumed, and ready to chat."""
    run = tmp_path / "runs" / "texts"
    settings = [
        *("objective.name=pretrain", "task.name=instructions", f"task.file={corpus}", "task.held_out=0.2"),
        *("training.steps=6", "training.batch_size=8", f"training.output_dir={run}", "training.learning_rate=0.002"),
    ]
    assert command("train", *settings) == 0
    told = capsys.readouterr().out
    assert "Held-out bits per character: " in told and f"chat {run}" in told and f"evaluate {run}" in told
    report = json.loads((run / "report.json").read_text())
    assert report["metric"] == "bits_per_character"
    assert report["after"]["bits_per_character"] < report["before"]["bits_per_character"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[0]["bits_per_character"] == report["before"]["bits_per_character"]
    assert {path.name for path in run.iterdir()} == {
        *("recipe.yaml", "log.jsonl", "before.json", "adapter", "checkpoints", "report.json", "report.html", "loss.png")
    }
    assert ls.run(str(tmp_path / "runs"))["runs"][str(run)].startswith("held-out bits per character ")
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    page = read_page((run / "report.html").read_text(encoding="utf-8"))
    assert f"{report['after']['bits_per_character']:.4f} after." in page.text
    assert {"run", "results", "forgetting", "curves", "costs", "recipe"} == set(page.ids) and not page.links
    capsys.readouterr()
    for data in ([], ["--data", str(corpus)]):
        assert command("evaluate", str(run), "--output", str(tmp_path / "judged.json"), *data) == 0
        judged = json.loads((tmp_path / "judged.json").read_text())
        assert f"{judged['bits_per_character']:.4f} (n = {judged['n']})" in capsys.readouterr().out
        if not data:
            assert judged["bits_per_character"] == pytest.approx(report["after"]["bits_per_character"], rel=1e-4)
        assert judged["n"] == (60 if data else report["after"]["n"])
    with pytest.raises(UserError, match=r"judged by texts and not asked.*bits per character \d"):
        glmtune.evaluate(run)
    assert command("export", str(run), "--output", str(tmp_path / "whole")) == 0
    assert "| after training | " in (tmp_path / "whole" / "README.md").read_text()
    assert command("train", "--resume", str(run)) == 0
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_the_doctor_looks_at_texts(corpus: Path) -> None:
    checks = doctor.run(None, ["objective.name=pretrain", "task.name=instructions", f"task.file={corpus}"])
    assert not [check for check in checks if check.status == "failure"]

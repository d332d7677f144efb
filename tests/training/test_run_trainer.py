"""What a run adds fits trl's trainers as well as transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glmtune import registry
from glmtune.config import load_recipe
from glmtune.models import loading
from glmtune.runtime import RunFolder, seed_everything
from glmtune.training.arguments import make_arguments
from glmtune.training.run_trainer import DivergenceError, RunTrainer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answered(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


QUESTIONS = [f"{a}+{b}=" for a in range(1, 5) for b in range(1, 3)]
ROWS = {
    "SFT": [{"prompt": asked(question), "completion": answered("3")} for question in QUESTIONS],
    "DPO": [{"prompt": asked(question), "chosen": answered("3"), "rejected": answered("45")} for question in QUESTIONS],
    "GRPO": [{"prompt": question} for question in QUESTIONS],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "SFT": {},
    "DPO": {},
    "GRPO": {"num_generations": 2, "max_completion_length": 4},
}


def reward_length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def judge(model: Any) -> dict[str, Any]:
    assert not model.training
    return {"accuracy": 0.5, "accuracy_ci95": [0.1, 0.9], "n": 4}


@pytest.fixture
def learn(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`learn("SFT", "run", 2)`: two steps of a trainer of trl that is a run."""
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: None)

    def run(name: str, folder: str, steps: int) -> Any:
        recipe = load_recipe(
            None,
            [
                f"model.path={tiny_checkpoint}",
                "method={name: lora, rank: 4}",
                "training.batch_size=2",
                "training.learning_rate=0.01",
                "training.logging_steps=1",
                "training.eval_steps=1",
                "training.lr_scheduler_type=constant_with_warmup",
                "training.optimizer=muon",
            ],
        )
        (tmp_path / folder).mkdir(exist_ok=True)
        seed_everything(0)
        base, tokenizer = loading.load_model(recipe.model)
        method = registry.find("glmtune.methods", "lora")(recipe.method)
        model = method.apply(base)
        kind = type("Kind", (RunTrainer, getattr(trl, f"{name}Trainer")), {})
        place = RunFolder(tmp_path / folder)
        arguments = make_arguments(
            recipe, steps, place.checkpoints, model.device, getattr(trl, f"{name}Config"), **OPTIONS[name]
        )
        trainer: Any = kind(
            judge=judge,
            folder=place,
            settings=recipe.training,
            groups=method.parameter_groups(model),
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(ROWS[name]),
            processing_class=tokenizer,
            **({"reward_funcs": reward_length} if name == "GRPO" else {}),
        )
        trainer.run()
        return trainer

    return run


@pytest.mark.parametrize("name", ROWS)
def test_a_trainer_of_trl_is_a_run(learn: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """It learns two steps, keeps what is trained alone, logs, and goes on where it was."""
    trainer = learn(name, "run", 2)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir() if path.is_dir()} == {"checkpoint-1", "checkpoint-2"}
    assert not list(checkpoints.rglob("*model*")) and not list(checkpoints.rglob("README.md"))
    kept = load_file(checkpoints / "checkpoint-2" / "trainable.safetensors")
    assert kept.keys() == trainer.trained_weights().keys()
    assert type(trainer.optimizer.optimizer).__name__ == "Muon"
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["accuracy"] for record in log if "accuracy" in record] == [0.5, 0.5]
    assert [record["step"] for record in log if "loss" in record] == [1, 2]

    resumed = learn(name, "run", 3)
    whole = learn(name, "whole", 3)
    assert resumed.state.global_step == 3
    for weight, other in zip(resumed.trained_weights().values(), whole.trained_weights().values(), strict=True):
        assert torch.allclose(weight, other, rtol=0, atol=1e-6)


def test_a_loss_that_is_no_number(learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trl.SFTTrainer.compute_loss
    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", lambda *args, **kwargs: plain(*args, **kwargs) * float("nan"))
    with pytest.raises(DivergenceError, match=r"The loss of step 1 is nan\. Start again with a lower"):
        learn("SFT", "run", 2)

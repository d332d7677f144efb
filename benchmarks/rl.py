"""Learning from the score: after a little SFT, equal processor time of more SFT or of learning from scores.

`--on` chooses model and task: nano on + and - of integers and decimals, with their steps or, `nano-direct`, without;
SmolLM2-135M-Instruct, `real`, on + and - of integers up to 100. Each arm starts from the same weights and learns for
`--seconds` of processor time, evaluations not counted, at a constant rate, its method's own. "Right" is greedy held-out
exact match; pass@8 is the chance that one of eight sampled answers is right. `rollouts` compares a step's rollouts with
what the engine alone needs for the same requests.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from real_model import real_model
from recording import options, record
from transformers import TrainerCallback

import glmtune
from glmtune.commands import train
from glmtune.config import GenerationSettings, load_recipe, read_log
from glmtune.data import examples_of
from glmtune.inference.conversation import Conversation
from glmtune.inference.engine import Engine
from glmtune.inference.rollouts import pass_at_k, roll_out
from glmtune.libraries import quiet_libraries
from glmtune.objectives._rewards import Rewards, RewardSettings
from glmtune.resolution import ResolvedModel
from glmtune.training.run_trainer import RunTrainer


@dataclass(frozen=True)
class Scene:
    """What is learned.

    Attributes:
        result: the name of the file of results.
        sft_steps: before each arm.
        max_new_tokens: of a sampled answer.
        settings: of the task and its data.
    """

    result: str
    sft_steps: int
    max_new_tokens: int
    settings: tuple[str, ...]

    @property
    def sampled(self) -> GenerationSettings:
        """How answers are drawn, by which pass@k is told."""
        longest = self.max_new_tokens
        return GenerationSettings(max_new_tokens=longest, batch_size=64, do_sample=True, temperature=1.0, top_p=1.0)


SCENES = {
    "nano": Scene("rl", 9, 48, ("task.operators=+-",)),
    "nano-direct": Scene("rl_direct", 300, 24, ("task.operators=+-", "task.style=direct", "task.echo=false")),
    "real": Scene(
        "rl_real",
        120,
        16,
        (
            *("task.operators=+-", "task.kinds=[integer]", "task.style=direct", "task.echo=false"),
            *("data.template=chatml", "training.adam_beta2=0.98", "generation.max_new_tokens=16"),
        ),
    ),
}
COMMON = [
    "training.warmup_ratio=0",
    "training.lr_scheduler_type=constant_with_warmup",
    "training.eval_steps=100000",
    "evaluation.num_examples_during=50",
    "evaluation.text_metrics=false",
]
GRPO = ["objective.name=grpo", "training.batch_size=64", "training.steps=10000", "objective.num_probed=8"]
REJECTION = ["objective.name=rejection", "training.steps=10000"]
ARMS = {
    "more SFT": ["training.steps=10000"],
    "GRPO": GRPO,
    "rejection": REJECTION,
    "GRPO, no refills": [*GRPO, "objective.max_refills=0"],
    "GRPO, full": [*GRPO, "method.name=full"],
    "GRPO, ptuning_v2": [*GRPO, "method={name: ptuning_v2, num_virtual_tokens: 16}"],
}


class Budget(TrainerCallback):
    """Ends a training after some processor time, or notes how much it takes."""

    def __init__(self, seconds: float):
        self.seconds, self.spent, self.wall = seconds, 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.process_time(), time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.spent, self.wall = time.process_time() - self.start[0], time.perf_counter() - self.start[1]
        if self.spent >= self.seconds:
            control.should_evaluate = control.should_save = control.should_training_stop = True


def within(seconds: float, run: Callable[[], Any]) -> tuple[Any, Budget]:
    """Train for some processor time."""
    budget, learn = Budget(seconds), RunTrainer.learn

    def bounded(self: RunTrainer, start: Path | None) -> None:
        self.add_callback(budget)
        learn(self, start)

    RunTrainer.learn = bounded  # type: ignore[method-assign]
    try:
        return run(), budget
    finally:
        RunTrainer.learn = learn  # type: ignore[method-assign]


def pass_at(model: Any, tokenizer: Any, task: Any, k: int, chosen: Any) -> float:
    """The chance that one of k answers is right, over held-out prompts."""
    examples = examples_of(task, "held_out", chosen.prompts, chosen.seed + 7)
    answered = roll_out(Engine(model, tokenizer), task, examples, SCENES[chosen.on].sampled, k, chosen.seed)
    return pass_at_k(answered, k)


def measure(label: str, settings: list[str], base: str, chosen: Any, work: Path) -> dict[str, Any]:
    """One arm, as a row of the table."""
    overrides = [
        *(
            *SCENES[chosen.on].settings,
            *COMMON,
            f"model.path={base}",
            f"seed={chosen.seed}",
            f"evaluation.num_examples={chosen.held_out}",
        ),
        *(*settings, f"training.output_dir={work / label.replace(' ', '-')}"),
    ]
    run, budget = within(chosen.seconds, lambda: train.run(overrides=overrides))
    model, tokenizer = glmtune.load(run)
    after = run.report["after"]
    return {
        "arm": label,
        "right before": run.report["before"]["accuracy"],
        "right after": after["accuracy"],
        "ci95": [round(bound, 4) for bound in after["accuracy_ci95"]],
        "pass@8 after": pass_at(model, tokenizer, run.task, 8, chosen),
        "steps": max(record["step"] for record in read_log(run.folder)),
        "cpu s": round(budget.spent, 1),
        "wall s": round(budget.wall, 1),
    }


def overhead(base: str, chosen: Any, repeats: int = 5) -> dict[str, float]:
    """Processor time of rollouts, scored and graded, by that of the engine alone, for the same requests."""
    scene = SCENES[chosen.on]
    resolved = ResolvedModel(load_recipe(None, [*scene.settings, f"model.path={base}"]))
    model, tokenizer = resolved.load()
    engine, task, rewards = Engine(model, tokenizer), resolved.task, Rewards([RewardSettings(name="correct")])
    examples = examples_of(task, "train", 8, chosen.seed)
    conversation = Conversation.about(task, engine)

    def requests() -> list[Any]:
        asked = [conversation.ask(examples[number // 8].prompt, scene.sampled, seed=number) for number in range(64)]
        return [question.request for question in asked]

    def engine_alone(ready: list[Any]) -> None:
        list(engine.complete(ready))

    def rollouts(_: list[Any]) -> None:
        for group in roll_out(engine, task, examples, scene.sampled, 8):
            for one in group:
                rewards.values(one)

    times: dict[str, list[float]] = {"engine": [], "rollouts": []}
    for _ in range(repeats):
        for name, act in (("engine", engine_alone), ("rollouts", rollouts)):
            ready = requests()
            start = time.process_time()
            act(ready)
            times[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**medians, "ratio": medians["rollouts"] / medians["engine"]}


def main() -> None:
    """A little SFT, then every arm."""
    chosen = options(__doc__, on="nano", seconds=60, sft_steps=0, held_out=1000, prompts=128, seed=42, arms="all")
    scene = SCENES[chosen.on]
    chosen.sft_steps = chosen.sft_steps or scene.sft_steps
    model_path = str(real_model()) if chosen.on == "real" else "nano"
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        first = train.run(
            overrides=[
                *(*scene.settings, f"model.path={model_path}", f"training.steps={chosen.sft_steps}"),
                *(f"seed={chosen.seed}", "evaluation.num_examples=100", "evaluation.num_examples_during=10"),
                *("evaluation.text_metrics=false", f"training.output_dir={work}/sft"),
            ]
        )
        base = str(glmtune.export(first, output=work / "base", dtype="float32"))  # 16 bits lose small changes
        model, tokenizer = glmtune.load(base)
        before = {k: pass_at(model, tokenizer, first.task, k, chosen) for k in (1, 8)}
        names = list(ARMS) if chosen.arms == "all" else chosen.arms.split(";")
        spent, rows = overhead(base, chosen), []
        for name in names:  # each is written as soon as it is known
            rows.append(measure(name, ARMS[name], base, chosen, work))
            figures = {"pass_at_1_before": before[1], "pass_at_8_before": before[8], "rollouts": spent}
            record(scene.result, vars(chosen), rows, **figures)


if __name__ == "__main__":
    main()

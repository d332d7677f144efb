"""Expert iteration: nano after a little SFT, then equal processor time of more SFT or of its own right answers.

The task is + and - of integers and decimals. Each arm goes on from the same run and learns
for `--seconds` of processor time, sampling included and evaluations not, at the method's own rate, held constant.
"Right" is greedy exact match of held-out problems; pass@8 is the chance that one of eight sampled answers is right.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from recording import options, record
from transformers import TrainerCallback

import glmtune
from glmtune.commands import train
from glmtune.config import GenerationSettings, load_recipe
from glmtune.data import examples_of
from glmtune.inference.engine import Engine
from glmtune.inference.rollouts import pass_at_k, roll_out
from glmtune.intervals import wilson_interval
from glmtune.libraries import quiet_libraries
from glmtune.resolution import of_recipe
from glmtune.training.run_trainer import RunTrainer

COMMON = [
    *("task.operators=+-", "training.warmup_ratio=0", "training.lr_scheduler_type=constant_with_warmup"),
    *("evaluation.num_examples=50", "evaluation.num_examples_during=50", "evaluation.text_metrics=false"),
    "training.eval_steps=100000",
]
REJECTION = ["objective.name=rejection", "training.steps=10000"]
ARMS = {
    "more SFT": ["training.steps=10000"],
    "rejection": REJECTION,
    "rejection, solved prompts too": [*REJECTION, "objective.skip_solved=false"],
}
LONGEST = 48  # tokens of an answer
GREEDY = GenerationSettings(max_new_tokens=LONGEST)
SAMPLED = GREEDY.model_copy(update={"do_sample": True, "temperature": 1.0, "top_p": 1.0})


class Budget(TrainerCallback):
    """Ends a training after some processor time."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.process_time() - self.start >= self.seconds:
            control.should_evaluate = control.should_save = control.should_training_stop = True


def within(seconds: float, *arguments: Any) -> Any:
    """Train for some processor time."""
    learn = RunTrainer.learn

    def bounded(self: RunTrainer, start: Path | None) -> None:
        self.add_callback(Budget(seconds))
        learn(self, start)

    RunTrainer.learn = bounded  # type: ignore[method-assign]
    try:
        return train.run(*arguments)
    finally:
        RunTrainer.learn = learn  # type: ignore[method-assign]


def judge(run: Any, problems: int, asked: int) -> dict[str, Any]:
    """Greedy and sampled answers to held-out problems that no training has asked."""
    task = of_recipe(load_recipe(None, COMMON)).task
    engine = Engine(*glmtune.load(run))
    examples = examples_of(task, "held_out", problems, 1234)
    greedy = roll_out(engine, task, examples, GREEDY, 1)
    sampled = roll_out(engine, task, examples[:asked], SAMPLED, 8)
    right = sum(group[0].score.correct for group in greedy)
    return {
        "right": right / problems,
        "interval": wilson_interval(right, problems),
        "pass@1": pass_at_k(sampled, 1),
        "pass@8": pass_at_k(sampled, 8),
    }


def figures(run: Any) -> dict[str, Any]:
    """Steps, rounds, and what was right in the first and the last of these."""
    log = [json.loads(line) for line in run.folder.log.open()]
    rounds = [line for line in log if "round" in line]
    first, last = (rounds[0], rounds[-1]) if rounds else ({}, {})
    return {
        "steps": max(line["step"] for line in log),
        "rounds": len(rounds),
        "first round": first.get("sampled_pass_at_1"),
        "last round": last.get("sampled_pass_at_1"),
    }


def main() -> None:
    """All of it."""
    quiet_libraries()
    chosen = options(__doc__, folder="", steps=9, seconds=90, problems=1000, asked=250)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(chosen.folder or temporary)
        first = train.run(None, [*COMMON, f"training.steps={chosen.steps}", f"training.output_dir={folder / 'first'}"])
        rows = [{"arm": f"SFT, {chosen.steps} steps", "steps": chosen.steps, "rounds": 0}]
        rows[0] |= {"first round": None, "last round": None, **judge(first, chosen.problems, chosen.asked)}
        for arm, settings in ARMS.items():
            place = folder / arm.replace(", ", "-").replace(" ", "-")
            longest = f"generation.max_new_tokens={LONGEST}"
            run = within(chosen.seconds, first, [f"training.output_dir={place}", longest, *settings])
            rows.append({"arm": arm, **figures(run), **judge(run, chosen.problems, chosen.asked)})
    record("rejection", {**vars(chosen), "folder": None, "common": COMMON, "arms": ARMS}, rows)


if __name__ == "__main__":
    main()

"""Does a model learn from its own right and wrong answers, and as much as from as many seconds of further targets?

nano learns + and - until it is right about two times in three. From there: pairs of its own answers and
`objective.name=dpo`, in several ways; or targets again, for the seconds that sampling and learning the pairs took.
Seconds are those of one core that the process computed. Greedy answers to 1,000 held-out problems; a fifth of the pairs
is not learned and tells how often the right answer is the likelier.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from recording import options, record
from rich.console import Console

from glmtune.commands import evaluate, export, pairs, train
from glmtune.training.run_trainer import RunTrainer

# What each way differs in, from DPO at its default rate.
WAYS = {
    "sigmoid": [],
    "sigmoid, 3 x the rate": ["training.learning_rate=0.0012"],
    "sigmoid, sft_weight=1": ["objective.sft_weight=1"],
    "ipo": ["objective.loss=ipo"],
    "simpo": ["objective.loss=simpo"],
    "kto": ["objective.loss=kto"],
}
QUIET = [
    *("evaluation.num_examples=1", "evaluation.num_examples_during=1", "evaluation.max_seconds=100000"),
    *("training.eval_steps=100000", "training.lr_scheduler_type=constant_with_warmup", "task.operators=+-"),
]


class Clock:
    """Seconds that the process computed in trainings, apart from what is loaded and asked around them."""

    def __init__(self) -> None:
        self.seconds, plain = 0.0, RunTrainer.run

        def timed(trainer: Any) -> None:
            start = time.process_time()
            plain(trainer)
            self.seconds = time.process_time() - start

        RunTrainer.run = timed  # type: ignore[method-assign]


def learn(folder: Path, *settings: str) -> None:
    """Train a run."""
    console = Console(file=io.StringIO())
    train.run(overrides=[*QUIET, *settings, f"training.output_dir={folder}"], console=console)


def judge(target: Path, held_out: Path, examples: int) -> dict[str, Any]:
    """Greedy answers to held-out problems, and held-out pairs."""
    asked = ["task.operators=+-", f"evaluation.num_examples={examples}", "evaluation.text_metrics=false"]
    _, report = evaluate.run(target, overrides=[*asked, "objective={name: sft}"])
    _, compared = evaluate.run(target, str(held_out), overrides=["objective={name: dpo, judge: preferences}"])
    low, high = report["accuracy_ci95"]
    return {"right": report["accuracy"], "low": low, "high": high, "preferred": compared["preference_accuracy"]}


def main() -> None:
    """Measure every way, and targets for the seconds of the first."""
    given = options(__doc__, sft_steps=9, prompts=600, samples=8, steps=40, examples=1000)
    clock, rows = Clock(), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.chdir(folder)
        learn(folder / "sft", f"training.steps={given.sft_steps}", "training.lr_scheduler_type=cosine")
        per_step = clock.seconds / given.sft_steps
        export.run(folder / "sft", output=str(folder / "base"))
        start = time.process_time()
        found = pairs.run(folder / "sft", given.prompts, "all.jsonl", num_samples=given.samples)
        sampling = time.process_time() - start
        lines = Path("all.jsonl").read_text("utf-8").splitlines()
        Path("held_out.jsonl").write_text("\n".join(lines[::5]) + "\n", "utf-8")
        Path("pairs.jsonl").write_text("\n".join(x for i, x in enumerate(lines) if i % 5) + "\n", "utf-8")

        def measure(way: str, target: Path, seconds: float, steps: int) -> None:
            judged = judge(target, folder / "held_out.jsonl", given.examples)
            rows.append({"way": way, "steps": steps, "seconds": round(seconds, 1), **judged})
            learned = {"pairs": found.pairs, "sampling_seconds": round(sampling, 1), "batch_size": 16}
            groups = {"prompts": found.prompts, "all_right": found.right, "all_wrong": found.wrong}
            record("preferences", {**vars(given), **learned}, rows, **groups)

        measure("before", folder / "base", 0.0, 0)
        dpo = [f"model.path={folder / 'base'}", "objective.name=dpo", "objective.pairs=pairs.jsonl"]
        for number, (way, settings) in enumerate(WAYS.items()):
            own = [f"training.steps={given.steps}", "training.batch_size=16"]
            learn(folder / f"dpo{number}", *dpo, *own, *settings)
            measure(way, folder / f"dpo{number}", sampling + clock.seconds, given.steps)
            if number == 0:
                steps = round(rows[1]["seconds"] / per_step)
                learn(folder / "more", f"model.path={folder / 'base'}", f"training.steps={steps}")
                measure("targets", folder / "more", clock.seconds, steps)


if __name__ == "__main__":
    main()

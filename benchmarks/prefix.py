"""P-Tuning v2 beside LoRA on SmolLM2-135M-Instruct: the first loss with a fresh prefix, and the curves of both.

All learn the sums and differences of the demo by the same examples in the same order, at their methods' learning rates.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from demo_real import RECIPE
from matplotlib.figure import Figure
from real_model import real_model
from recording import RESULTS, options, record

from glmtune.commands import train
from glmtune.data import EncodedDraws, examples_of
from glmtune.data.collation import Collator
from glmtune.data.encoder import Encoder
from glmtune.execution import first_examples
from glmtune.libraries import quiet_libraries
from glmtune.plan import Plan, prepare
from glmtune.resolution import resolve
from glmtune.runtime import RunFolder, read_json_lines, seed_everything

PREFIX = "method={{name: ptuning_v2, init: {}}}"
RUNS = {
    "lora": "method={name: lora}",
    "ptuning_v2, neutral": PREFIX.format("neutral"),
    "ptuning_v2, N(0, 1)": PREFIX.format("normal"),
}


@torch.no_grad()
def loss_of(plan: Plan, model: Any, tokenizer: Any) -> float:
    """The mean cross-entropy of the targets' tokens of 64 examples from which no prefix started."""
    examples = EncodedDraws(examples_of(plan.task, "held_out", 64, 0), Encoder(tokenizer))
    batch = Collator(tokenizer.pad_token_id)([examples[index] for index in range(64)])
    logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].float().mT, batch["labels"][:, 1:]))


def first_losses(settings: list[str]) -> tuple[float, float]:
    """The loss of the bare model, and with what the method puts before or beside it."""
    with tempfile.TemporaryDirectory() as work:
        plan = prepare(resolve(RECIPE, [*settings, f"training.output_dir={work}/run"]), RunFolder(Path(work, "run")))
        base, tokenizer = plan.model.load()
        bare = loss_of(plan, base, tokenizer)
        seed_everything(plan.recipe.seed)
        model = plan.method.apply(base)
        plan.method.initialize(model, first_examples(plan))
        return bare, loss_of(plan, model, tokenizer)


def curve(run: str, settings: list[str]) -> list[dict[str, Any]]:
    """A run: its training loss, the mean of the steps since the last, and its held-out accuracy, where judged."""
    with tempfile.TemporaryDirectory() as work:
        train.run(RECIPE, [*settings, f"training.output_dir={work}/run"])
        log = [line for _, line in read_json_lines(Path(work, "run/log.jsonl"))]
    rows: dict[int, dict[str, Any]] = {}
    for line in log:
        row = rows.setdefault(line["step"], {"run": run, "step": line["step"], "loss": None, "accuracy": None})
        row |= {name: line[name] for name in ("loss", "accuracy") if name in line}
    return list(rows.values())


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The training loss and the held-out accuracy of each run."""
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2)
    labels = ("training loss (nats per target token)", "held-out accuracy")
    for cell, name, label in zip(axes, ("loss", "accuracy"), labels, strict=True):
        for run in RUNS:
            points = [(row["step"], row[name]) for row in rows if row["run"] == run and row[name] is not None]
            cell.plot(*zip(*points, strict=True), marker="o", markersize=3, label=run)
        cell.set(xlabel="optimizer step", ylabel=label)
    axes[0].legend()
    figure.savefig(path)


def main() -> None:
    """Train with each, record, and draw."""
    chosen = options(__doc__, steps=200, batch_size=8, held_out=100)
    quiet_libraries()
    common = [
        f"model.path={real_model()}",
        f"training.steps={chosen.steps}",
        f"training.batch_size={chosen.batch_size}",
        f"training.eval_steps={max(1, chosen.steps // 5)}",
        f"training.logging_steps={max(1, chosen.steps // 10)}",
        f"evaluation.num_examples={chosen.held_out}",
        f"evaluation.num_examples_during={chosen.held_out}",
        "evaluation.forgetting=false",
        "training.learning_rate=null",
    ]
    firsts, rows = {}, []
    for name, method in RUNS.items():
        bare, fresh = first_losses([*common, method])
        firsts[name] = {"bare": bare, "fresh": fresh, "ratio": fresh / bare}
        rows += curve(name, [*common, method])
        record("prefix", vars(chosen), rows, first_losses=firsts)
    draw(rows, RESULTS / "prefix.png")


if __name__ == "__main__":
    main()

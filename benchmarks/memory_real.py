"""Peak of resident memory on a real model, SmolLM2-135M-Instruct, against `glmtune estimate`: `memory.py --real 1`.

Each row is a process of its own, from its start on, with libraries: the steps alone, the questions that are asked
between them, or a whole run as `glmtune train` makes it, questions of general knowledge included. The longest of the
examples that are drawn is what the estimate is told, as in a run.

`--only TEXT` measures the rows whose settings hold it, and keeps the others as they were; `--model FOLDER` takes
another checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from real_model import real_model
from recording import RESULTS, record

GIB = 2**30
STEPS = 2


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        what: `steps`, `judging` or `run`.
        settings: of the recipe.
    """

    what: str
    settings: tuple[str, ...]


def cells() -> list[Cell]:
    """Every method, storage, precision, and what else makes a peak."""
    lora, bf16, fp32 = "method={name: lora}", "model.dtype=bfloat16", "model.dtype=float32"
    again, dora = "training.gradient_checkpointing=true", "method={name: lora, use_dora: true}"
    prefix = "method={name: ptuning_v2, dropout: 0}"
    chosen = [
        Cell("steps", (lora, bf16)),
        Cell("steps", (lora, bf16, again)),
        Cell("steps", (lora, fp32)),
        Cell("steps", (lora, bf16, "training.batch_size=32")),
        Cell("steps", (lora, bf16, "training.batch_size=32", again)),
        *(Cell("steps", (lora, bf16, f"model.bits={bits}")) for bits in (8, 4)),
        Cell("steps", (lora, fp32, "model.bits=4")),
        Cell("steps", (dora, bf16)),
        Cell("steps", (dora, bf16, "model.bits=4")),
        *(Cell("steps", (prefix, bf16, f"model.bits={bits}")) for bits in (16, 8, 4)),
        Cell("steps", (prefix, bf16, again)),
        Cell("steps", ("method={name: freeze}", bf16)),
        Cell("steps", ("method={name: full}", bf16)),
        Cell("steps", ("method={name: full}", fp32)),
        *(Cell("judging", (lora, bf16, f"model.bits={bits}")) for bits in (16, 8, 4)),
        Cell("judging", (lora, fp32)),
        Cell("judging", (prefix, bf16)),
        Cell("run", (lora, bf16)),
    ]
    return [Cell(cell.what, settings_of(cell)) for cell in chosen]


def settings_of(cell: Cell) -> tuple[str, ...]:
    """With what a short run of real questions needs."""
    size = () if any("batch_size" in text for text in cell.settings) else ("training.batch_size=8",)
    forgetting = f"evaluation.forgetting={'true' if cell.what == 'run' else 'false'}"
    counts = ("evaluation.num_examples=64", "evaluation.num_examples_during=64", forgetting)
    return (*cell.settings, *size, f"training.steps={STEPS}", *counts)


def peak() -> float:
    """The largest resident memory of this process, in GiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def no_judge(model: Any) -> dict[str, Any]:
    """There is nothing to judge."""
    return {"accuracy": 0.0, "accuracy_ci95": [0.0, 1.0], "n": 0}


def measure(cell: Cell, checkpoint: str, folder: Path) -> dict[str, float]:
    """Do it in this process; the peak, and what was expected."""
    from glmtune.execution import execute
    from glmtune.execution.asking import Asked, judge_of
    from glmtune.inference import reading
    from glmtune.plan import prepare
    from glmtune.resolution import resolve
    from glmtune.runtime import RunFolder, seed_everything
    from glmtune.terminal.console import Console

    recipe = resolve(None, [f"model.path={checkpoint}", f"training.output_dir={folder}", *cell.settings])
    plan = prepare(recipe, RunFolder(folder))
    estimate = plan.placement.estimate
    if cell.what == "run":
        execute(plan, Console(quiet=True))
        return {"peak_gib": peak(), "estimate_gib": estimate.peak / GIB}
    base, _ = plan.model.load()
    seed_everything(0)
    model = plan.method.apply(base)
    trainer = plan.objective.trainer(plan, model, no_judge)
    if cell.what == "steps":
        trainer.args.eval_strategy = trainer.args.save_strategy = "no"
        trainer.args.load_best_model_at_end = False
        trainer.run()
        return {"peak_gib": peak(), "estimate_gib": estimate.step / GIB}
    reading.stops_of = lambda *_: []  # answers are as long as they may be: what is estimated is the most they take
    trainer.judge = judge_of(plan, Asked(plan.held_out, plan.held_out_during))
    trainer.evaluate()
    return {"peak_gib": peak(), "estimate_gib": estimate.judging / GIB}


def row_of(cell: Cell, checkpoint: str) -> dict[str, Any]:
    """A line of the table, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--cell", json.dumps(asdict(cell)), checkpoint, f"{folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{cell}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    told = " ".join(text for text in cell.settings if not text.startswith(("training.steps", "evaluation.")))
    return {"what": cell.what, "settings": told, **found, "error": found["estimate_gib"] / found["peak_gib"] - 1}


def main(only: str, model: str) -> None:
    """Measure every cell, or those whose row holds a text."""
    checkpoint, file = model or str(real_model()), RESULTS / "memory_real.json"
    known = json.loads(file.read_text())["rows"] if only and file.is_file() else []
    rows = {(row["what"], row["settings"]): row for row in known}
    for cell in cells():
        if only in f"{cell.what} {' '.join(cell.settings)}":
            row = row_of(cell, checkpoint)
            rows[row["what"], row["settings"]] = row
            print(row, file=sys.stderr, flush=True)
            worst = max(abs(row["error"]) for row in rows.values())
            record("memory_real", {"steps": STEPS}, list(rows.values()), worst=worst)


def child(spec: str, checkpoint: str, folder: str) -> None:
    """One cell, in its own process."""
    from glmtune.libraries import quiet_libraries

    quiet_libraries()
    values = json.loads(spec)
    print(json.dumps(measure(Cell(values["what"], tuple(values["settings"])), checkpoint, Path(folder))))


if __name__ == "__main__":
    child(*sys.argv[2:])

"""The demo, measured: what `make demo` trains, then `glmtune evaluate` on problems from elsewhere.

The foreign problems are made and answered here with Python's `decimal` alone, by none of the project's code: operands
up to 100, integers and decimals with two decimals, with and without `=`, zeros at the end written or not, targets
without the problem. Of these, the ones are asked that fall into the held-out share.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

from recording import RESULTS, options, record

from glmtune.arithmetic.problems import Problem
from glmtune.commands import evaluate, train
from glmtune.examples import split_of
from glmtune.libraries import quiet_libraries
from glmtune.tasks.arithmetic import ArithmeticSettings

RECIPE = str(Path(__file__).parents[1] / "recipes/demo.yaml")


def foreign_problems(count: int, seed: int) -> list[dict[str, str]]:
    """Sums and differences, half of them of integers."""
    rng = random.Random(seed)
    problems: list[dict[str, str]] = []
    while len(problems) < count:
        scale = len(problems) % 2 * 2
        left, right = (Decimal(rng.randint(0, 100 * 10**scale)).scaleb(-scale) for _ in range(2))
        operator = rng.choice("+-")
        value = left + right if operator == "+" else left - right
        written = [str(n) if rng.random() < 0.5 else f"{n.normalize():f}" for n in (left, right)]
        text = operator.join(written)
        if is_held_out(text):
            problems.append({"prompt": text + rng.choice(("", "=")), "target": str(value)})
    return problems


def is_held_out(text: str) -> bool:
    """Whether no training draws this problem."""
    problem = Problem.parse(text)
    assert problem is not None
    return split_of(problem.normal_form, ArithmeticSettings(name="").held_out) == "held_out"


def row(label: str, result: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    low, high = result["accuracy_ci95"]
    return {"examples": label, "n": result["n"], "accuracy": result["accuracy"], "low": low, "high": high}


def main() -> None:
    """Train, evaluate, record; the plots and the report are kept beside the results."""
    chosen = options(__doc__, problems=1000, held_out=2000)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as work:
        settings = [f"training.output_dir={work}/run", f"evaluation.num_examples={chosen.held_out}"]
        run = train.run(RECIPE, settings)
        file = Path(work, "foreign.jsonl")
        file.write_text("".join(json.dumps(p) + "\n" for p in foreign_problems(chosen.problems, seed=7)))
        _, foreign = evaluate.run(str(run.folder.path), data=str(file))
        for picture in run.folder.path.glob("*.png"):
            shutil.copy(picture, RESULTS / f"demo_{picture.name}")
    rows = [row(f"{when}, all", run.report[when]) for when in ("before", "after")]
    for name in ("operator", "operator,kind"):
        for when in ("before", "after"):
            rows += [row(f"{when}, {key}", part) for key, part in run.report[when]["by"][name].items()]
    rows.append(row("after, foreign + and -", foreign))
    record("demo", vars(chosen), rows, training_seconds=run.report["training_seconds"])


if __name__ == "__main__":
    main()

"""Sums and differences of up to 12 digits, with their steps: the embedded model learns them with Muon.

Asked are held-out problems of 1 to 14 digits in both operands; in half of what is learned both have the same length,
too. `styles.py` gives AdamW a fifth of the steps.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from recording import options, record
from styles import LONG, grid, mean, trained

from glmtune.libraries import quiet_libraries


def main() -> None:
    """Train, ask, record."""
    chosen = options(__doc__, steps=4000, problems=100, held_out=200)
    quiet_libraries()
    settings = [
        f"task.digits={LONG}",
        "task.same_digits=0.5",
        "task.operators='+-'",
        "training.optimizer=muon",
        "training.learning_rate=4e-3",
        "training.adam_beta2=0.98",
        f"training.steps={chosen.steps}",
        f"evaluation.num_examples={chosen.held_out}",
    ]
    with tempfile.TemporaryDirectory() as work:
        run, curve = trained("long", settings, Path(work))
        rows = grid(run, "+-", [(digits, digits) for digits in range(1, LONG + 3)], chosen.problems)
    reached = {operator: mean([row for row in rows if row["left"] <= LONG], operator=operator) for operator in "+-"}
    record(
        "long_sums", vars(chosen), rows, trained=reached, curve=curve, training_seconds=run.report["training_seconds"]
    )


if __name__ == "__main__":
    main()

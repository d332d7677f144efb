"""The demo on a real model, measured: what `make demo-real` trains, what it learned and what it forgot."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from demo import row
from real_model import real_model
from recording import RESULTS, options, record

from glmtune.commands import train
from glmtune.evaluation.decision import decide
from glmtune.libraries import quiet_libraries

RECIPE = str(Path(__file__).parents[1] / "recipes/demo_real.yaml")


def main() -> None:
    """Train and record; the plots are kept beside the results, the run where `--folder` says."""
    chosen = options(__doc__, held_out=500, folder="")
    quiet_libraries()
    with tempfile.TemporaryDirectory() as work:
        place = chosen.folder or f"{work}/run"
        settings = [f"model.path={real_model()}", f"training.output_dir={place}"]
        run = train.run(RECIPE, [*settings, f"evaluation.num_examples={chosen.held_out}"])
        for picture in run.folder.path.glob("*.png"):
            shutil.copy(picture, RESULTS / f"demo_real_{picture.name}")
    rows = []
    for when in ("before", "after"):
        rows.append(row(f"{when}, all", run.report[when]))
        rows += [row(f"{when}, {key}", part) for key, part in run.report[when]["by"]["operator"].items()]
    decision, words, rest = decide(run.report)
    record(
        "demo_real",
        {"held_out": chosen.held_out},
        rows,
        training_seconds=run.report["training_seconds"],
        decision=decision,
        headline=f"{words}: {rest}",
        forgetting=run.report["forgetting"],
    )


if __name__ == "__main__":
    main()

"""What a training of several runs, one after the other, amounts to: for model cards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import glmtune
from glmtune.config import load_recipe
from glmtune.files import replacing
from glmtune.models.checkpoint import fingerprint
from glmtune.runtime import RunFolder

RECORD = "training.json"  # beside published weights: what their training amounts to, for stages that go on from them


def amounts(stages: list[str], model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What cards say of any model, and the last run's report of it.

    Args:
        model: what came out.
        stages: run folders; `FOLDER@STEP` where the next run went on from a checkpoint of this one. The first may be a
            folder of published weights, from which the second went on.
    """
    examples, steps, seconds, counted = 0, [], 0.0, []
    published = Path(stages[0], RECORD)
    if published.is_file():
        before = json.loads(published.read_text(encoding="utf-8"))
        examples, steps, seconds, counted = (before[key] for key in ("examples", "steps", "seconds", "counted"))
        stages = stages[1:]
    if not stages:
        sys.exit(f"{published.parent}: is published already; name the runs that went on from it, too.")
    for stage in stages:
        folder, _, cut = stage.partition("@")
        run = RunFolder(folder)
        if (weights := fingerprint(run.model)) in counted:
            sys.exit(f"{folder}: is counted in {published} already. Name the weights that it went on from.")
        counted.append(weights)
        recipe = load_recipe(run.recipe)
        count = int(cut) if cut else recipe.training.steps or 0
        log = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
        seconds += max(line["seconds"] for line in log if line["step"] <= count and "seconds" in line)
        examples += count * recipe.training.batch_size
        steps.append(f"{count:,} steps of {recipe.training.batch_size} ({recipe.training.optimizer})")
    report = json.loads(run.report.read_text(encoding="utf-8"))
    where, config = report["machine"], model.config
    return {
        "version": glmtune.__version__,
        "parameters": model.num_parameters(),
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "examples": examples,
        "steps": ", then ".join(steps),
        "hours": seconds / 3600,
        "record": {"examples": examples, "steps": steps, "seconds": round(seconds), "counted": counted},
        "processor": where["processor"],
        "date": where["date"],
        "torch": where["versions"]["torch"],
        "transformers": where["versions"]["transformers"],
        "accuracy": report["after"]["accuracy"],
        "n": report["after"]["n"],
    }, report["after"]


def write_record(target: Path, facts: dict[str, Any]) -> None:
    """Put what `amounts` found beside published weights."""
    with replacing(target / RECORD) as temporary:
        temporary.write_text(json.dumps(facts["record"], indent=2) + "\n", encoding="utf-8")

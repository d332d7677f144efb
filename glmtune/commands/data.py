"""`glmtune data`: write examples of a task to a file."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from glmtune import registry
from glmtune.config import make_recipe, with_overrides
from glmtune.data import examples_of
from glmtune.examples import Split
from glmtune.records.files import READERS
from glmtune.runtime import UserError, replacing
from glmtune.tasks import Task


def run(task_name: str, n: int, output: str, split: Split = "train", overrides: list[str] | None = None) -> int:
    """Write `n` records `{"prompt", "target", "facts"}`, one a line.

    Args:
        task_name: a task, or a path to the user's own.
        n: number of records; a task with fewer gives all it has.
        output: JSONL file; replaced when all records are drawn.
        split: `train` or `held_out`; the two never share a problem.
        overrides: `task.setting=value` and `seed=value` texts.

    Returns:
        The number written.

    Raises:
        UserError: unknown task or setting, or a name for a table.
    """
    if n < 1:
        raise UserError(f"--n {n}: must be at least 1")
    if Path(output).suffix.lower() in {*READERS} - {".jsonl"}:
        raise UserError(f"--output {output}: examples are written as JSON lines. Name it {Path(output).stem}.jsonl.")
    recipe = make_recipe(with_overrides({"task": {"name": task_name}}, overrides or []))
    task: Task = registry.find("glmtune.tasks", recipe.task.name)(recipe.task, recipe.data)
    examples = examples_of(task, split, n, recipe.seed)
    written = min(n, len(examples))
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index in tqdm(range(written), desc="drawing", unit="example"):
            example = examples[index]
            record = {"prompt": example.prompt, "target": example.target, "facts": example.facts}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return written

"""`glmtune evaluate`: how good a run or model is, on its held-out examples or on a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from glmtune import methods, registry
from glmtune.config import Recipe, load_recipe
from glmtune.data import examples_of
from glmtune.evaluation.evaluator import Evaluation, evaluate
from glmtune.runtime import RunFolder, machine, write_json
from glmtune.tasks import Example, Task
from glmtune.tasks.instructions import read_examples


def recipe_of(target: str, overrides: list[str] | None) -> Recipe:
    """The recipe of a run, or the default one for a bare model, with overrides.

    Raises:
        UserError: faults in it.
    """
    return load_recipe(RunFolder(target).recipe if RunFolder.is_run(target) else None, overrides or [])


def examples_from(task: Task, file: str) -> list[Example]:
    """Records of a file; facts that they lack are the task's to find.

    Raises:
        UserError: with file and line number.
    """
    return [
        replace(example, facts={**task.describe(example.prompt, example.target), **example.facts})
        for example in read_examples(file)
    ]


def run(
    target: str,
    data: str | None = None,
    output: str | None = None,
    overrides: list[str] | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Score a run folder, an adapter, a checkpoint directory, a hub name or `nano`.

    Args:
        target: what to evaluate.
        data: JSONL file of records with `prompt` and `target`; default: held-out examples of the task.
        output: JSON file to write.
        overrides: `section.setting=value` texts.

    Returns:
        The evaluation and its report: `n`, `exact_match`, `exact_match_ci95`, `by`, ...

    Raises:
        UserError: no such model or file, or a malformed record.
    """
    recipe = recipe_of(target, overrides)
    task: Task = registry.find("glmtune.tasks", recipe.task.name)(recipe.task)
    count = recipe.evaluation.num_examples
    examples = examples_from(task, data) if data else examples_of(task, "held_out", count, recipe.seed)[:count]
    model, tokenizer = methods.load(target, dtype=recipe.model.dtype)
    evaluation = evaluate(model, tokenizer, task, examples, recipe.generation)
    report = {
        **evaluation.report(recipe.evaluation.text_metrics),
        "model": target,
        "data": str(Path(data)) if data else f"held-out examples of task '{recipe.task.name}'",
        "machine": machine(),
    }
    if output:
        write_json(output, report)
    return evaluation, report

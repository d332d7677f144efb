"""`glmtune evaluate`: how good a run or model is, on its held-out examples or on a file."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmtune.config import Recipe
from glmtune.data.encoding import plain_ids
from glmtune.evaluation.evaluator import Evaluation, evaluate
from glmtune.examples import Example
from glmtune.inference.selection import encode_examples, fit_max_new_tokens, fit_max_new_tokens_to, select_held_out
from glmtune.records import read_examples
from glmtune.resolution import ResolvedModel, Target, resolve
from glmtune.runtime import check_output, machine, seed_everything, write_json
from glmtune.tasks import Task


def run(
    target: Target,
    data: str | None = None,
    output: str | None = None,
    overrides: Iterable[str] = (),
) -> tuple[Evaluation, dict[str, Any]]:
    """Score a run folder, an adapter, a checkpoint directory, a hub name or `nano`.

    Args:
        target: what to evaluate.
        data: records of any known format with answers; default: held-out examples of the task.
        output: JSON file to write.
        overrides: `section.setting=value` texts.

    Returns:
        The evaluation and its report: `n`, `accuracy`, `accuracy_ci95`, `by`, ...

    Raises:
        UserError: no such model or file, or a malformed record.
    """
    resolved = resolve(target, overrides)
    if output:
        check_output(output)
    recipe, examples = asked_of(resolved, data)
    model, tokenizer = resolved.load()
    seed_everything(recipe.seed)
    evaluation = evaluate(model, tokenizer, resolved.task, examples, recipe.generation)
    report = {
        **evaluation.report(recipe.evaluation.text_metrics),
        "model": str(target),
        "data": str(Path(data)) if data else f"held-out examples of task '{recipe.task.name}'",
        "machine": machine(),
    }
    if output:
        write_json(output, report)
    return evaluation, report


def asked_of(resolved: ResolvedModel, data: str | None) -> tuple[Recipe, Sequence[Example]]:
    """Return the examples that a model is asked, and the recipe with room for their answers.

    Raises:
        UserError: no such file, or an example that the model cannot take; with file and line.
    """
    recipe, task, tokenizer, limit = resolved.recipe, resolved.task, resolved.tokenizer, resolved.limit
    if data is None:
        recipe = fit_max_new_tokens(recipe, task, tokenizer, limit)
        return recipe, select_held_out(recipe, task, tokenizer, limit)
    examples = examples_from(task, data)
    recipe = fit_max_new_tokens_to(recipe, examples, tokenizer, limit)
    longest = recipe.generation.longest
    if cut := sum(len(plain_ids(tokenizer, example.target)) >= longest for example in examples):
        warnings.warn(
            f"{data}: {cut} of {len(examples)} answers have more tokens than generation.max_new_tokens={longest}, and "
            "cannot be given in whole.",
            stacklevel=2,
        )
    encode_examples(tokenizer, examples, limit, longest)
    return recipe, examples


def examples_from(task: Task, file: str) -> list[Example]:
    """Return the records of a file, read as the recipe's `data` says; facts that they lack are the task's to find.

    Raises:
        UserError: with file and line number.
    """
    return [
        replace(example, facts={**task.describe(example.prompt, example.target), **example.facts})
        for example in read_examples(file, task.data)
    ]

"""`glmtune evaluate`: score a model on held-out examples of its task, or on a file."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.commands._arguments import add_settings, add_target, add_trust, trust_of
from glmtune.trust import REMEMBERED, Trust

if TYPE_CHECKING:
    from glmtune.config import Recipe
    from glmtune.evaluation.evaluator import Evaluation
    from glmtune.examples import Example
    from glmtune.resolution import ResolvedModel, Target
    from glmtune.tasks import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the records, and where the report goes."""
    add_target(parser)
    parser.add_argument("--data", metavar="FILE", help="records of any known format: JSONL, CSV, Parquet, a folder")
    parser.add_argument("--output", metavar="OUT.json", help="write the report here")
    add_trust(parser)
    add_settings(parser)


def main(options: argparse.Namespace) -> None:
    """Evaluate and print the table."""
    from glmtune.libraries import quiet_libraries

    quiet_libraries()
    _, report = run(options.target, options.data, options.output, options.settings, trust_of(options))
    show(report, options)


def run(
    target: Target,
    data: str | None = None,
    output: str | None = None,
    overrides: Iterable[str] = (),
    trust: Trust = REMEMBERED,
) -> tuple[Evaluation | None, dict[str, Any]]:
    """Score a run folder, an adapter, a checkpoint directory, a GGUF file, a hub name or `nano`.

    Args:
        target: what to evaluate.
        data: records of any known format with answers; default: held-out examples of the task.
        output: JSON file to write.
        overrides: `section.setting=value` texts.
        trust: what becomes of code that the target's recipe names.

    Returns:
        The evaluation and its report: `n`, `accuracy`, `accuracy_ci95`, `by`, ... Where texts are judged and nothing is
        asked, no evaluation, and a report of the objective's `metric`. With `evaluation.forgetting=true` it has
        `general`, too: what the model knows of the general questions.

    Raises:
        UserError: no such model or file, or a malformed record.
    """
    from glmtune.files import check_output, write_json
    from glmtune.plan import Plan
    from glmtune.resolution import resolve
    from glmtune.runtime import RunFolder, machine

    resolved = resolve(target, overrides, trust)
    if output:
        check_output(output)
    plan = Plan(resolved, RunFolder(os.fspath(target)))
    texts = None if data is None or resolved.objective.asks else read_texts(resolved.task, data)
    is_judged = not resolved.objective.asks and bool(data is None or texts)
    recipe, examples = (resolved.recipe, []) if is_judged else select_examples(resolved, data)
    judge = resolved.objective.judge(plan.preparation, texts) if is_judged else None
    general = plan.general

    from glmtune.evaluation.evaluator import evaluate  # torch, when paths and records are known to be right

    (model, tokenizer), evaluation = resolved.load(), None
    if judge is not None:
        figures = {"metric": resolved.objective.metric, **judge(model)}
    else:
        asked = recipe.generation
        evaluation = evaluate(model, tokenizer, resolved.task, examples, asked, limit=resolved.limit, seed=recipe.seed)
        figures = evaluation.report(recipe.evaluation.text_metrics)
    if general:
        from glmtune.evaluation.forgetting import probe

        figures["general"] = probe(model, tokenizer, general, recipe.generation, resolved.limit).report()
    report = {
        **figures,
        "model": os.fspath(target),
        "data": str(Path(data)) if data else f"held-out examples of task '{resolved.recipe.task.name}'",
        "machine": machine(),
    }
    if output:
        write_json(output, report)
    return evaluation, report


def read_texts(task: Task, file: str) -> list[Example] | None:
    """Return the records of a file, if they are plain texts, which ask nothing.

    Raises:
        UserError: with file and line number.
    """
    records = read_records(task, file)
    return records if all(record.text is not None for record in records) else None


def show(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table, and where the report is written."""
    from glmtune.evaluation.report import comparison_table, general_table
    from glmtune.terminal.console import Console

    console = Console()
    if "metric" in report:
        name = report["metric"]
        console.print(f"Held-out {name.replace('_', ' ')}: {report[name]:.4f} (n = {report['n']:,})")
    else:
        console.print(comparison_table(None, report))
    if "general" in report:
        console.print(general_table(report["general"]))
    if options.output:
        console.print(f"Written: {options.output}")


def select_examples(resolved: ResolvedModel, data: str | None) -> tuple[Recipe, Sequence[Example]]:
    """Return the examples that a model is asked, and the recipe with room for their answers.

    Raises:
        UserError: no such file, or an example that the model cannot take; with file and line.
    """
    recipe, task = resolved.recipe, resolved.task
    examples = task.records("held_out") or [] if data is None else read_records(task, data)

    from glmtune.data.acceptance import accepted
    from glmtune.data.control_tokens import plain_ids
    from glmtune.inference.selection import (
        HeldOut,
        encode_examples,
        fit_max_new_tokens,
        fit_max_new_tokens_to,
        select_held_out,
    )

    tokenizer, limit = resolved.tokenizer, resolved.limit
    if data is None:
        recipe = fit_max_new_tokens(recipe, task, tokenizer, limit)
        return recipe, select_held_out(recipe, task, tokenizer, limit)
    examples = accepted(examples, tokenizer, recipe.data)
    recipe = fit_max_new_tokens_to(recipe, examples, tokenizer, limit)
    longest = recipe.generation.longest
    if cut := sum(len(plain_ids(tokenizer, example.target)) >= longest for example in examples):
        warnings.warn(
            f"{data}: {cut} of {len(examples)} answers have more tokens than generation.max_new_tokens={longest}, and "
            "cannot be given in whole.",
            stacklevel=2,
        )
    tools = [tool.definition() for tool in task.tools]
    offering = [example if example.tools else replace(example, tools=tools) for example in examples]
    return recipe, HeldOut(examples, encode_examples(tokenizer, offering, limit, longest))


def read_records(task: Task, file: str) -> list[Example]:
    """Return the records of a file, read as the recipe's `data` says; facts that they lack are the task's to find.

    Raises:
        UserError: with file and line number.
    """
    from glmtune.records import read_examples

    return [
        replace(example, facts={**task.describe(example.prompt, example.target), **example.facts})
        for example in read_examples(file, task.data)
    ]

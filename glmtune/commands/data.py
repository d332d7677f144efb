"""`glmtune data`: write examples of a task to a JSONL file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.commands._arguments import add_settings
from glmtune.terminal import say, to_json

if TYPE_CHECKING:
    from glmtune.examples import Split
    from glmtune.tasks import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the task, and how many examples of it go where."""
    parser.add_argument("task", metavar="TASK", help="a task that `glmtune ls` shows, or a path to your own .py file")
    parser.add_argument("--n", type=int, default=1000, help="number of examples (default: 1000)")
    parser.add_argument("--output", metavar="OUT.jsonl", help="file to write, or to replace")
    parser.add_argument("--split", choices=("train", "held_out"), default="train", help="default: train")
    add_settings(parser, "task.digits=5 seed=1")


def main(options: argparse.Namespace) -> None:
    """Write the examples and print how many there are.

    Raises:
        UserError: no output is named, or the task is `inspect`, a verb of its own.
    """
    from glmtune.runtime import UserError

    if options.task == "inspect":
        files = " ".join(options.settings) or "FILE"
        raise UserError(f"files of records are inspected by a verb of its own: glmtune inspect {files}")
    if options.output is None:
        raise UserError("name the file to write with --output OUT.jsonl")
    show(run(options.task, options.n, options.output, options.split, options.settings), options)


def run(task_name: str, n: int, output: str, split: Split = "train", overrides: Sequence[str] = ()) -> int:
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
    from tqdm import tqdm

    from glmtune import registry
    from glmtune.config import load_recipe
    from glmtune.files import replacing
    from glmtune.records.writing import LINES
    from glmtune.runtime import UserError

    if n < 1:
        raise UserError(f"--n {n}: must be at least 1")
    if Path(output).suffix.lower() not in LINES:
        raise UserError(f"--output {output}: examples are written as JSON lines. Name it {Path(output).stem}.jsonl.")
    recipe = load_recipe(None, [f"task.name={json.dumps(task_name)}", *overrides])
    task: Task = registry.admitted("glmtune.tasks", recipe.task.name)(recipe.task, recipe.data)

    from glmtune.data import examples_of  # torch, when the settings are known to be right

    examples = examples_of(task, split, n, recipe.seed)
    count = min(n, len(examples))
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index in tqdm(range(count), desc="drawing", unit="example"):
            example = examples[index]
            more = {"tool_calls": list(example.tool_calls), "tools": list(example.tools)}
            record = {"prompt": example.prompt, "target": example.target, "facts": example.facts}
            record |= {name: value for name, value in more.items() if value}
            file.write(to_json(record) + "\n")
    return count


def show(count: int, options: argparse.Namespace) -> None:
    """Print how many examples are where."""
    say(f"{count} examples written to {options.output}")

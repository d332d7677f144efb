"""`glmtune inspect`: show what is in files of records, what is wrong with them, and what a model would learn."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glmtune.commands._arguments import add_fetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from glmtune.config import Recipe
    from glmtune.terminal.console import Console
    from glmtune.trust import UntrustedError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare files and settings, and where the report goes."""
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE_OR_SETTING",
        help="files, folders or OWNER/NAME of the hub, and settings such as data.columns.prompt=FIELD "
        "task.held_out_file=FILE data.deduplicate=near data.max_length=512",
    )
    add_fetch(parser)
    parser.add_argument("--model", help="whose tokens and template count (default: nano)")
    parser.add_argument("--output", metavar="OUT.json", help="write the report here")
    parser.add_argument("--html", metavar="PAGE.html", help="write the report as a page, too")


def main(options: argparse.Namespace) -> int:
    """Inspect and print; the exit code is 2 if something is wrong with the records."""
    from glmtune.libraries import quiet_libraries

    quiet_libraries()
    settings = [text for text in options.files if "=" in text and not os.path.exists(text)]
    files = [text for text in options.files if text not in settings]
    report = run(files, options.output, options.html, options.model, settings)
    show(report, options)
    return 2 if report["faults"] else 0


def run(
    files: Sequence[str],
    output: str | None = None,
    page: str | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Read records as a training would, and report on them.

    Args:
        files: files, folders, or data sets of the hub.
        output: JSON file for the report.
        page: HTML file for the report.
        model: whose tokenizer and template count: anything that can be loaded; default: `model.path`, which is nano.
        overrides: `data.columns.prompt=...`, `task.held_out_file=...`, `data.max_length=...` and so on.

    Returns:
        `format, records, faults, duplicates, tokens`, and what else is known. It is whole if `faults` is empty.

    Raises:
        UserError: there is no such file, model or setting.
    """
    from glmtune.config import load_recipe
    from glmtune.files import check_output, write_json, write_text
    from glmtune.inspection.reading import read_files
    from glmtune.records.files import assign_splits
    from glmtune.runtime import UserError
    from glmtune.tasks.instructions import InstructionsSettings

    if not files:
        raise UserError("Name a file, a folder, or OWNER/NAME of the hub: glmtune inspect FILE")
    overrides = [*overrides, *([f"model.path={model}"] if model else [])]
    recipe = load_recipe(None, ["task.name=instructions", f"task.file={json.dumps(files[0])}", *overrides])
    task = recipe.task
    if not isinstance(task, InstructionsSettings):
        raise UserError(f"task.name={task.name}: files are inspected for task.name=instructions only.")
    if output:
        check_output(output)
    if page:
        check_output(page, "--html")
    learned, judged = zip(*(assign_splits(file, task.held_out_file) for file in files), strict=True)
    records, faults = read_files(learned, recipe.data)
    by = list(dict.fromkeys(filter(None, judged)))
    held_out, more = read_files(by, recipe.data)
    recipe = recipe.model_copy(update={"task": task.model_copy(update={"held_out_file": by[0] if by else None})})
    tokenizer, limit, refused = reader_of(recipe)

    from glmtune.inspection.figures import examine  # torch, when settings and paths are known to be right
    from glmtune.inspection.page import render_report

    report = examine(records, held_out, recipe, tokenizer, limit)
    report["notes"] += [] if refused is None else [f"{refused} It is not needed here."]
    report["faults"] = [fault.as_dict() for fault in [*faults, *more]] + report["faults"]
    report = {"files": list(files), "model": recipe.model.path, **report}
    if output:
        write_json(output, report)
    if page:
        write_text(page, render_report(report))
    return report


def reader_of(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, int | None, UntrustedError | None]:
    """Return what reads the records: the tokenizer of the recipe's model, and how many tokens that model can take.

    Returns:
        The tokenizer, with the template to be learned; the tokens; and what code the model's files ask to run.
    """
    from glmtune.resolution import look

    resolved, refused = look(recipe.model.path)
    resolved.check()

    from glmtune.models.templates import adopt

    if recipe.data.template is not None:
        adopt(resolved.tokenizer, recipe.data.template)
    return resolved.tokenizer, recipe.data.max_length or resolved.limit, refused


def show(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Print a report, and where it is written."""
    from glmtune.terminal.console import Console

    console = Console()
    print_report(report, console)
    for place in filter(None, (options.output, options.html)):
        console.print(f"Written: {place}", highlight=False, soft_wrap=True)


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print counts, lengths, remarks, and some records token by token."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from glmtune.commands._tokens import explain_marks, mark_tokens
    from glmtune.config import ModelSettings
    from glmtune.inspection.summary import count_rows, length_rows, remarks, where

    if (model := report["model"]) == ModelSettings().path:
        console.print(f"Tokens and template are those of {model}; --model NAME takes another's.", highlight=False)
    counts = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    for row in count_rows(report):
        counts.add_row(*row)
    console.print(counts)
    if report["records"]:
        head, *rows = length_rows(report)
        lengths = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
        for cells in rows:
            lengths.add_row(*cells)
        console.print(lengths)
    for line in remarks(report):
        console.print(line, highlight=False, soft_wrap=True)
    for example in report["examples"]:
        title = Text.assemble("\n", (where(example), "bold"), f", {explain_marks(console)}:")
        console.print(title, soft_wrap=True)
        console.print(mark_tokens(example["tokens"], console), soft_wrap=True)

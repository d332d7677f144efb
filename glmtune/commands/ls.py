"""`glmtune ls`: list tasks, methods, objectives, models, recipes and runs."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from glmtune.terminal import say

Names = dict[str, dict[str, str]]  # of each kind: name -> a line about it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing."""


def main(options: argparse.Namespace) -> None:
    """List and print."""
    show(run())


def run(runs: str = "runs", recipes: str = "recipes") -> Names:
    """Return tasks, methods, objectives, embedded models, recipe files and run folders, each with a line about it.

    Args:
        runs: folder of run folders.
        recipes: folder of recipe files.
    """
    from glmtune.models import loading
    from glmtune.runtime import RunFolder

    folders = [path for path in sorted(Path(runs).glob("*")) if RunFolder.is_run(path)]
    files = sorted(Path(recipes).glob("*.yaml"))
    return {
        **{kind: describe_modules(f"glmtune.{kind}") for kind in ("tasks", "methods", "objectives", "tools")},
        **{kind: describe_rows(f"glmtune.training.{kind}") for kind in ("optimizers", "trackers")},
        "models": dict.fromkeys(loading.EMBEDDED, "embedded"),
        "recipes": {str(file): f"{read_first_comment(file)}{asks(file)}" for file in files if file.is_file()},
        "runs": {str(path): describe_folder(path) for path in folders},
    }


def show(names: Names) -> None:
    """Print the names."""
    for title, entries in names.items():
        say(f"{title}:")
        width = max(map(len, entries), default=0)
        for name, text in entries.items():
            say(f"  {name:<{width}}  {text}")
        if not entries:
            say("  none yet")


def describe_modules(package: str) -> dict[str, str]:
    """Return the first line of each module's docstring, by the module's name."""
    from glmtune import registry

    documentation = {
        name: importlib.import_module(f"{package}.{name}").__doc__ or "" for name in registry.names(package)
    }
    return {name: text.strip().partition("\n")[0] for name, text in documentation.items()}


def describe_rows(module: str) -> dict[str, str]:
    """Return what each row of a table says of itself, by its name."""
    from glmtune import registry

    return {name: row.about for name, row in registry.table(module).items()}


def read_first_comment(file: Path) -> str:
    """Return the comment that opens a recipe."""
    line = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def asks(recipe: Path) -> str:
    """Return which code a recipe asks to run, if any. None is."""
    from glmtune.config import RecipeError, code_named, read_yaml

    try:
        named = code_named(read_yaml(recipe)).values()
    except RecipeError:
        return ""
    return "".join(f"; asks to run {name if name.isprintable() else repr(name)}" for name in named)


def describe_folder(folder: Path) -> str:
    """Return what a run reached, and which code it asks to run; of one that nobody should touch, why."""
    from glmtune.files import check_folder
    from glmtune.runtime import RunFolder, UserError

    try:
        check_folder(folder)
    except UserError as error:
        return f"refused: {error}"
    return f"{describe_run(folder)}{asks(RunFolder(folder).recipe)}"


def describe_run(folder: Path) -> str:
    """Return the held-out figure of a run, or how far it got."""
    from glmtune.config import read_report
    from glmtune.reporting.numbers import percent
    from glmtune.runtime import RunFolder

    run = RunFolder(folder)
    report = run.report
    if not report.is_file():
        return f"not finished; go on with glmtune train --resume {folder}"
    try:
        values = read_report(run)
        name = values.get("metric", "accuracy")
        figures = [values[time][name] for time in ("before", "after")]
        is_share = name == "accuracy" or f"{name}_ci95" in values["after"]
        before, after = (percent(value, 1) if is_share else f"{value:.4f}" for value in figures)
        return f"held-out {name.replace('_', ' ')} {before} -> {after}"
    except (ValueError, KeyError, TypeError, OverflowError):
        return f"{report} is damaged; write it again with glmtune train --resume"

"""`glmtune ls`: the names that recipes can use, and the runs there are."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from glmtune import models, registry
from glmtune.runtime import RunFolder


def run(runs: str = "runs", recipes: str = "recipes") -> dict[str, dict[str, str]]:
    """Tasks, methods, objectives, embedded models, recipe files and run folders, each with a line about it.

    Args:
        runs: folder of run folders.
        recipes: folder of recipe files.
    """
    return {
        "tasks": about("glmtune.tasks"),
        "methods": about("glmtune.methods"),
        "objectives": about("glmtune.objectives"),
        "models": dict.fromkeys(models.EMBEDDED, "embedded"),
        "recipes": {str(file): first_comment(file) for file in sorted(Path(recipes).glob("*.yaml"))},
        "runs": {str(path): result(RunFolder(path)) for path in sorted(Path(runs).glob("*")) if RunFolder.is_run(path)},
    }


def about(package: str) -> dict[str, str]:
    """First line of each module's docstring."""
    found = {}
    for name in registry.names(package):
        documentation = importlib.import_module(f"{package}.{name}").__doc__ or ""
        found[name] = documentation.strip().splitlines()[0]
    return found


def first_comment(file: Path) -> str:
    """The comment that opens a recipe."""
    line = file.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def result(run: RunFolder) -> str:
    """Held-out exact match of a run, or how far it got."""
    if not run.report.is_file():
        return f"not finished; go on with glmtune train --resume {run.path}"
    try:
        report = json.loads(run.report.read_text(encoding="utf-8"))
        return f"held-out exact match {report['before']['accuracy']:.1%} -> {report['after']['accuracy']:.1%}"
    except (ValueError, KeyError, TypeError):
        return f"{run.report} is damaged; write it again with glmtune train --resume"

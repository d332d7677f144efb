"""`glmtune doctor`: find what would fail, with a remedy for each: this machine, a recipe, a model, a data file.

Each check is caught by itself, so that one failure hides no other; only what cannot be looked at because of it is left
out, and that is said. What may be missing or broken (torch, transformers) is imported by the check that needs it. No
weights are read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.commands._arguments import TARGET_HELP, add_recipe, recipe_and_settings
from glmtune.terminal import say, to_json

if TYPE_CHECKING:
    from glmtune.commands.doctor.checks import Diagnosis
    from glmtune.plan import Plan
    from glmtune.trust import UntrustedError

RECIPE_REMEDY = "Mend it there; `glmtune train --help-settings` lists every setting."
WORDS = {"ok": "ok", "warning": "warning", "awaited": "waits", "failure": "FAILS"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the target."""
    text = f"RECIPE.yaml, DATA.jsonl, {TARGET_HELP} (default: the machine)"
    add_recipe(parser, text, "model.bits=4 training.batch_size=1", metavar="TARGET")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def main(options: argparse.Namespace) -> int:
    """Look and print; the exit code is 2 if something would fail."""
    from glmtune.libraries import quiet_libraries

    target, settings = recipe_and_settings(options)
    quiet_libraries()
    diagnoses = run(target, settings)
    show(diagnoses, options.json)
    return 2 if any(diagnosis.status == "failure" for diagnosis in diagnoses) else 0


def run(target: str | None = None, overrides: Sequence[str] = ()) -> list[Diagnosis]:
    """Examine this machine, and a target if one is named.

    Args:
        target: a recipe (`.yaml`), a run folder, an adapter, a checkpoint directory, a GGUF file, a hub name, `nano`,
            or a file of records. Of a run, settings of another task, method or objective ask what a training that goes
            on from it would find.
        overrides: `section.setting=value` texts.

    Returns:
        One diagnosis for each thing, whether it fails or not. Nothing is raised.
    """
    from glmtune.commands.doctor.checks import Check, diagnose, failure
    from glmtune.commands.doctor.machine import machine_checks
    from glmtune.commands.doctor.model import model_checks
    from glmtune.commands.doctor.processes import process_checks, recipe_mark
    from glmtune.commands.doctor.recipe import code_checks, records, run_checks
    from glmtune.commands.doctor.tokenizer import TOKENIZER_CHECKS
    from glmtune.config import RecipeError
    from glmtune.runtime import UserError

    found = list(diagnose([*machine_checks(), *process_checks()]))
    if target is None and not overrides:
        return found
    if target is not None and is_data(target) and not overrides:
        return found + list(
            diagnose([Check("data", partial(records, target), "See what `glmtune inspect` says of it.")])
        )
    try:
        plan, refused = plan_of(target, overrides)
    except RecipeError as error:
        return found + [failure("recipe", UserError(fault), RECIPE_REMEDY) for fault in error.faults]
    except Exception as error:  # a task or method of the user's own, for instance
        return [*found, failure("target", error, RECIPE_REMEDY)]
    checks = [*model_checks(plan.model), *TOKENIZER_CHECKS, *run_checks(plan), *recipe_mark()]
    return found + list(diagnose([*code_checks(refused), *checks], plan))


def plan_of(target: str | None, overrides: Sequence[str]) -> tuple[Plan, UntrustedError | None]:
    """Return the plan by which a target would be trained; no piece of it is worked out yet.

    Returns:
        The plan, without the code that only files name; and what they ask to run.

    Raises:
        RecipeError: faults in a recipe.
    """
    from glmtune.config import load_recipe
    from glmtune.plan import Plan, run_name
    from glmtune.resolution import ResolvedModel
    from glmtune.runtime import RunFolder
    from glmtune.succession import look_ahead

    if target is not None and is_data(target):
        records = ["task.name=instructions", f"task.file={json.dumps(target)}"]
        model, refused = ResolvedModel(load_recipe(None, [*records, *overrides])), None
    else:
        model, refused = look_ahead(target, overrides)
    return Plan(model, RunFolder(model.recipe.training.output_dir or f"runs/{run_name(model.recipe)}")), refused


def is_data(target: str) -> bool:
    """Return whether a target is a file of records."""
    from glmtune.models.gguf.files import is_gguf
    from glmtune.records.files import SUFFIXES

    path = Path(target)
    is_model = path.suffix in (".yaml", ".yml") or is_gguf(path)
    return path.suffix in SUFFIXES or (path.is_file() and not is_model)


def show(diagnoses: Sequence[Diagnosis], as_json: bool = False) -> None:
    """Print what was found, with a remedy where there is something to be done."""
    failures = sum(diagnosis.status == "failure" for diagnosis in diagnoses)
    if as_json:
        say(to_json({"checks": [asdict(diagnosis) for diagnosis in diagnoses], "ok": not failures}, indent=2))
        return
    for diagnosis in diagnoses:
        say(f"{WORDS[diagnosis.status]:<8} {diagnosis.name}: {diagnosis.finding}")
        if diagnosis.remedy:
            say(f"{'':<8} {diagnosis.remedy}")
    awaits = any(diagnosis.status == "awaited" for diagnosis in diagnoses)
    fine = "Nothing that is there would fail." if awaits else "Nothing here would fail."
    say(f"{failures} of {len(diagnoses)} checks fail." if failures else fine)

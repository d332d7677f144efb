"""`glmtune doctor`: what would fail, and what to do about it, before anything is trained. No weights are read.

Each check is caught by itself, so that one failure hides no other; only what cannot be looked at because of it is left
out, and that is said. What may be missing or broken (torch, transformers) is imported by the check that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from glmtune.commands.doctor.checks import Check, Examination, examine, failure
from glmtune.commands.doctor.machine import machine_examinations
from glmtune.commands.doctor.model import COPY, MODEL_EXAMINATIONS, adapter, base, model
from glmtune.commands.doctor.patient import Patient, admit, is_data
from glmtune.commands.doctor.recipe import RECIPE_EXAMINATIONS, RUN_EXAMINATIONS, records
from glmtune.config import RecipeError
from glmtune.runtime import UserError

__all__ = ["Check", "run"]

RECIPE_REMEDY = "Mend it there; `glmtune train --help-settings` lists every setting."


def run(target: str | None = None, overrides: Sequence[str] = ()) -> list[Check]:
    """Examine this machine, and a target if one is named.

    Args:
        target: a recipe (`.yaml`), a run folder, an adapter, a checkpoint directory, a hub name, `nano`, or a file of
            records.
        overrides: `section.setting=value` texts.

    Returns:
        One check for each thing, failed or not. Nothing is raised.
    """
    checks = list(examine(machine_examinations()))
    if target is None and not overrides:
        return checks
    if target is not None and is_data(target) and not overrides:
        return checks + list(
            examine([Examination("data", partial(records, target), "See what `glmtune inspect` says of it.")])
        )
    try:
        patient = admit(target, overrides)
    except RecipeError as error:
        faults = [UserError(fault) for fault in error.faults]
        return checks + [failure("recipe", fault, RECIPE_REMEDY) for fault in faults]
    except Exception as error:  # a task or method of the user's own, for instance
        return [*checks, failure("target", error, RECIPE_REMEDY)]
    return checks + list(examine(examinations_of(patient), patient))


def examinations_of(patient: Patient) -> list[Examination]:
    """What is looked at, in order."""
    remedy = "Check the name, and whether the hub can be reached; or name a folder."
    return [
        *([Examination("adapter", adapter, COPY)] if patient.adapter else []),
        Examination("model", model, remedy, () if patient.base_is_named else ("adapter",)),
        *MODEL_EXAMINATIONS,
        *([Examination("base", base, COPY, ("adapter", "files", "weights"))] if patient.adapter else []),
        *(RECIPE_EXAMINATIONS if patient.has_recipe else []),
        *RUN_EXAMINATIONS,
    ]

"""A training that goes on from a run, or from an adapter: by which recipe, and what becomes of what was learned.

The adapter learns on, or becomes part of the weights first; a whole model is where the next one starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from glmtune import adapters, registry
from glmtune.config import (
    ENDLESS_STEPS,
    OPEN_SECTIONS,
    DataSettings,
    Recipe,
    TrainingSettings,
    at_home,
    load_recipe,
    name_in,
    read_yaml,
    with_overrides,
)
from glmtune.files import check_folder
from glmtune.methods import Method
from glmtune.resolution import ResolvedModel, Target, look, of_recipe
from glmtune.runtime import RunFolder, UserError
from glmtune.tasks import Task
from glmtune.training.requirements import without_numbers
from glmtune.trust import LOOKING, REMEMBERED, Trust, UntrustedError

# What a run's recipe says of itself alone, and of what it started from.
ITS_OWN = ("training.output_dir", "model.adapter", "model.merge_adapter", "model.random_init", "data.first_draw")
# Settings that were worked out for another value of a setting or section, and say nothing of the one that is typed.
WORKED_OUT = {
    "method.name": ("training.learning_rate",),
    "objective.name": (
        *("training.learning_rate", "training.steps"),
        *("training.lr_scheduler_type", "training.logging_steps"),  # as `Objective.training` has them
    ),
    "task": ("generation.max_new_tokens",),
    "task.name": ("training.steps",),
    "task.file": ("training.steps",),
    "training.epochs": ("training.steps",),
}


def recipe_after(place: Target, overrides: Iterable[str], trust: Trust = REMEMBERED) -> Recipe:
    """Return the recipe of a training that goes on from a run: the run's own, with the settings that differ.

    Another task, method or objective brings its own settings; what was worked out for the one before is worked out
    anew.

    Args:
        place: the run folder.
        overrides: `section.setting=value` texts.
        trust: what becomes of code that the run's recipe names.

    Raises:
        UserError: no run, one that holds nothing yet, or settings that contradict it.
    """
    check_folder(os.fspath(place))
    if not RunFolder.is_run(os.fspath(place)):
        raise UserError(
            f"{os.fspath(place)}: no recipe (.yaml), and no run that training could go on from. Of a model: "
            "model.path=..., of an adapter: model.adapter=..."
        )
    run, overrides = RunFolder(os.fspath(place)), list(overrides)
    if not run.model.is_dir():
        adapters.adapter_folder(run.path)  # says what is wrong with it
    before, typed = read_yaml(run.recipe), with_overrides({}, overrides)
    named = set(typed) | {
        f"{section}.{name}" for section, group in typed.items() if isinstance(group, dict) for name in group
    }
    other = {
        section
        for section in OPEN_SECTIONS
        if (name := name_in(typed, section)) is not None and name != name_in(before, section)
    }
    recipe = at_home(load_recipe(run.recipe, overrides, trust, [*ITS_OWN, *other, *worked_out(named, other)]), run)
    check_typed(run, recipe, named)
    recipe = drawing_on(start_from(run, recipe), before, named)
    return recipe if "method" in other else learning_on(recipe, before.get("method") or {}, named)


def look_ahead(
    target: Target | None = None, overrides: Iterable[str] = ()
) -> tuple[ResolvedModel, UntrustedError | None]:
    """Return what `glmtune.resolution.look` does; of a run and settings of another one, what that would begin with.

    Raises:
        UserError: faults in the recipe.
    """
    overrides = list(overrides)
    if target is None or not makes_another(target, overrides):
        return look(target, overrides)
    try:
        return of_recipe(recipe_after(target, overrides, LOOKING)), None
    except UntrustedError as refused:
        unseen = [f"{section}={{}}" for section in refused.sections]
        return of_recipe(recipe_after(target, [*overrides, *unseen], LOOKING)), refused


def makes_another(target: Target, overrides: list[str]) -> bool:
    """Return whether settings would make another run of a run: another folder, task, method or objective."""
    sections = (*OPEN_SECTIONS, "training.output_dir", "model.merge_adapter")
    typed = [override.partition("=")[0] for override in overrides]
    return RunFolder.is_run(os.fspath(target)) and any(
        f"{name}.".startswith(f"{section}.") for name in typed for section in sections
    )


def describe_inherited(place: Target, recipe: Recipe, overrides: Iterable[str]) -> str:
    """Return which settings of the training a new run has from the one that it goes on from, as nobody typed them.

    Args:
        place: the run folder.
        recipe: of the new run.
        overrides: what was typed.
    """
    typed = with_overrides({}, overrides).get("training", {})
    usual = TrainingSettings().model_dump()
    has = {name: value for name, value in recipe.training.model_dump().items() if value != usual[name]}
    if "steps" in has:  # which the epochs were worked out to
        has.pop("epochs", None)
    kept = [f"training.{name}={value}" for name, value in has.items() if name not in {*typed, "output_dir"}]
    count = ", ".join(kept) if kept else "as by default"
    return f"The training is that of {os.fspath(place)} where nothing else is typed: {count}."


def worked_out(named: set[str], other: set[str]) -> Iterator[str]:
    """Yield the settings that are worked out anew.

    Args:
        named: sections and settings that were typed.
        other: sections that have another name than before.
    """
    for setting, follow in WORKED_OUT.items():
        section, _, name = setting.partition(".")
        if section in other if name == "name" else setting in named:
            yield from follow


def check_typed(run: RunFolder, recipe: Recipe, named: set[str]) -> None:
    """See whether what was typed goes with the run.

    Raises:
        UserError: it does not.
    """
    output = recipe.training.output_dir
    if output is not None and Path(output).resolve() == run.path.resolve():
        raise UserError(
            f"training.output_dir={output}: is the run that training goes on from, which stays as it is. Name another "
            f"folder, or train that run itself longer: glmtune train --resume {run.path} training.steps=N"
        )
    if "model.adapter" in named:
        raise UserError(f"model.adapter: training goes on from what {run.path} has learned. Leave one of the two out.")
    if run.model.is_dir() and "model.path" in named:
        raise UserError(
            f"model.path={recipe.model.path}: {run.path} holds a whole model, which is what training goes on from. "
            "Leave the setting out."
        )


def start_from(run: RunFolder, recipe: Recipe) -> Recipe:
    """Return the recipe with what the run has learned as its start: the whole model, or the adapter on its base."""
    whole, path = run.model.is_dir(), run.path.resolve()
    start: dict[str, Any] = {"path": str(path / run.model.name)} if whole else {"adapter": str(path)}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=start)})


def drawing_on(recipe: Recipe, before: dict[str, Any], named: set[str]) -> Recipe:
    """Return the recipe with other examples than the run has learned, of a task that draws without end.

    Args:
        recipe: of the training to come.
        before: settings that the run had.
        named: sections and settings that were typed; another seed or task brings other examples by itself.
    """
    kind: type[Task] = registry.admitted(OPEN_SECTIONS["task"], recipe.task.name)
    if kind.records is not Task.records or named & {"seed", "task", "task.name", "data.first_draw"}:
        return recipe
    training = TrainingSettings.model_validate(before.get("training") or {})
    drawn = DataSettings.model_validate(before.get("data") or {}).first_draw
    drawn += (training.steps or ENDLESS_STEPS) * training.examples_per_step
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"first_draw": drawn})})


def learning_on(recipe: Recipe, before: dict[str, Any], named: set[str]) -> Recipe:
    """Return the recipe with the settings of what the method has saved, where these are others than it began with.

    Args:
        recipe: of the training to come, by the same method.
        before: settings of the method that the run had.
        named: sections and settings that were typed; a shape that was typed counts.
    """
    kind: type[Method] = registry.admitted(OPEN_SECTIONS["method"], recipe.method.name)
    began = kind.Settings.model_validate(before)
    saved = kind(began).learns_on()
    changed = {name: value for name, value in saved.model_dump().items() if value != began.model_dump()[name]}
    if recipe.model.adapter is None or named & {"method", *(f"method.{name}" for name in changed)}:
        return recipe
    method = recipe.method.model_copy(update=changed)
    recipe = recipe.model_copy(update={"method": method})
    if kind(method).learning_rate(1) == kind(began).learning_rate(1) or "training.learning_rate" in named:
        return recipe
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": None})})


def merges(model: ResolvedModel) -> bool:
    """Return whether the adapter that training goes on from becomes part of the weights first; else it learns on.

    Raises:
        UserError: it can do neither, or not what the recipe says.
    """
    if model.adapter is None:
        return False
    asked, name = model.recipe.model.merge_adapter, model.recipe.method.name
    model.method.check_base(model.recipe.model, 16)
    method = type(model.method)(
        model.recipe.method
    )  # the model's own is to remember nothing of the one without numbers
    if asked is not True and method.takes_over(model.adapter, without_numbers(model.config)):
        return False
    if asked is False:
        raise UserError(
            f"model.merge_adapter=false: {model.adapter} has another shape than method.name={name} trains, so that it "
            "cannot learn on. Set the method as it was trained with, or leave the setting out."
        )
    if not adapters.is_mergeable(model.adapter):
        from glmtune.models.prefix import saved_length

        raise UserError(
            f"{model.adapter} is a prefix (P-Tuning v2): it is no change of weights and cannot become part of them, so "
            f"that nothing but this prefix itself can learn on: method.name=ptuning_v2 method.num_virtual_tokens="
            f"{saved_length(model.adapter)} method.prefix_projection=false, without model.merge_adapter."
        )
    return True


def kept_of(model: ResolvedModel) -> int:
    """Return the bytes of what the new run folder keeps of where training goes on from: an adapter, or a whole model.

    Raises:
        UserError: there is no such adapter, it does not fit its base, or it can neither learn on nor be merged.
    """
    if model.adapter is None or not model.is_recipe:
        return 0
    model.check()
    if not merges(model):
        return sum(file.stat().st_size for file in model.adapter.iterdir() if file.is_file())
    return model.architecture.parameters * (4 if model.architecture.wide else 2)


def with_start(recipe: Recipe, place: Path) -> Recipe:
    """Return the recipe with an adapter that lies elsewhere."""
    model = recipe.model.model_copy(update={"adapter": str(place.resolve())})
    return recipe.model_copy(update={"model": model})


def with_base(recipe: Recipe, place: Path) -> Recipe:
    """Return the recipe with a whole model in the place of a base and its adapter."""
    merged = {"path": str(place.resolve()), "adapter": None, "merge_adapter": None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=merged)})

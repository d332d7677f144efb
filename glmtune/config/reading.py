"""Recipes in: YAML, overrides, the settings of what a recipe names. Recipes out: YAML. Reports and logs of runs in."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import Field, ValidationError, create_model

from glmtune import network, registry
from glmtune.config.faults import RecipeError, explain
from glmtune.config.tree import CODE_LISTS, OPEN_SECTIONS, NamedSettings, Recipe
from glmtune.config.upgrading import upgrade, upgrade_figures
from glmtune.config.values import MOST_CHARACTERS, RepeatedKeyError, Written, as_group, by_type, is_null, native, parse
from glmtune.files import check_named
from glmtune.runtime import RunFolder, read_json_lines
from glmtune.trust import REMEMBERED, Request, Trust


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a recipe file as nested dictionaries, in the present format; scalars are what they look like.

    Raises:
        RecipeError: no such file, not YAML, not a mapping, or a section or setting that stands twice.
    """
    values: dict[str, Any] = native(read_texts(path))
    return values


def read_texts(path: Path) -> dict[str, Any]:
    """Return what `read_yaml` does, with the text of each scalar that stands without quotes (`Plain`).

    Raises:
        RecipeError: as `read_yaml`.
    """
    check_named(path)
    try:
        with path.open(encoding="utf-8") as file:
            values = parse(file.read(MOST_CHARACTERS + 1))
    except FileNotFoundError:
        beside = path.parent if path.parent.is_dir() else Path(".")
        hint = registry.suggest(path.name, [file.name for file in sorted(beside.glob("*.yaml"))])
        if path.suffix not in (".yaml", ".yml"):
            hint += " A setting is written section.setting=value."
        raise RecipeError([f"{path}: no such file.{hint}"]) from None
    except RepeatedKeyError as error:
        raise RecipeError([f"{path}: {error}"]) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError([f"{path}: not a readable YAML file: {' '.join(str(error).split())}"]) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(
            [f"{path}: must hold `section: {{setting: value}}`, it holds a {type(native(values)).__name__}"]
        )
    # A section whose lines are all commented out is null.
    given = {section: value for section, value in values.items() if not is_null(value)}
    return upgrade({**given, "format": native(given["format"])} if "format" in given else given)


def with_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `section.setting=value` texts. What a value is depends on the type of its setting (`by_type`).

    Of two that set the same, the last one counts.

    Raises:
        RecipeError: an override without '=', or one that reaches into something that is no section.
    """
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        *sections, setting = key.split(".")
        if not equals and Path(override).suffix in (".yaml", ".yml"):
            faults.append(f"'{override}': a recipe's file stands first, before the settings")
            continue
        if not equals or not all(sections) or not setting:
            faults.append(f"'{override}': write it as section.setting=value, e.g. training.steps=100")
            continue
        with suppress(yaml.YAMLError):
            try:
                parse(text)
            except RepeatedKeyError as error:
                faults.append(f"{key}: {error}")
        node = values
        for section in sections:
            node[section] = as_group(node.get(section))
            if not isinstance(node[section], dict):
                faults.append(f"'{override}': {section} is no section")
                break
            node = node[section]
        else:
            node[setting] = Written(text)
    if faults:
        raise RecipeError(faults)
    return values


def open_sections(values: dict[str, Any]) -> tuple[type[Recipe], dict[str, Any], list[str]]:
    """Return `Recipe` with the settings of the task, method and objective that `values` name. No code is run for it.

    Returns:
        The class, the values with these names filled in, and faults in the names.
    """
    fields: dict[str, Any] = {}
    faults = []
    for section, package in OPEN_SECTIONS.items():
        given = as_group(values.get(section))
        if not isinstance(given, dict):
            faults.append(f"{section}: must be a group of settings such as {{name: ...}}, not {given!r}")
            given = {}
        name = name_in(values, section) or Recipe.model_fields[section].default.name
        if registry.is_code(name) and Path(name).is_file():
            name = str(Path(name).resolve())  # a run is to be usable from anywhere
        try:
            settings = registry.admitted(package, name).Settings
            values = {**values, section: {**given, "name": name}}
        except ValueError as error:
            faults.append(f"{section}.name: {error}")
            settings, values = NamedSettings, {**values, section: {}}
        fields[section] = (settings, Field(default_factory=dict, validate_default=True))
    return cast(type[Recipe], create_model("Recipe", __base__=Recipe, **fields)), values, faults


def make_recipe(values: dict[str, Any]) -> Recipe:
    """Check nested values and fill in the defaults.

    Raises:
        RecipeError: with every fault: the setting, its value, what is wrong, the nearest right name.
    """
    recipe, values, faults = open_sections(values)
    try:
        made = recipe.model_validate(by_type(values, recipe))
    except ValidationError as error:
        faults += explain(error, recipe)
    if faults:
        raise RecipeError(faults)
    return made


def load_recipe(
    path: Path | str | None = None,
    overrides: Iterable[str] = (),
    trust: Trust = REMEMBERED,
    left_out: Iterable[str] = (),
) -> Recipe:
    """Return the recipe of a file, or the default one, with `section.setting=value` overrides.

    Args:
        path: a YAML file.
        overrides: what the user typed.
        trust: what becomes of code that the file names.
        left_out: sections and settings, such as `training.steps`, of which the file's values do not count.

    Raises:
        RecipeError: with every fault found.
        UntrustedError: the file names code that may not run; none has.
    """
    return make_recipe(read_values(path, overrides, trust, left_out))


def at_home(recipe: Recipe, run: RunFolder) -> Recipe:
    """Return a run's recipe with what lies in its folder where it lies now: the folder may have moved since.

    Args:
        recipe: as the run's file has it.
        run: where it is now.
    """
    model, found = recipe.model, {}
    if is_moved(model.path, run.base):
        found["path"] = str(run.base.resolve())
    if model.adapter is not None and is_moved(model.adapter, run.start):
        found["adapter"] = str(run.start.resolve())
    return recipe.model_copy(update={"model": model.model_copy(update=found)}) if found else recipe


def is_moved(named: str, own: Path) -> bool:
    """Return whether a path that is there no more named what a run folder holds."""
    return Path(named).is_absolute() and Path(named).name == own.name and own.is_dir() and not Path(named).exists()


def read_values(
    path: Path | str | None, overrides: Iterable[str], trust: Trust = REMEMBERED, left_out: Iterable[str] = ()
) -> dict[str, Any]:
    """Return what a file and overrides say together, and run the code that they name.

    This is the one place where it is told who named it: what stands in an override was typed by the user in this
    command, what stands in the file was written by anybody.

    Raises:
        RecipeError: the file cannot be read, or an override is malformed.
        UntrustedError: the file names code that may not run; none has.
    """
    overrides = list(overrides)
    typed = code_named(with_overrides({}, overrides))
    tell_repeated(overrides)
    values = read_texts(Path(path)) if path else {}
    if path:
        network.note_file(path, values)
    values = with_overrides(without(values, left_out), overrides)
    sources = {}
    for setting, name in code_named(values).items():
        with suppress(ValueError):  # there is no such file: told with all other faults
            sources[setting] = registry.Source.read(name)
    trust.check(
        [
            Request(str(path), setting.partition("[")[0], source.path, source.sha256)
            for setting, source in sources.items()
            if setting not in typed
        ]
    )
    for setting, source in sources.items():
        source.run()
        if setting in typed:
            trust.typed(source.path, source.sha256)
    return values


def without(values: dict[str, Any], left_out: Iterable[str]) -> dict[str, Any]:
    """Return the values of a recipe without some sections and settings, such as `training.steps`."""
    names = set(left_out)
    return {
        section: {name: value for name, value in group.items() if f"{section}.{name}" not in names}
        if isinstance(group, dict)
        else group
        for section, group in values.items()
        if section not in names
    }


def code_named(values: dict[str, Any]) -> dict[str, str]:
    """Return the paths to code in the values of a recipe, by the setting that names them, as `objective.rewards[0]`."""
    names = {f"{section}.name": name_in(values, section) for section in OPEN_SECTIONS}
    for section, setting in CODE_LISTS.items():
        group = as_group(values.get(section))
        entries = native(group.get(setting)) if isinstance(group, dict) else None
        for place, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            name = entry.get("name") if isinstance(entry, dict) else entry
            names[f"{section}.{setting}[{place}]"] = name if isinstance(name, str) else None
    return {setting: name for setting, name in names.items() if name and registry.is_code(name)}


def name_in(values: dict[str, Any], section: str) -> str | None:
    """Return the name that the values of a recipe have in an open section; None where they have none."""
    group = as_group(values.get(section))
    name = by_type(group.get("name"), str) if isinstance(group, dict) else None
    return str(name) if name else None


def tell_repeated(overrides: Iterable[str]) -> None:
    """Warn of overrides that a later one takes back."""
    given: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        if earlier := next((other for other in given if f"{other}.".startswith(f"{key}.")), None):
            warnings.warn(f"{key} is set twice: '{override}' counts, '{given[earlier]}' does not.", stacklevel=2)
        given[key] = override


def to_yaml(recipe: Recipe) -> str:
    """Return the whole recipe as YAML; `load_recipe` reads it back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_report(run: RunFolder) -> dict[str, Any]:
    """Return `report.json` of a run, with the present names of its figures.

    Raises:
        ValueError: it is damaged.
    """
    try:
        report = json.loads(run.report.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{run.report}: nested too deeply") from error
    if not isinstance(report, dict):
        raise ValueError(f"{run.report}: a {type(report).__name__}, not a JSON object")
    return upgrade_figures(report)


def read_log(run: RunFolder) -> list[dict[str, Any]]:
    """Return the records of `log.jsonl` of a run, with the present names of their figures.

    Raises:
        UserError: a line that is no record; file and line are told.
    """
    return [upgrade_figures(record) for _, record in read_json_lines(run.log)]

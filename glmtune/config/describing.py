"""The settings told to people: their defaults and meanings, and where a recipe differs."""

from __future__ import annotations

from typing import Any

from glmtune import registry
from glmtune.config.reading import make_recipe
from glmtune.config.tree import OPEN_SECTIONS, Recipe, Settings


def differing(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says that the defaults of its task, method and objective do not."""
    values = recipe.model_dump(mode="json")
    plain = make_recipe({section: without_defaults(values, section) for section in OPEN_SECTIONS}).model_dump(
        mode="json"
    )
    changed = {
        section: {key: value for key, value in group.items() if key == "name" or value != plain[section][key]}
        for section, group in values.items()
        if isinstance(group, dict)
    }
    return {"seed": recipe.seed, **{section: group for section, group in changed.items() if group}}


def without_defaults(values: dict[str, Any], section: str) -> dict[str, Any]:
    """The fields of an open section that have no default, of which there is nothing to differ from, and its name."""
    settings = registry.find(OPEN_SECTIONS[section], values[section]["name"]).Settings
    needed = [name for name, info in settings.model_fields.items() if info.is_required()]
    return {key: values[section][key] for key in ["name", *needed]}


def describe_settings(group: type[Settings], prefix: str = "") -> list[tuple[str, str, str]]:
    """(name, default, meaning) of every setting of a group, for `--help` and the documentation."""
    rows = []
    for name, info in group.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            rows += describe_settings(inner, f"{prefix}{name}.")
        elif name != "format":
            default = "required" if info.is_required() else str(info.get_default(call_default_factory=True))
            rows.append((prefix + name, default, info.description or ""))
    return rows

"""The settings described: with defaults and meanings for people, as a JSON schema for editors; and what differs."""

from __future__ import annotations

from typing import Any

from glmtune import registry
from glmtune.config.reading import make_recipe
from glmtune.config.tree import OPEN_SECTIONS, NamedSettings, Recipe, Settings


def differing(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe says that the defaults of its task, method and objective do not."""
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
    """Return the fields of an open section that have no default to differ from, and its name."""
    settings = registry.admitted(OPEN_SECTIONS[section], values[section]["name"]).Settings
    needed = [name for name, info in settings.model_fields.items() if info.is_required()]
    return {key: values[section][key] for key in ["name", *needed]}


def describe_settings(group: type[Settings], prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (name, default, meaning) of every setting of a group, for `--help` and the documentation."""
    rows = []
    for name, info in group.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            rows += describe_settings(inner, f"{prefix}{name}.")
        elif name != "format":
            default = "required" if info.is_required() else str(info.get_default(call_default_factory=True))
            rows.append((prefix + name, default, info.description or ""))
    return rows


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, with the settings of every task, method and objective that is embedded.

    In an open section `name` decides which settings there are: a name that `glmtune ls` shows has its own, and a path
    to the user's own .py file may have any.
    """
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    for section, package in OPEN_SECTIONS.items():
        default = Recipe.model_fields[section].default.name
        cases = []
        for name in registry.names(package):
            settings = registry.find(package, name).Settings.model_json_schema()
            definitions |= settings.pop("$defs", {})
            definitions[f"{section}.{name}"] = settings
            chosen: dict[str, Any] = {"properties": {"name": {"const": name}}}
            if name != default:
                chosen["required"] = ["name"]
            cases.append({"if": chosen, "then": {"$ref": f"#/$defs/{section}.{name}"}})
        names = {"anyOf": [{"enum": registry.names(package)}, {"type": "string", "pattern": r"\.py$"}]}
        description = NamedSettings.model_fields["name"].description
        definitions[section] = {
            "properties": {"name": {**names, "default": default, "description": description}},
            "allOf": cases,
        }
        schema["properties"][section] = {"$ref": f"#/$defs/{section}"}
    definitions.pop("NamedSettings")
    for definition in definitions.values():
        if definition.get("type", "object") == "object":
            definition["type"] = ["object", "null"]  # all settings of a section may be commented out
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A recipe of glmtune"}

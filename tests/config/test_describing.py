from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtune import registry
from glmtune.config import (
    OPEN_SECTIONS,
    NamedSettings,
    Recipe,
    Settings,
    describe_settings,
    load_recipe,
    open_sections,
    recipe_schema,
    to_yaml,
)

RECIPES = Path(__file__).parents[2] / "recipes"


def settings_groups(group: type[Settings]) -> list[type[Settings]]:
    inner = [info.annotation for info in group.model_fields.values() if isinstance(info.annotation, type)]
    return [group, *(found for one in inner if issubclass(one, Settings) for found in settings_groups(one))]


@pytest.mark.parametrize("package", list(OPEN_SECTIONS.values()))
def test_every_setting_says_what_it_means(package: str) -> None:
    groups = settings_groups(Recipe) + [registry.find(package, name).Settings for name in registry.names(package)]
    for group in groups:
        assert group.__doc__ and (issubclass(group, NamedSettings) or group.model_config["extra"] == "forbid")
    for name, default, meaning in (row for group in groups for row in describe_settings(group)):
        assert meaning and (default or name.endswith("name")), name


def test_described_settings_are_those_of_the_recipe() -> None:
    recipe, _, _ = open_sections({})
    rows = {name: default for name, default, _ in describe_settings(recipe)}
    assert rows["training.batch_size"] == str(load_recipe().training.batch_size)
    assert rows["task.maximum"] == "100" and rows["method.rank"] == "16" and "format" not in rows
    dumped = yaml.safe_load(to_yaml(load_recipe()))
    flat = {f"{section}.{key}" for section, group in dumped.items() if isinstance(group, dict) for key in group}
    assert set(rows) == flat | {"seed"}


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    return jsonschema.Draft202012Validator(recipe_schema())


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_schema_takes_every_shipped_recipe(validator: Any, file: Path) -> None:
    assert [error.message for error in validator.iter_errors(yaml.safe_load(file.read_text("utf-8")))] == []


@pytest.mark.parametrize(
    "overrides", [[], ["method.name=ptuning_v2"], ["task.name=instructions", "task.file=x.jsonl", "method.name=full"]]
)
def test_the_schema_takes_the_recipe_of_a_run(validator: Any, overrides: list[str]) -> None:
    whole = yaml.safe_load(to_yaml(load_recipe(None, overrides)))
    assert [error.message for error in validator.iter_errors(whole)] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": {"operatrs": "+"}}, "'operatrs' was unexpected"),
        ({"task": {"name": "instructions", "file": "x.jsonl", "operators": "+"}}, "'operators' was unexpected"),
        ({"task": {"name": "instructions"}}, "'file' is a required property"),
        ({"method": {"rank": 0}}, "less than the minimum"),
        ({"method": {"name": "lorra"}}, "'lorra' is not valid"),
        ({"trainig": {}}, "'trainig' was unexpected"),
        ({"training": {"steps": "many"}}, "'many' is not valid"),
    ],
)
def test_the_schema_tells_faults_where_they_are(validator: Any, values: Any, message: str) -> None:
    [error] = validator.iter_errors(values)
    assert message in error.message


def test_the_schema_leaves_the_users_own_files_free(validator: Any) -> None:
    assert validator.is_valid({"task": {"name": "mine.py", "anything": 1}, "method": None})


def test_every_setting_of_the_schema_says_what_it_means() -> None:
    for name, definition in recipe_schema()["$defs"].items():
        for setting, value in definition["properties"].items():
            assert value.get("description"), f"{name}.{setting}"

from __future__ import annotations

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
    to_yaml,
)


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

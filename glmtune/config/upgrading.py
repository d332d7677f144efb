"""Runs of older formats, brought to the present one: the one place that knows how anything was called before."""

from __future__ import annotations

from typing import Any

# What settings of `format: 1` are called now.
RENAMED = {"data.learn_start": "data.train_on_bos"}
# What values of `format: 1` are written as now, by the present name of their setting.
RENAMED_VALUES: dict[str, dict[Any, Any]] = {"data.too_long": {"cut": "truncate"}}
# What figures in reports and logs of `format: 1` are called now.
RENAMED_FIGURES = {"exact_match": "accuracy", "exact_match_ci95": "accuracy_ci95"}


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Return the nested values of a recipe in the present format; those of `format: 1` are renamed, in place."""
    if values.get("format") != 1:
        return values
    for old, new in RENAMED.items():
        section, setting = old.split(".")
        if setting in (values.get(section) or {}):
            new_section, new_setting = new.split(".")
            values.setdefault(new_section, {})[new_setting] = values[section].pop(setting)
    for name, renamed in RENAMED_VALUES.items():
        section, setting = name.split(".")
        value = (values.get(section) or {}).get(setting)
        if isinstance(value, str) and value in renamed:
            values[section][setting] = renamed[value]
    return {**values, "format": 2}


def upgrade_figures(values: Any) -> Any:
    """Return the figures of a report, or of a record of a log, under their present names."""
    if isinstance(values, list):
        return [upgrade_figures(value) for value in values]
    if isinstance(values, dict):
        return {RENAMED_FIGURES.get(name, name): upgrade_figures(value) for name, value in values.items()}
    return values

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glmtune.config import RecipeError, load_recipe, read_log, read_report
from glmtune.config.upgrading import RENAMED, RENAMED_VALUES, upgrade
from glmtune.runtime import RunFolder


def test_a_recipe_of_format_1(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("format: 1\nseed: 7\ndata: {learn_start: true, too_long: cut, max_length: 64}\nmethod: {rank: 4}\n")
    recipe = load_recipe(path, ["data.max_length=32"])
    assert recipe.format == 2 and recipe.seed == 7 and recipe.objective.name == "sft" and recipe.method.rank == 4
    assert recipe.data.train_on_bos and recipe.data.too_long == "truncate" and recipe.data.max_length == 32


def test_values_of_every_shape_pass() -> None:
    assert upgrade({"format": 1, "data": None}) == {"format": 2, "data": None}
    assert upgrade({"format": 1, "data": {"too_long": ["cut"]}})["data"] == {"too_long": ["cut"]}
    assert upgrade({"data": {"too_long": "cut"}}) == {"data": {"too_long": "cut"}}  # nothing says that it is old


def test_an_old_name_in_a_new_recipe_is_told() -> None:
    with pytest.raises(RecipeError, match=r"data\.learn_start: is called data\.train_on_bos now\."):
        load_recipe(None, ["data.learn_start=true"])


def test_the_table_leads_to_settings_that_there_are() -> None:
    rows = {**dict.fromkeys(RENAMED.values()), **RENAMED_VALUES}
    recipe = load_recipe()
    for name in rows:
        section, setting = name.split(".")
        assert setting in type(getattr(recipe, section)).model_fields


def test_reports_and_logs_of_format_1(tmp_path: Path) -> None:
    """Figures have their present names wherever they stand; what users wrote stays."""
    share = {"n": 2, "exact_match": 0.5, "exact_match_ci95": [0.1, 0.9]}
    run = RunFolder(tmp_path)
    old = {"format": 1, "before": None, "after": {**share, "by": {"topic": {"exact_match": share}}}, "samples": ["a"]}
    run.report.write_text(json.dumps(old), encoding="utf-8")
    run.log.write_text(json.dumps({"step": 3, **share}) + "\n", encoding="utf-8")
    now = {"n": 2, "accuracy": 0.5, "accuracy_ci95": [0.1, 0.9]}
    report = read_report(run)
    assert {name: report["after"][name] for name in now} == now and report["samples"] == ["a"]
    assert read_log(run) == [{"step": 3, **now}]
    run.report.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="not a JSON object"):
        read_report(run)

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmtune.commands import estimate, ls
from glmtune.config import Recipe, RecipeError, load_recipe
from glmtune.runtime import UserError, read_json_lines
from glmtune.training.optimizers import TABLE, Optimizer, check_installed


def test_a_row_is_all_that_an_optimizer_needs(
    monkeypatch: pytest.MonkeyPatch, train_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """Settings, list, estimate and training know it."""
    monkeypatch.setitem(TABLE, "adafactor", Optimizer("Adafactor", bytes_per_parameter=0.5, optim="adafactor"))
    assert load_recipe(None, ["training.optimizer=adafactor"]).training.optimizer == "adafactor"
    assert ls.run()["optimizers"]["adafactor"] == "Adafactor"
    usual, small = (estimate.run(None, [f"training.optimizer={name}"]).estimate for name in ("adamw", "adafactor"))
    assert usual.optimizer == 16 * small.optimizer > 0
    run = train_tiny(tmp_path / "run", "training.optimizer=adafactor")
    assert any("loss" in record for _, record in read_json_lines(run.folder.log))


def test_a_name_that_is_no_row() -> None:
    with pytest.raises(
        RecipeError, match=r"training\.optimizer: no such name\. Did you mean 'adamw'\? Known: adamw, muon"
    ):
        load_recipe(None, ["training.optimizer=adam"])


def test_the_schema_lists_the_rows() -> None:
    schema = Recipe.model_json_schema()["$defs"]["TrainingSettings"]["properties"]["optimizer"]
    assert schema["enum"] == list(TABLE) and schema["default"] == "adamw"


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    for name, row in TABLE.items():
        if row.requires is None:
            check_installed(name)
            continue
        with pytest.raises(UserError, match=rf"{name} needs bitsandbytes, .*pip install 'glmtune\[quantization\]'"):
            check_installed(name)

"""The record of what a run was made by, as it may come from anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.config import load_recipe
from glmtune.runtime import RunFolder, UserError
from glmtune.training.resumption import Past, check_going_on, read_record

CHANGE = {"step": 3, "setting": "training.steps", "before": 4, "after": 8}
WHOLE: dict[str, Any] = {"recipe": {}, "base": None, "records": None, "changes": [CHANGE]}


def write(folder: Path, values: Any) -> Path:
    (file := folder / "run.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return file


def test_a_record(tmp_path: Path) -> None:
    past = read_record(write(tmp_path, WHOLE))
    assert past is not None and [change.step for change in past.changes] == [3] and past.step == 0
    assert read_record(tmp_path / "nothing") is None


RECIPES: list[Any] = [[], "text", None, {"training": {"steps": "x"}}]
CHANGES: list[Any] = [3, [[]], [{}], [CHANGE | {"step": "x"}]]
RECORDS: list[Any] = [
    *("", "{", "[" * 100_000, [], {}),
    *(WHOLE | {"recipe": recipe} for recipe in RECIPES),
    *(WHOLE | {"changes": changes} for changes in CHANGES),
]


@pytest.mark.parametrize("values", RECORDS, ids=lambda values: str(values)[:60])
def test_one_that_is_none_is_told(tmp_path: Path, values: Any) -> None:
    file = write(tmp_path, values)
    with pytest.raises(UserError, match=r"run\.json is damaged: .*Delete it, and recipe\.yaml counts") as error:
        read_record(file)
    assert str(error.value).startswith(str(file))


def test_a_base_of_few_bits_stays_stored_as_it_is(tmp_path: Path) -> None:
    """On GPUs, divided weights are packed by another library than whole ones."""
    for bits, refused in ((16, False), (4, True)):
        past, now = (
            Past(load_recipe(None, [f"model.bits={bits}", "training.steps=9", f"training.sharding={how}"]), step=3)
            for how in ("full", "none")
        )
        if refused:
            with pytest.raises(UserError, match=r"training\.sharding=none \(full so far\) would store the base"):
                check_going_on(past, now, RunFolder(tmp_path))
        else:
            [change] = check_going_on(past, now, RunFolder(tmp_path))
            assert change.setting == "training.sharding"

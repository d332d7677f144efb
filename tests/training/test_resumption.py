"""The record of what a run was made by, as it may come from anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.runtime import UserError
from glmtune.training.resumption import read_record

CHANGE = {"step": 3, "setting": "training.steps", "before": 4, "after": 8}
WHOLE = {"recipe": {}, "base": None, "records": None, "changes": [CHANGE]}


def write(folder: Path, values: Any) -> Path:
    (file := folder / "run.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return file


def test_a_record(tmp_path: Path) -> None:
    past = read_record(write(tmp_path, WHOLE))
    assert past is not None and [change.step for change in past.changes] == [3] and past.step == 0
    assert read_record(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "values",
    [
        *("", "{", "[" * 100_000, [], {}),
        *(WHOLE | {"recipe": recipe} for recipe in ([], "text", None, {"training": {"steps": "x"}})),
        *(WHOLE | {"changes": changes} for changes in (3, [[]], [{}], [CHANGE | {"step": "x"}])),
    ],
    ids=lambda values: str(values)[:60],
)
def test_one_that_is_none_is_told(tmp_path: Path, values: Any) -> None:
    file = write(tmp_path, values)
    with pytest.raises(UserError, match=r"run\.json is damaged: .*Delete it, and recipe\.yaml counts") as error:
        read_record(file)
    assert str(error.value).startswith(str(file))

"""`glmtune schema`: printed, or written where an editor finds it."""

import json
from pathlib import Path

import pytest

from glmtune.cli import main
from glmtune.config import recipe_schema


def test_it_is_printed_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["schema"], ["schema", "--output", "recipe.json"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        out = capsys.readouterr().out
        text = out if len(arguments) == 1 else Path("recipe.json").read_text("utf-8")
        assert json.loads(text) == recipe_schema()
    assert "# yaml-language-server: $schema=recipe.json" in out

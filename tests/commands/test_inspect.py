"""`glmtune inspect`: from a file to a report by one command, and everything planted is found."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glmtune.cli import main
from glmtune.commands.inspect import print_report, run
from glmtune.config import RecipeError
from glmtune.runtime import UserError

GOOD = [{"prompt": f"第 {i} 个问题是什么？", "target": f"第 {i} 个答案。"} for i in range(40)]


def glmtune(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_model_template_and_columns(write_records: Any, tmp_path: Path, tiny_checkpoint: Path) -> None:
    file = str(write_records(*[{"问": "q", "答": "a"}], name="a.jsonl"))
    overrides = ["data.columns.prompt=问", "data.columns.target=答"]
    report = run([file], model=str(tiny_checkpoint), overrides=overrides)
    assert (report["format"], report["model"], report["tokens"]["limit"]) == ("columns", str(tiny_checkpoint), 128)
    alpaca = run([file], overrides=[*overrides, "data.template=alpaca"])
    assert alpaca["tokens"]["prompt"]["max"] > report["tokens"]["prompt"]["max"] + 20
    with pytest.raises(UserError, match="no run, adapter, checkpoint or recipe at nowhere"):
        run([file], model="nowhere/at/all")
    with pytest.raises(RecipeError, match=r"data\.columns: no such name: 'promt'\. Did you mean 'prompt'"):
        run([file], overrides=["data.columns.promt=问"])
    with pytest.raises(RecipeError, match=r"data\.encoding: no such encoding"):
        run([file], overrides=["data.encoding=utf-99"])
    with pytest.raises(UserError, match="Name a file"):
        run([])
    with pytest.raises(UserError, match=r"task\.name=arithmetic: files are inspected"):
        run([file], overrides=["task={name: arithmetic}"])


def test_terminal(write_records: Any, tmp_path: Path) -> None:
    bad = [{"prompt": "q[red]", "taget": "\x1b[31m"}] * 25
    report = run([str(write_records(*[{"prompt": "a", "target": "\x1b[31mb\nc"}, *GOOD, *bad], name="a.jsonl"))])
    file = io.StringIO()
    print_report(report, Console(file=file, width=100, force_terminal=True, color_system="standard"))
    shown = file.getvalue()
    assert "... and 5 more" in shown and "Did you mean 'taget'?" in shown and "↵" in shown
    assert "\x1b[31m" not in shown and "\x1b[30;42m" in shown  # black on green


def test_command_line(
    write_records: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_records(*GOOD, name="good.jsonl")
    write_records(*GOOD, {"prompt": "q"}, name="bad=1.jsonl")
    assert glmtune("inspect", "good.jsonl") == 0
    out, err = capsys.readouterr()
    assert "prompt_target (40)" in out and err == ""
    arguments = ("--output", "report.json", "--html", "page.html", "bad=1.jsonl", "data.max_length=64")
    assert glmtune("inspect", *arguments) == 2
    out, err = capsys.readouterr()
    assert "Written: report.json" in out and "bad=1.jsonl, line 41: 'target' is missing" in out and err == ""
    report = json.loads(Path("report.json").read_text("utf-8"))
    assert report["faults"] == [{"file": "bad=1.jsonl", "line": 41, "field": "target", **report["faults"][0]}]
    assert Path("page.html").is_file()
    assert glmtune("inspect", "goo.jsonl") == 2
    assert "goo.jsonl: no such file. Did you mean 'good.jsonl'?" in capsys.readouterr().err
    assert glmtune("inspect") == 2 and "Name a file" in capsys.readouterr().err
    assert glmtune("inspect", "good.jsonl", "data.lenght=5") == 2
    assert "Did you mean 'max_length'" in capsys.readouterr().err
    assert glmtune("data", "inspect", "good.jsonl") == 2
    assert "glmtune inspect good.jsonl" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*is learned")
def test_folders_of_splits(tmp_path: Path) -> None:
    """As a training would read them: what one split asks is no part of what is learned, and a leak is told."""
    for name, prompts in (("train", ["a", "b"]), ("test", ["b", "c"])):
        lines = [json.dumps({"prompt": prompt, "target": f"answer {prompt}"}) for prompt in prompts]
        (tmp_path / f"{name}-00000-of-00001.jsonl").write_text("\n".join(lines))
    (tmp_path / "dataset_infos.json").write_text("{}")
    report = run([str(tmp_path)])
    assert (report["records"], report["splits"], report["leaks"]) == (2, {"train": 2, "held_out": 2}, 1)
    report = run([f"{tmp_path}:test"])
    assert report["records"] == 2 and report["faults"] == []

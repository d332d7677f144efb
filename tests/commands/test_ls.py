"""`ls`: the names that recipes can use, and the runs there are."""

import json
from pathlib import Path

import pytest

from glmtune.commands import ls
from glmtune.execution import Run


@pytest.fixture
def runs(tmp_path: Path, tiny_run: Run) -> Path:
    """A finished run, one of an older format, one that was stopped, one with a damaged report, and something else."""
    folder = tmp_path / "runs"
    for name in ("finished", "older", "stopped", "damaged", "empty-report"):
        (folder / name).mkdir(parents=True)
        (folder / name / "recipe.yaml").write_bytes(tiny_run.folder.recipe.read_bytes())
    report = {"before": {"accuracy": 0.015}, "after": {"accuracy": 0.75}}
    (folder / "finished/report.json").write_text(json.dumps(report))
    older = {"format": 1, **{name: {"exact_match": share["accuracy"]} for name, share in report.items()}}
    (folder / "older/report.json").write_text(json.dumps(older))
    (folder / "damaged/report.json").write_text('{"before": ')
    (folder / "empty-report/report.json").write_text("{}")
    (folder / "notes").mkdir()
    return folder


def test_names(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text("# Five digits, ten thousand steps.\ntraining: {steps: 10000}\n")
    (tmp_path / "bare.yaml").write_text("training: {steps: 10000}\n")
    found = ls.run(str(tmp_path / "none"), str(tmp_path))
    assert {"arithmetic", "instructions"} <= found["tasks"].keys()
    assert {"lora", "full"} <= found["methods"].keys()
    assert list(found["models"]) == ["nano"]
    assert found["recipes"] == {
        str(tmp_path / "bare.yaml"): "",
        str(tmp_path / "long.yaml"): "Five digits, ten thousand steps.",
    }
    assert found["runs"] == {}
    assert all(text and "\n" not in text for section in ("tasks", "methods") for text in found[section].values())


def test_runs(runs: Path) -> None:
    found = {Path(path).name: text for path, text in ls.run(str(runs))["runs"].items()}
    assert found.keys() == {"finished", "older", "stopped", "damaged", "empty-report"}
    assert found["finished"] == found["older"] == "held-out accuracy 1.5% -> 75.0%"
    assert found["stopped"] == f"not finished; go on with glmtune train --resume {runs / 'stopped'}"
    assert "is damaged" in found["damaged"] and "is damaged" in found["empty-report"]


@pytest.mark.parametrize("figure", ["1" + "0" * 400, '"x"', "null", "[" * 100_000])
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_figures_that_are_none(tmp_path: Path, metric: str, figure: str) -> None:
    run = tmp_path / "own"
    run.mkdir()
    (run / "recipe.yaml").write_text("task: {}\n")
    part = f'{{"{metric}": {figure}}}'
    (run / "report.json").write_text(f'{{"metric": "{metric}", "before": {part}, "after": {part}}}')
    assert "is damaged" in ls.run(str(tmp_path))["runs"][str(run)]

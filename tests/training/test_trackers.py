from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from glmtune.config import RecipeError, load_recipe
from glmtune.runtime import UserError
from glmtune.training import trackers


class Recorder(TrainerCallback):
    """Stands for a tracker: notes what it is told, and by which variables."""

    logs: list[dict[str, Any]] = []
    environment: dict[str, str] = {}

    def __init__(self) -> None:
        Recorder.logs, Recorder.environment = [], dict(os.environ)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        Recorder.logs.append({"step": state.global_step, **logs})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb and trackio are there, and are recorders."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Recorder)
    names = lambda: ["wandb"]  # noqa: E731
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", names)
    for row in trackers.TABLE.values():
        for variable in row.environment:
            monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("fake")
def test_a_tracker_is_told_all_and_stays_at_home(train_tiny: Callable[..., Any], tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", "training.trackers=[wandb]")
    assert [log["step"] for log in Recorder.logs if "loss" in log] == [1, 2, 3, 4]
    assert any("eval_accuracy" in log for log in Recorder.logs)
    assert all(isinstance(value, int | float) for log in Recorder.logs for value in log.values())
    assert Recorder.environment["WANDB_MODE"] == "offline"
    assert Recorder.environment["WANDB_DIR"] == str(tmp_path / "run")
    assert not {"WANDB_MODE", "WANDB_DIR"} & os.environ.keys()


@pytest.mark.usefixtures("fake")
def test_who_asks_for_the_network_gets_it(
    train_tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    train_tiny(tmp_path / "run", "training.trackers=[wandb]")
    assert Recorder.environment["WANDB_MODE"] == os.environ["WANDB_MODE"] == "online"


@pytest.mark.usefixtures("fake")
def test_what_is_not_installed_is_told_before_anything_is_trained(
    train_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"training\.trackers: swanlab not installed: pip install swanlab\."):
        train_tiny(tmp_path / "run", "training.trackers=[wandb, swanlab]")
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_no_row() -> None:
    assert load_recipe().training.trackers == []
    with pytest.raises(RecipeError, match=r"training\.trackers\.0: no such name\. Did you mean 'tensorboard'\?"):
        load_recipe(None, ["training.trackers=[tensorbord]"])


def test_tensorboard(train_tiny: Callable[..., Any], tmp_path: Path) -> None:
    writer = pytest.importorskip("tensorboardX")
    assert writer
    run = train_tiny(tmp_path / "run", "training.trackers=[tensorboard]")
    (events,) = (run.folder.path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes() and b"eval/accuracy" in events.read_bytes()
    assert not list(run.folder.checkpoints.glob("runs"))

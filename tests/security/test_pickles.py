"""Checkpoints of a stranger's run: pickles with code are never run, and what is damaged is told in a line."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune import cli
from glmtune.commands import doctor
from glmtune.execution import Run
from glmtune.runtime import RunFolder
from glmtune.training.checkpoints import SUMS, last_checkpoint

Refused = Callable[..., str]


class Evil:
    """What runs a command wherever it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def checkpoint(tiny_run: Run, tmp_path: Path) -> Path:
    """The last checkpoint of a run that was stopped before its end; whoever means harm leaves no checksums."""
    folder = RunFolder(shutil.copytree(tiny_run.folder.path, tmp_path / "run"))
    last = last_checkpoint(folder.checkpoints)
    assert last is not None
    shutil.rmtree(last)
    shutil.rmtree(folder.adapter)
    folder.report.unlink()
    found = last_checkpoint(folder.checkpoints)
    assert found is not None
    (found / SUMS).unlink()
    return found


@pytest.fixture
def is_refused(checkpoint: Path, refused: Refused) -> Callable[..., None]:
    """`is_refused("optimizer.pt", "carries code")`: going on is refused by naming the file, by train and by doctor."""

    def check(*told: str, by_doctor: bool = True) -> None:
        run = checkpoint.parents[1]
        before = sorted(run.rglob("*"))
        message = refused("train", "--resume", run)
        assert all(text in message for text in told) and message.rstrip().endswith("."), message
        assert sorted(run.rglob("*")) == before
        if by_doctor:
            failures = [one for one in doctor.run(str(run)) if one.status == "failure"]
            [found] = [one for one in failures if one.name == "checkpoints"]
            assert told[0] in found.finding and found.remedy

    return check


NAMES = [
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "scaler.pt",
    "training_args.bin",
    "optimizer.bin",
    "more.ckpt",
]


@pytest.mark.parametrize("name", NAMES)
def test_code_is_told_and_never_run(checkpoint: Path, marker: Path, is_refused: Any, name: str) -> None:
    torch.save({"state": Evil(marker)}, checkpoint / name)
    is_refused(f"{checkpoint / name} carries code besides weights (posix.system)", "Do not load it anywhere")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "more.pkl"])
def test_pickles_that_are_no_zip(checkpoint: Path, marker: Path, refused: Refused, name: str, protocol: int) -> None:
    (checkpoint / name).write_bytes(pickle.dumps(Evil(marker), protocol))
    assert str(checkpoint / name) in refused("train", "--resume", checkpoint.parents[1])


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainable.safetensors"])
@pytest.mark.parametrize("size", [0, 7, 500])
def test_what_was_cut_off(checkpoint: Path, is_refused: Any, name: str, size: int) -> None:
    cut(checkpoint / name, size)
    is_refused(str(checkpoint / name), "damaged")


def test_weights_that_are_missing(checkpoint: Path, is_refused: Any) -> None:
    (checkpoint / "trainable.safetensors").unlink()
    is_refused("trainable.safetensors is missing")


STATES: list[dict[str, Any]] = [
    {"global_step": "2"},
    {"global_step": -1},
    {"global_step": True},
    {"global_step": 1e99},
    {"global_step": 10**30, "best_global_step": 10**30},
    {"best_global_step": "../../outside"},
    {"best_global_step": 10**9, "best_model_checkpoint": "/etc"},
    {"best_metric": "x"},
    {"best_model_checkpoint": ["/etc"]},
    {"log_history": 3},
    {"log_history": [3]},
    {"save_steps": 0},
    {"eval_steps": 0.5},
    {"train_batch_size": "4"},
    {"stateful_callbacks": []},
    {"stateful_callbacks": {"TrainerControl": 3}},
    {"stateful_callbacks": {"EarlyStoppingCallback": []}},
    *(
        {
            "stateful_callbacks": {
                "EarlyStoppingCallback": {"args": {}, "attributes": {"early_stopping_patience_counter": count}}
            }
        }
        for count in ("x", [1], math.inf)
    ),
    {"unheard_of": 1},
]


@pytest.mark.parametrize("values", STATES, ids=str)
def test_states_of_the_wrong_kind(checkpoint: Path, is_refused: Any, values: dict[str, Any]) -> None:
    file = checkpoint / "trainer_state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    is_refused(f"{file} is damaged", "Delete this checkpoint")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a": 1e'], ids=len
)
def test_states_that_are_none(checkpoint: Path, is_refused: Any, content: bytes) -> None:
    (checkpoint / "trainer_state.json").write_bytes(content)
    is_refused("trainer_state.json is damaged", "Delete this checkpoint")


@pytest.mark.parametrize(
    "callbacks",
    [
        {"TrainerControl": {"args": {}, "attributes": {}}},
        {"TrainerControl": {"args": {"should_save": True}, "attributes": {"_new_step": 3}}},
        {"TrainerControl": [{"args": {}, "attributes": {}}]},
    ],
    ids=str,
)
def test_callbacks_that_were_not_saved_so(checkpoint: Path, is_refused: Any, callbacks: Any) -> None:
    """They would set any attribute of an object of the loop."""
    file = checkpoint / "trainer_state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stateful_callbacks": callbacks}))
    is_refused("TrainerControl", "is damaged", by_doctor=False)


def with_state(saved: dict[str, Any]) -> dict[str, Any]:
    """Moments of another shape."""
    other = copy.deepcopy(saved)
    other["state"][0]["exp_avg"] = other["state"][0]["exp_avg"][:1]
    return other


def with_rate(saved: dict[str, Any]) -> dict[str, Any]:
    """A rate that is no number."""
    other = copy.deepcopy(saved)
    other["param_groups"][0]["lr"] = "high"
    return other


DAMAGED: dict[str, tuple[str, Callable[[dict[str, Any]], Any], bool]] = {
    "a list": ("optimizer.pt", lambda saved: [saved], True),
    "nothing": ("optimizer.pt", lambda saved: {}, True),
    "moments": ("optimizer.pt", with_state, False),
    "rate": ("optimizer.pt", with_rate, False),
    "more weights": ("optimizer.pt", lambda saved: {**saved, "state": {999: {}}}, False),
    "no state": ("optimizer.pt", lambda saved: {**saved, "state": 3}, False),
    "attribute": ("scheduler.pt", lambda saved: {**saved, "step": 3}, False),
    "step": ("scheduler.pt", lambda saved: {**saved, "last_epoch": "x"}, False),
    "no numbers": ("rng_state.pth", lambda saved: {}, True),
    "wrong numbers": ("rng_state.pth", lambda saved: {**saved, "python": (1, 2)}, False),
    "bytes": ("rng_state.pth", lambda saved: {**saved, "cpu": torch.zeros(3)}, False),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_not_of_this_run(checkpoint: Path, refused: Refused, case: str) -> None:
    name, change, by_doctor = DAMAGED[case]
    saved: dict[str, Any] = {}
    if name != "rng_state.pth":
        saved = torch.load(checkpoint / name, weights_only=True)
    else:
        saved = {"python": (3, (0,) * 625, None), "numpy": ("MT19937", [0] * 624, 0, 0, 0.0), "cpu": torch.zeros(8)}
    torch.save(change(saved), checkpoint / name)
    message = refused("train", "--resume", checkpoint.parents[1])
    assert "Delete this checkpoint" in message and str(checkpoint) in message
    failures = [one.name for one in doctor.run(str(checkpoint.parents[1])) if one.status == "failure"]
    assert ("checkpoints" in failures) == by_doctor


def test_the_best_weights_are_of_this_folder(checkpoint: Path, outside: Path, refused: Refused) -> None:
    """Wherever the state says that they are: a run that was moved, or one that names somebody's folder."""
    file = checkpoint / "trainer_state.json"
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    values = {"best_model_checkpoint": str(outside), "best_global_step": step, "best_metric": 9.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    run = checkpoint.parents[1]
    with pytest.raises(SystemExit) as done:
        cli.main(["train", "--resume", str(run)])
    assert done.value.code == 0 and (run / "report.json").is_file() and checkpoint.is_dir()
    state = json.loads((run / "checkpoints" / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(checkpoint)


def test_folders_that_are_no_checkpoints(checkpoint: Path) -> None:
    for name in ("checkpoint-x", "checkpoint-", "checkpoint--1"):
        shutil.copytree(checkpoint, checkpoint.with_name(name))
    assert last_checkpoint(checkpoint.parent) == checkpoint


def test_a_log_of_anything(checkpoint: Path) -> None:

    log = checkpoint.parents[1] / "log.jsonl"
    log.write_bytes(
        log.read_bytes() + b'[1]\n3\n{"step": "x", "seconds": 1}\n{"step": 1}\n\xff\xfe\n' + b"[" * 50_000 + b"\n"
    )
    with pytest.raises(SystemExit) as done:
        cli.main(["train", "--resume", str(log.parent)])
    assert done.value.code == 0
    assert all(isinstance(json.loads(line)["step"], int) for line in log.read_text().splitlines())

"""`glmtune train` as several processes, however they are started: real ones, each of which takes seconds to begin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

GLMTUNE = [sys.executable, "-m", "glmtune"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "glmtune"]
# `--cpu` would leave the start to mpirun.
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment() -> dict[str, str]:
    """One thread for each process, and this package on the path."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "dumb"}


@pytest.fixture
def command(tiny_settings: list[str], tmp_path: Path) -> list[str]:
    """The verb with its settings, behind whatever starts it."""
    return ["train", *tiny_settings, f"training.output_dir={tmp_path / 'run'}"]


def run(command: list[str], environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=240)


def check_trained(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    """See that two processes have made one run, and told of it once."""
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert "2 processes (gloo, DDP), each with the whole model and up to 2 of a step's 4 examples at a time." in told
    for once in ("2 processes (gloo, DDP)", "Run folder: ", "Before: ", "Next:"):
        assert told.count(once) == 1 + (once == "Run folder: "), told  # which is told before and after
    report = json.loads((folder / "report.json").read_text())
    assert report["after"]["n"] == 6 and (folder / "adapter/adapter_model.safetensors").is_file()
    assert len((folder / "log.jsonl").read_text().splitlines()) > 4


def test_glmtune_starts_processes(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    done = run([*GLMTUNE, *command, "training.devices=2"], environment, tmp_path)
    check_trained(done, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "accelerate"])
def test_others_start_processes(how: str, command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    launcher = TORCHRUN if how == "torchrun" else [*ACCELERATE, "-m", "glmtune"]
    check_trained(run([*launcher, *command], environment, tmp_path), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[*GLMTUNE], [*TORCHRUN]])
def test_a_fault_is_told_once(
    launcher: list[str], command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("mine")
    done = run([*launcher, *command, "training.devices=2"], environment, tmp_path)
    assert done.returncode != 0 and done.stderr.count("is not empty. Choose another folder") == 1, done.stderr
    if launcher == GLMTUNE:
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


@pytest.fixture
def begun(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> Callable[[], tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Start a long run of two processes, and wait until it has a checkpoint."""

    def begin() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        more = ["training.devices=2", "training.steps=100000", "training.eval_steps=20"]
        started: Any = subprocess.Popen(
            [*GLMTUNE, *command, *more], env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        end = time.monotonic() + 120
        while not any((tmp_path / "run").glob("checkpoints/checkpoint-*/trainer_state.json")):
            assert started.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        return started, psutil.Process(started.pid).children()

    return begin


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_all_with_a_checkpoint(
    begun: Callable[..., Any], number: int, code: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    started, workers = begun()
    started.send_signal(number)
    _, told = started.communicate(timeout=60)
    assert started.returncode == code and told.count("Go on with: glmtune train --resume") == 1, told
    assert not any(worker.is_running() for worker in workers)
    states = [json.loads(path.read_text()) for path in tmp_path.glob("run/checkpoints/*/trainer_state.json")]
    last = max(state["global_step"] for state in states)
    more = [f"training.steps={last + 2}", "training.devices=1"]
    done = run([*GLMTUNE, "train", "--resume", str(tmp_path / "run"), *more], environment, tmp_path)
    assert done.returncode == 0 and f"goes on after step {last:,} of {last + 2:,}" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all(begun: Callable[..., Any]) -> None:
    started, workers = begun()
    start = time.monotonic()
    workers[1].kill()
    _, told = started.communicate(timeout=60)
    assert time.monotonic() - start < 45 and not any(worker.is_running() for worker in workers)
    assert started.returncode == 2, told
    assert "was ended by SIGKILL, and the others with it" in told and "Traceback" not in told, told

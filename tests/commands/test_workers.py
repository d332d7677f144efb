"""`glmtune train --ray`: workers learn what as many processes learn, whoever dies on the way."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import Failure, in_processes
from rich.console import Console
from safetensors.torch import load_file

from glmtune import cluster
from glmtune.cli import parse
from glmtune.cluster import Cluster
from glmtune.commands import _workers, train
from glmtune.commands._workers import Channel, Said, place_of, start_workers, why
from glmtune.config import load_recipe
from glmtune.runtime import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], r"--workers 2: is said of a Ray cluster\. Add --ray"),
        (["--ray-address", "a:1"], r"--ray-address a:1: is said of a Ray cluster"),
        (["--ray", "--workers", "0"], r"--workers 0: at least 1"),
        (["--ray", "--ray-address", "head"], r"is no HOST:PORT"),
        (["--ray", "model.path=nowhere/at-all/x"], r"no such model directory: nowhere/at-all/x"),
        (["--ray", "training.steps=-1"], r"training\.steps"),
    ],
)
def test_what_is_told_before_ray_starts(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    monkeypatch.setattr(Cluster, "join", lambda self: pytest.fail("Ray is started"))
    with pytest.raises(UserError, match=message):
        train.main(parse(["train", *words]))


def test_one_of_several_processes_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=r"--ray: Ray starts the workers, and a launcher has started this process"):
        train.main(parse(["train", "--ray"]))


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Ray is not installed\. pip install 'glmtune\[ray\]'"):
        train.main(parse(["train", "--ray"]))


def test_a_run_folder_that_every_worker_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, folder = place_of(load_recipe(None, []))
    assert folder == Path("runs/arithmetic-lora-1") and folder.is_dir()
    assert recipe.training.output_dir == str(tmp_path / folder)
    recipe, folder = place_of(load_recipe(None, ["training.output_dir=mine"]))
    assert recipe.training.output_dir == str(tmp_path / "mine") and not folder.exists()


def test_what_is_said_comes_in_order() -> None:
    said = Said()

    class Remote:
        """An actor's handle, without Ray."""

        class add:
            remote = said.add

    print("a\rb", file=Channel(Remote, "stderr"))
    print("c", file=Channel(Remote, "stdout"))
    assert said.take() == [("stderr", "a\rb"), ("stderr", "\n"), ("stdout", "c"), ("stdout", "\n")]
    assert said.take() == []


def test_why_it_failed_for_good() -> None:
    errors = pytest.importorskip("ray.train")
    told = why(errors.WorkerGroupError("all", {1: RuntimeError("first\nlast"), 3: ValueError()}))
    assert told == "a worker died or failed, and so did those in its place, 3 times: worker 1: last."
    assert why(errors.ControllerError(OSError("no room"))) == "no room"


# With Ray


@pytest.fixture(scope="module")
def settings(tiny_settings: list[str]) -> list[str]:
    return [*tiny_settings, "model.dtype=float32", "training.steps=300", "training.eval_steps=30"]


@pytest.fixture(scope="module")
def by_processes(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nobody stopped."""
    folder = tmp_path_factory.mktemp("processes") / "run"

    def work(rank: int) -> Any:
        return train.run(None, [*settings, f"training.output_dir={folder}"], console=Console(file=io.StringIO())).report

    found = in_processes(work)
    assert not any(isinstance(one, Failure) for one in found), found
    return folder


@pytest.fixture(scope="module")
def two_workers(by_processes: Path) -> Iterator[Cluster]:
    """After the forks, which would share the locks of Ray's threads."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield Cluster(workers=2)
    ray.shutdown()


def weights_of(folder: Path) -> dict[str, Any]:
    """What a run has saved."""
    return load_file(folder / "adapter/adapter_model.safetensors")


def check_same(ours: Path, right: Path) -> None:
    """See that two runs have learned the same."""
    first, second = weights_of(ours), weights_of(right)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert (weight - second[name]).norm() <= 1e-5 * second[name].norm()
    assert len((ours / "log.jsonl").read_text().splitlines()) == len((right / "log.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_workers_learn_what_processes_learn(
    two_workers: Cluster, settings: list[str], by_processes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(None, [*settings, f"training.output_dir={tmp_path / 'run'}"])
    start_workers(two_workers, recipe, None, train.train_and_show)
    check_same(tmp_path / "run", by_processes)
    told = capsys.readouterr()
    assert "2 processes (gloo, DDP)" in told.out and "training: 100%" in told.err
    with pytest.raises(UserError, match="already holds a run"):
        start_workers(two_workers, recipe, None, train.train_and_show)
    longer = train.read_resumed(_workers.RunFolder(tmp_path / "run"), None, ["training.steps=303"])
    start_workers(two_workers, longer, tmp_path / "run", train.train_and_show)
    assert "goes on after step 300 of 303" in capsys.readouterr().out


def kill_a_worker(folder: Path, killed: list[int], over: threading.Event) -> None:
    """End one as soon as there is a checkpoint."""
    while not over.wait(0.05):
        workers = []
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended meanwhile
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    workers.append(child)
        if workers and any(folder.glob("checkpoints/checkpoint-*/SHA256SUMS")):
            killed.append(workers[-1].pid)
            os.kill(workers[-1].pid, signal.SIGKILL)
            return


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again(
    two_workers: Cluster, settings: list[str], by_processes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, killed, over = tmp_path / "run", list[int](), threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(folder, killed, over))
    killer.start()
    try:
        recipe = load_recipe(None, [*settings, f"training.output_dir={folder}"])
        start_workers(two_workers, recipe, None, train.train_and_show)
    finally:
        over.set()
        killer.join()
    assert killed and "goes on after step" in capsys.readouterr().out
    check_same(folder, by_processes)

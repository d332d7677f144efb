"""Checkpoints are there whole or not at all, whenever the power fails; a damaged one is found, and passed over."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import FullDisk, cut_off

from glmtune import files, registry
from glmtune.config import load_recipe
from glmtune.data import EncodedDraws
from glmtune.data.encoder import Encoder
from glmtune.examples import Example
from glmtune.models import loading
from glmtune.runtime import RunFolder, UserError, seed_everything
from glmtune.training.checkpoints import (
    SUMS,
    Open,
    check_resumable,
    damage_of,
    find_last,
    keep_few,
    last_checkpoint,
    numbered,
    writing,
)
from glmtune.training.trainer import Trainer, make_trainer

RATE = "training.learning_rate=0.01"
EXAMPLES = [Example(f"{a}+{b}=", f"{a}+{b}={a + b}") for a in range(4) for b in (1, 23)]


@pytest.fixture
def trainer_in(tiny_checkpoint: Path) -> Callable[..., Trainer]:
    """`trainer_in(folder)`: the loop of a run of four steps, judged and saved after each second."""

    def make(folder: Path, *settings: str) -> Trainer:
        common = ("method={name: lora, rank: 4}", "training.batch_size=4", "training.eval_steps=2", RATE)
        recipe = load_recipe(None, [f"model.path={tiny_checkpoint}", *common, *settings])
        folder.mkdir(exist_ok=True)
        seed_everything(recipe.seed)
        base, tokenizer = loading.load_model(recipe.model)
        model = registry.find("glmtune.methods", recipe.method.name)(recipe.method).apply(base)
        dataset = EncodedDraws(EXAMPLES, Encoder(tokenizer))
        return make_trainer(model, tokenizer, dataset, recipe, 4, lambda _: {"accuracy": 0.5}, RunFolder(folder))

    return make


def test_the_power_fails_while_one_is_written(trainer_in: Callable[..., Trainer], tmp_path: Path) -> None:
    """Before each operation on files, once: what counts is one of the two, whole; then it is written after all."""
    trainer = trainer_in(tmp_path / "run")
    trainer.run()
    shutil.rmtree(trainer.folder.checkpoints / "checkpoint-4")
    found = []
    for last in itertools.count(1):
        run = tmp_path / str(last)
        shutil.copytree(tmp_path / "run", run)
        trainer.folder = RunFolder(run)
        failed = cut_off(lambda: trainer._save_checkpoint(trainer.model, None), run, last)
        checkpoint = check_resumable(trainer.folder.checkpoints)
        assert checkpoint is not None and find_last(trainer.folder.checkpoints)[1] == []
        found.append(int(checkpoint.name.rpartition("-")[2]))
        if not failed:
            break
        trainer._save_checkpoint(trainer.model, None)
        assert sorted(path.name for path in trainer.folder.checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
        shutil.rmtree(run)
    assert len(found) > 15 and found == sorted(found) and set(found) == {2, 4}


def test_the_disk_is_full_while_one_is_written(
    trainer_in: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each operation, once: it is told, nothing is left of the half, and it is written when there is room."""
    trainer = trainer_in(tmp_path / "run")
    trainer.run()
    shutil.rmtree(trainer.folder.checkpoints / "checkpoint-4")
    told = 0
    for last in itertools.count(1):
        run = tmp_path / str(last)
        shutil.copytree(tmp_path / "run", run)
        trainer.folder = RunFolder(run)
        disk, is_told = FullDisk(run, last), False
        with monkeypatch.context() as patch:
            disk.watch(patch.setattr)
            try:
                trainer._save_checkpoint(trainer.model, None)
            except UserError as error:
                assert "checkpoint of step 4 cannot be written" in str(error) and "No space left" in str(error)
                is_told = True
        if disk.made < last:
            break
        told += is_told
        names = {path.name for path in trainer.folder.checkpoints.iterdir()}
        assert names == {"checkpoint-2"} if is_told else names == {"checkpoint-2", "checkpoint-4"}
        trainer._save_checkpoint(trainer.model, None)
        assert check_resumable(trainer.folder.checkpoints) == trainer.folder.checkpoints / "checkpoint-4"
    assert told > 10


@pytest.mark.parametrize("swaps", [True, False])
def test_the_power_fails_while_a_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    """Where the system swaps folders, there is one at any moment; else the next writer puts it back."""
    if not swaps:
        monkeypatch.setattr(files, "swap", lambda one, other: False)
    path = tmp_path / "here" / "adapter"

    def write(text: str) -> None:
        with files.replacing(path) as temporary:
            temporary.mkdir()
            (temporary / "weights").write_text(text)
            (temporary / "config").write_text(text)

    def read() -> set[str]:
        return {file.read_text() for file in path.iterdir()}

    for last in itertools.count(1):
        write("old")
        if not cut_off(lambda: write("new"), path.parent, last):
            break
        if not swaps:
            files.remove_leftovers(path.parent)
        assert read() in ({"old"}, {"new"})
        write("newer")
        assert read() == {"newer"} and list(path.parent.iterdir()) == [path]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


NAMES = ["trainable.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "open.json"]


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_one_that_is_damaged_is_passed_over_and_named(
    trainer_in: Callable[..., Trainer], tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    trainer_in(tmp_path / "run").run()
    for name in NAMES:
        shutil.copytree(tmp_path / "run", run := tmp_path / name)
        checkpoints = run / "checkpoints"
        assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-4"
        damage(checkpoints / "checkpoint-4" / name)
        found, [told] = find_last(checkpoints)
        assert found == checkpoints / "checkpoint-2" == check_resumable(checkpoints)
        assert f"checkpoint-4 is damaged: {name} " in told


def test_all_are_damaged(trainer_in: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer_in(tmp_path / "run").run()
    checkpoints = tmp_path / "run" / "checkpoints"
    for folder in numbered(checkpoints).values():
        (folder / SUMS).write_text("something\n")
    found, told = find_last(checkpoints)
    assert found is None and len(told) == 2 and all(f"{SUMS} holds something else" in line for line in told)


def test_the_checksums_are_those_of_everybody(trainer_in: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer_in(tmp_path / "run").run()
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path / "run/checkpoints/checkpoint-4")
    assert done.returncode == 0


def test_what_is_kept(tmp_path: Path) -> None:
    """The last ones and the best; not what is of a course that was left."""
    for step in (2, 4, 6, 8, 10, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / ".checkpoint-12.abcdefgh.tmp" / "checkpoint-12").mkdir(parents=True)
    (tmp_path / "run.json").write_text("{}")
    keep_few(tmp_path, 10, 4, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-4",
        "checkpoint-8",
        "run.json",
    ]


def test_best_weights_that_are_damaged_are_best_no_longer(
    trainer_in: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_in(tmp_path / "run")
    scores = iter([0.9, 0.1])
    trainer.judge = lambda _: {"accuracy": next(scores)}
    trainer.run()
    assert trainer.state.best_global_step == 2
    flip(tmp_path / "run/checkpoints/checkpoint-2/trainable.safetensors")
    assert damage_of(tmp_path / "run/checkpoints/checkpoint-2") is not None
    trainer_in(tmp_path / "run").run()
    assert "The best weights so far" in capsys.readouterr().err


def test_an_open_end_of_anything(trainer_in: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer_in(tmp_path / "run").run()
    folder = tmp_path / "run/checkpoints/checkpoint-4"
    (folder / SUMS).unlink()  # as one who means harm would
    (folder / "open.json").write_text('{"loss": "x"}')
    with pytest.raises(UserError, match=r"open\.json is damaged"):
        check_resumable(folder.parent)


def write_as(rank: int, folder: Path) -> None:
    """Be one of two processes that write a checkpoint together; the second time a link is in the way."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    with writing(folder / "checkpoint-1") as temporary:
        temporary.mkdir(exist_ok=True)
        (temporary / f"{rank}.txt").write_text(str(rank))
    with pytest.raises(UserError, match="is a link"), writing(folder / "checkpoint-2"):
        pass
    torch.distributed.destroy_process_group()


def test_two_processes_write_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").symlink_to(tmp_path / "elsewhere")
    processes = multiprocessing.get_context("fork")
    workers = [processes.Process(target=write_as, args=(rank, tmp_path)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    names = {file.name for file in (tmp_path / "checkpoint-1").iterdir()}
    assert names == {"0.txt", "1.txt", SUMS} and damage_of(tmp_path / "checkpoint-1") is None
    assert not list(tmp_path.glob(".*"))


def test_each_process_goes_on_with_its_own_loss() -> None:
    """Sums of 32-bit numbers depend on the order in which they are added up."""
    left = Open(loss=2.0, losses=[1.0, 3.0], steps=4)
    assert [left.loss_of(rank, 2) for rank in range(2)] == [1.0, 3.0]
    assert left.loss_of(0, 1) == left.loss_of(3, 4) == 2.0
    assert Open.model_validate_json('{"loss": 0.5, "steps": 1}').loss_of(0, 1) == 0.5, "of an older run"

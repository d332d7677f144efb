"""A run that goes on: as if it had never stopped, or longer, or otherwise as far as that makes sense."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from killing import KILLED, cut_off, ends
from rich.console import Console
from safetensors.torch import load_file

from glmtune import execution, locks
from glmtune.commands import train
from glmtune.config import load_recipe
from glmtune.execution import Run
from glmtune.runtime import Terminated, UserError
from glmtune.training import trainer

Trains = Callable[..., Run]
STEPS = 8


@pytest.fixture
def interrupt(train_tiny: Trains, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`interrupt(folder, 5, "training.steps=8", ...)`: a run that Ctrl-C ended after some steps."""

    def interrupted(folder: Path, after: int, *settings: str, error: type[BaseException] | None = None) -> Path:
        plain, count = trainer.target_loss, iter(range(1, 99))

        def loss(*args: Any) -> Any:
            if next(count) == after:
                if error is not None:
                    raise error
                signal.raise_signal(signal.SIGINT)
            return plain(*args)

        with monkeypatch.context() as patch, pytest.raises(error or KeyboardInterrupt):
            patch.setattr(trainer, "target_loss", loss)
            train_tiny(folder, f"training.steps={STEPS}", *settings)
        return folder

    return interrupted


@pytest.fixture(scope="module")
def whole(train_tiny: Trains, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that never stopped."""
    return train_tiny(tmp_path_factory.mktemp("whole") / "run", f"training.steps={STEPS}")


@pytest.fixture
def finished(whole: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.path, tmp_path / "finished"))


def go_on(folder: Path, *settings: str) -> tuple[Run, str]:
    """The run, and what was said."""
    told = io.StringIO()
    return train.run(overrides=settings, resume=folder, console=Console(file=told, width=1000)), told.getvalue()


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def rates(folder: Path) -> dict[int, float]:
    return {record["step"]: record["learning_rate"] for record in log_of(folder) if "learning_rate" in record}


def is_the_same(run: Run, other: Run) -> bool:
    """Whether what they learned is equal to the bit, and the losses on the way."""
    one, two = (load_file(each.folder.adapter / "adapter_model.safetensors") for each in (run, other))
    losses = [[record.get("loss") for record in log_of(each.path) if "loss" in record] for each in (run, other)]
    return losses[0] == losses[1] and all(one[name].equal(two[name]) for name in one | two)


def test_as_if_it_had_never_stopped(interrupt: Callable[..., Path], tmp_path: Path, whole: Run) -> None:
    done, told = go_on(interrupt(tmp_path / "run", 5))
    assert is_the_same(done, whole) and f"goes on after step 5 of {STEPS}." in told
    assert done.folder.recipe.read_text() == whole.folder.recipe.read_text().replace(str(whole.path), str(done.path))
    assert "changes" not in done.report


@pytest.mark.parametrize(
    "schedule",
    ["cosine", *(pytest.param(name, marks=pytest.mark.slow) for name in ("linear", "constant_with_warmup"))],
)
def test_longer_by_the_schedule_of_all_steps(
    interrupt: Callable[..., Path], train_tiny: Trains, tmp_path: Path, schedule: str
) -> None:
    """From the step on, rates are those of a run that was planned so; also where the old schedule had come to 0."""
    settings = (f"training.lr_scheduler_type={schedule}", "training.warmup_ratio=0.25")
    longer = train_tiny(tmp_path / "longer", *settings, "training.steps=12")
    for run in (interrupt(tmp_path / "run", 5, *settings), train_tiny(tmp_path / "all", *settings).path):
        start = log_of(run)[-1]["step"]
        done, told = go_on(run, "training.steps=12")
        found, planned = rates(done.path), rates(longer.path)
        assert [found[step] for step in range(start + 1, 13)] == [planned[step] for step in range(start + 1, 13)]
        assert f"Changed: training.steps=12 from step {start + 1} on" in told
        assert load_recipe(done.folder.recipe).training.steps == 12


def by_hand(folder: Path, old: str, new: str) -> None:
    recipe = folder / "recipe.yaml"
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


@pytest.mark.parametrize("is_typed", [True, False])
def test_another_rate_holds_from_the_step_on(
    interrupt: Callable[..., Path], train_tiny: Trains, tmp_path: Path, whole: Run, is_typed: bool
) -> None:
    """However it got into the recipe; page, report and recipe tell of it."""
    folder = interrupt(tmp_path / "run", 5)
    if not is_typed:
        by_hand(folder, "learning_rate: 0.01\n", "learning_rate: 0.002\n")
    done, told = go_on(folder, *(["training.learning_rate=0.002"] if is_typed else []))
    before = rates(whole.path)
    assert rates(folder) == {step: rate * (1 if step <= 5 else 0.2) for step, rate in before.items()} | {
        step: pytest.approx(before[step] * 0.2, rel=1e-12) for step in range(6, STEPS + 1)
    }
    note = "training.learning_rate=0.002 from step 6 on (0.01 before)"
    assert f"Changed: {note}." in told
    assert done.folder.recipe.read_text().splitlines()[0] == f"# {note}"
    assert done.report["changes"] == [{"step": 5, "setting": "training.learning_rate", "before": 0.01, "after": 0.002}]
    assert note in (folder / "report.html").read_text()
    again, told = go_on(folder, f"training.steps={STEPS + 2}")
    assert [change["step"] for change in again.report["changes"]] == [5, STEPS]
    assert load_recipe(again.folder.recipe).training.learning_rate == 0.002


def test_what_goes_beside_the_steps(interrupt: Callable[..., Path], tmp_path: Path, whole: Run) -> None:
    """Other intervals, another division of a batch: what is learned stays the same, up to rounding."""
    settings = ("training.batch_size=2", "training.gradient_accumulation_steps=2", "training.logging_steps=2")
    done, _ = go_on(interrupt(tmp_path / "run", 5), *settings, "training.eval_steps=3", "evaluation.num_examples=4")
    records = [record for record in log_of(done.path) if record["step"] > 5]
    assert [record["step"] for record in records if "loss" in record] == [6, 8]
    assert [record["step"] for record in records if "accuracy" in record] == [6, 8]
    assert done.report["after"]["n"] == 4
    weights, others = (load_file(run.folder.adapter / "adapter_model.safetensors") for run in (done, whole))
    assert all(weights[name].allclose(others[name], atol=1e-4) for name in weights)


@pytest.mark.slow
def test_patience(train_tiny: Trains, tmp_path: Path) -> None:
    """A run that stopped early says so, and goes on with more of it."""
    settings = ("training.eval_steps=1", "training.learning_rate=1e-9", "training.steps=8")
    folder = train_tiny(tmp_path / "run", *settings, "training.early_stopping_patience=2").path
    made = log_of(folder)[-1]["step"]
    assert made < 8
    _, told = go_on(folder)
    assert f"is finished after step {made} of 8: stopped early" in told and "training.early_stopping_patience=4" in told
    _, told = go_on(folder, "training.early_stopping_patience=4")
    assert log_of(folder)[-1]["step"] == made + 2 and "goes on" in told
    go_on(folder, "training.early_stopping_patience=null")
    assert log_of(folder)[-1]["step"] == 8


def test_a_finished_run_is_said_to_be(finished: Path, whole: Run) -> None:
    names = ("recipe.yaml", "log.jsonl", "adapter/adapter_model.safetensors", "checkpoints/run.json")
    before = [(finished / name).read_bytes() for name in names]
    done, told = go_on(finished)
    assert f"is finished after step {STEPS} of {STEPS}: all are made" in told
    assert f"glmtune train --resume {finished} training.steps={2 * STEPS}" in told
    assert done.report["after"] == whole.report["after"]
    assert [(finished / name).read_bytes() for name in names] == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.steps=7", rf"training\.steps=7: .* has made {STEPS} steps already.*Set {STEPS} to end there"),
        ("method.rank=8", r"method\.rank=8 \(4 so far\) would change what learns.*Start a new run, or set it back"),
        ("method={name: freeze}", r"method\.name=freeze \(lora so far\)"),
        ("seed=1", r"seed=1 \(42 so far\) would bring other examples"),
        ("task.maximum=6", r"task\.maximum=6 \(5 so far\) would change what is learned"),
        ("task.style=draft", r"task\.style=draft \(direct so far\) would change"),
        ("data.packing=true", r"data\.packing=true \(false so far\) would change what is learned"),
        ("training.optimizer=muon", r"training\.optimizer=muon \(adamw so far\) would lose what"),
        ("training.batch_size=8", r"training\.batch_size=8 \(4 so far\) would change how many examples"),
        ("evaluation.num_examples_during=3", "would choose the best weights by other examples"),
        ("training.output_dir=elsewhere", r"training\.output_dir=elsewhere: a run goes on in its own folder"),
        (
            "training.learning_rate=5e-2",
            rf"training\.learning_rate=0\.05: .* is finished after step {STEPS}, and no step",
        ),
        ("training.early_stopping_patience=1", rf"is finished .*--resume .*finished training\.steps={2 * STEPS}$"),
        ("training.stesp=9", r"training\.stesp: unknown setting.*'steps'"),
        ("training.epochs=5", r"training\.epochs=5: .*draws.*training\.steps"),
    ],
)
def test_what_would_be_another_run_is_refused(finished: Path, no_weights: None, setting: str, message: str) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        go_on(finished, setting)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_what_a_run_is_ended_by_goes_with_no_setting_of_steps(interrupt: Callable[..., Path], tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "run", 5)
    with pytest.raises(
        UserError, match=r"^training\.warmup_ratio=0\.5: .* is finished after step 5.*training\.steps=10$"
    ):
        go_on(folder, "training.steps=5", "training.warmup_ratio=0.5")
    done, _ = go_on(folder, "training.steps=5", "evaluation.num_examples=4")
    assert log_of(folder)[-1]["step"] == 5 and done.report["after"]["n"] == 4
    done, _ = go_on(folder, "evaluation.num_examples=5")
    assert done.report["after"]["n"] == 5


def test_edits_by_hand_are_refused_alike(finished: Path, no_weights: None) -> None:
    by_hand(finished, "rank: 4\n", "rank: 8\n")
    by_hand(finished, "seed: 42\n", "seed: 43\n")
    with pytest.raises(UserError, match=r"seed=43 \(42 so far\).*; method\.rank=8 \(4 so far\).*or set them back"):
        go_on(finished)


def test_more_epochs_are_more_steps(train_tiny: Trains, write_records: Any, tmp_path: Path) -> None:
    file = write_records(*({"prompt": f"{i}+1=", "target": str(i + 1)} for i in range(40)))
    task = f"task={{name: instructions, file: {file}, held_out: 0.2}}"
    done = train_tiny(tmp_path / "run", task, "training.steps=null", "training.epochs=1", "training.batch_size=8")
    one = load_recipe(done.folder.recipe).training.steps
    assert one == -(-(40 - len(done.after.examples)) // 8) or one is not None
    done, told = go_on(done.path, "training.epochs=2")
    assert load_recipe(done.folder.recipe).training.steps == pytest.approx(2 * (one or 0), abs=1)
    assert "Changed: training.steps=" in told and log_of(done.path)[-1]["step"] > (one or 0)


def test_other_records_are_another_run(train_tiny: Trains, write_records: Any, tmp_path: Path) -> None:
    records = [{"prompt": f"{i}+1=", "target": str(i + 1)} for i in range(40)]
    file = write_records(*records)
    done = train_tiny(tmp_path / "run", f"task={{name: instructions, file: {file}, held_out: 0.2}}")
    moved = file.rename(tmp_path / "moved.jsonl")  # the same records under another name are the same
    go_on(done.path, f"task.file={moved}", "training.steps=5")
    write_records(*records[1:], name="moved.jsonl")
    with pytest.raises(UserError, match=r"task\.file: the task has other records than when .* began"):
        go_on(done.path, "training.steps=6")


def test_another_base_is_another_run(train_tiny: Trains, tiny_checkpoint: Path, tmp_path: Path, finished: Path) -> None:
    same = shutil.copytree(tiny_checkpoint, tmp_path / "same")
    go_on(finished, f"model.path={same}", f"training.steps={STEPS + 1}")
    weights = same / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = bytes(4)
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.path: .* holds other weights than when .* began"):
        go_on(finished, f"training.steps={STEPS + 2}")


# The same command again


def test_the_same_command_goes_on(
    interrupt: Callable[..., Path], train_tiny: Trains, tmp_path: Path, whole: Run
) -> None:
    folder = interrupt(tmp_path / "run", 5)
    done = train_tiny(folder, f"training.steps={STEPS}")
    assert is_the_same(done, whole)
    with pytest.raises(UserError, match=r"already holds a run.*--resume .*training\.steps=N.*Nothing in it was"):
        train_tiny(folder, f"training.steps={STEPS}")


def test_another_command_does_not(interrupt: Callable[..., Path], train_tiny: Trains, tmp_path: Path) -> None:
    """Not even one by which --resume would go on: who says the same means the same."""
    folder = interrupt(tmp_path / "run", 5)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"interrupted run of another recipe: method\.rank=2 \(4 there\), training\.steps=9 \(8 there\)"
    ) as error:
        train_tiny(folder, "training.steps=9", "method.rank=2")
    assert f"glmtune train --resume {folder}" in str(error.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("has_log", [True, False])
def test_interrupted_before_its_first_checkpoint(
    interrupt: Callable[..., Path], train_tiny: Trains, tmp_path: Path, whole: Run, has_log: bool
) -> None:
    """By a power cut, which leaves no checkpoint; the log may be there, or not yet."""
    folder = interrupt(tmp_path / "run", 1, error=MemoryError)
    assert not list(folder.glob("checkpoints/checkpoint-*"))
    if not has_log:
        (folder / "log.jsonl").unlink()
        shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match=r"method\.rank=2 \(4 there\)"):
        train_tiny(folder, f"training.steps={STEPS}", "method.rank=2")
    assert is_the_same(train_tiny(folder, f"training.steps={STEPS}"), whole)


def test_nothing_was_learned_before_the_first_checkpoint(interrupt: Callable[..., Path], tmp_path: Path) -> None:
    """So that everything may still be changed, by name."""
    done, told = go_on(interrupt(tmp_path / "run", 1, error=MemoryError), "method.rank=2")
    assert "before its first checkpoint: it begins anew" in told
    assert load_recipe(done.folder.recipe).method.rank == 2  # type: ignore[attr-defined]
    assert [record["step"] for record in log_of(done.path)].count(0) == 1


def test_a_run_that_is_at_work_is_not_joined(
    interrupt: Callable[..., Path], train_tiny: Trains, tmp_path: Path
) -> None:
    folder = interrupt(tmp_path / "run", 5)
    with locks.held(folder):
        for again in (lambda: train_tiny(folder, f"training.steps={STEPS}"), lambda: go_on(folder)):
            with pytest.raises(UserError, match="another process works in it"):
                again()
    go_on(folder)


# What lies in the folder


def test_the_best_weights_are_found_where_the_folder_is_now(
    train_tiny: Trains, interrupt: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = interrupt(Path("run"), 5)
    folder.rename("moved")
    monkeypatch.chdir("/")
    done, _ = go_on(tmp_path / "moved")
    assert is_the_same(done, whole)


def test_a_run_may_end_where_it_is(interrupt: Callable[..., Path], tmp_path: Path) -> None:
    """Also where nothing was judged yet."""
    folder = interrupt(tmp_path / "run", 3, "training.eval_steps=6")
    done, _ = go_on(folder, "training.steps=3")
    assert done.report["after"]["n"] == 6 and done.folder.adapter.is_dir()


def test_what_cannot_go_on(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run there \(recipe\.yaml is missing\).*glmtune ls"):
        go_on(tmp_path)
    with pytest.raises(UserError, match=r"own recipe, not with other\.yaml"):
        train.run("other.yaml", resume=finished)
    (finished / "checkpoints/run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        go_on(finished)
    shutil.rmtree(finished / "checkpoints")
    with pytest.raises(UserError, match="its checkpoints are gone"):
        go_on(finished)


def test_runs_that_have_no_record_go_on(finished: Path) -> None:
    """Those of before: what their recipe says is what they were made by."""
    (finished / "checkpoints/run.json").unlink()
    done, told = go_on(finished, f"training.steps={STEPS + 1}")
    assert log_of(done.path)[-1]["step"] == STEPS + 1 and "Changed: training.steps" in told


# Stopped anywhere


def losses(folder: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in log_of(folder) if "loss" in record}


def figures(run: Run) -> dict[str, Any]:
    """What the report says, without what no two runs have in common."""
    report = json.loads(run.folder.report.read_text())
    return {name: value for name, value in report.items() if name not in ("training_seconds", "peak_memory")}


def test_losses_that_were_not_logged_yet_are_logged_after_the_stop(
    interrupt: Callable[..., Path], train_tiny: Trains, tmp_path: Path
) -> None:
    settings = ("training.logging_steps=4", "training.batch_size=2", "training.gradient_accumulation_steps=2")
    expected = train_tiny(tmp_path / "whole", f"training.steps={STEPS}", *settings)
    done, _ = go_on(interrupt(tmp_path / "run", 5, *settings))  # in the third step
    assert losses(done.path) == losses(expected.path) and [*losses(done.path)] == [4, 8]


def test_time_saves_too(interrupt: Callable[..., Path], tmp_path: Path, whole: Run) -> None:
    folder = interrupt(tmp_path / "run", 6, "training.save_seconds=1e-9", "training.eval_steps=8", error=MemoryError)
    assert sorted(path.name for path in folder.glob("checkpoints/checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    done, told = go_on(folder)
    assert "goes on after step 5" in told and done.report["after"] == whole.report["after"]


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    interrupt: Callable[..., Path], tmp_path: Path, whole: Run
) -> None:
    folder = interrupt(tmp_path / "run", 5)
    (folder / "checkpoints/checkpoint-5/optimizer.pt").write_bytes(b"half")
    done, told = go_on(folder)
    assert f"{folder}/checkpoints/checkpoint-5 is damaged: optimizer.pt does not hold what was written to it." in told
    assert "goes on after step 4" in told and is_the_same(done, whole) and figures(done) == figures(whole)


def test_no_checkpoint_is_left(interrupt: Callable[..., Path], tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "run", 2)
    for checkpoint in folder.glob("checkpoints/checkpoint-*"):
        (checkpoint / "open.json").unlink()
    with pytest.raises(UserError, match=r"checkpoint-1 is damaged: open\.json is missing.*No other is left"):
        go_on(folder)


@pytest.fixture
def told_to_end(train_tiny: Trains, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`told_to_end(folder, act, ...)`: a run in which something happens in the fifth micro-batch."""

    def end(folder: Path, at: Callable[[], None], *settings: str) -> Path:
        plain, count = trainer.target_loss, itertools.count(1)

        def loss(*args: Any) -> Any:
            if next(count) == 5:
                at()
            return plain(*args)

        with monkeypatch.context() as patch, pytest.raises(Terminated, match="Go on with: glmtune train --resume"):
            patch.setattr(trainer, "target_loss", loss)
            train_tiny(folder, f"training.steps={STEPS}", *settings)
        return folder

    return end


def end_now(slowly: bool) -> None:
    signal.raise_signal(signal.SIGTERM)
    if slowly:
        time.sleep(20)  # which a signal ends


@pytest.mark.parametrize("slowly", [False, True])
def test_sigterm_saves_the_step_at_hand_or_the_one_before(
    told_to_end: Callable[..., Path], train_tiny: Trains, tmp_path: Path, slowly: bool
) -> None:
    """With dropout, logged rarely, in micro-batches: all that is on its way from step to step."""
    settings = ("method.dropout=0.3", "training.logging_steps=8", "training.gradient_accumulation_steps=2")
    settings = (*settings, "training.batch_size=2", "training.eval_steps=8")
    expected = train_tiny(tmp_path / "whole", f"training.steps={STEPS}", *settings)
    grace = "training.grace_seconds=0.2" if slowly else "training.grace_seconds=60"
    folder = told_to_end(tmp_path / "run", lambda: end_now(slowly), *settings, grace)
    [saved] = folder.glob("checkpoints/checkpoint-*")
    assert saved.name == ("checkpoint-2" if slowly else "checkpoint-3")
    done, _ = go_on(folder)
    assert is_the_same(done, expected) and losses(done.path) == losses(expected.path)


def test_sigterm_gives_an_evaluation_up_and_it_is_made_up_for(
    train_tiny: Trains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    """Whether or not its weights are the best."""
    plain, count = execution.judge_of, itertools.count(1)

    def judge_of(*args: Any) -> Callable[..., Any]:
        judge = plain(*args)
        return lambda model: end_now(slowly=True) if next(count) == 4 else judge(model)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Terminated):
        patch.setattr(execution, "judge_of", judge_of)
        train_tiny(folder, f"training.steps={STEPS}", "training.grace_seconds=0.2")
    saved = sorted(folder.glob("checkpoints/checkpoint-*"))[-1]
    assert json.loads((saved / "open.json").read_text())["is_unjudged"] is True
    done, told = go_on(folder)
    assert "goes on after step 3" in told and is_the_same(done, whole)
    scores = [[r["accuracy"] for r in log_of(run.path) if "accuracy" in r] for run in (done, whole)]
    assert scores[0] == scores[1] and figures(done) == figures(whole)


def go_on_or_begin(folder: Path, settings: list[str]) -> None:
    train.run(overrides=[*settings, f"training.output_dir={folder}"], console=Console(file=io.StringIO()))


@pytest.mark.parametrize("stride", [pytest.param(7, marks=pytest.mark.slow), 60])
def test_the_power_may_fail_anywhere(tiny_settings: list[str], tmp_path: Path, whole: Run, stride: int) -> None:
    """Before operations on files of the whole run, from its folder to its report: the same command goes on."""
    settings = [*tiny_settings, f"training.steps={STEPS}"]
    for last in itertools.count(stride, stride):
        folder = tmp_path / str(last)
        if not cut_off(partial(go_on_or_begin, folder, settings), tmp_path, last):
            break
        if (folder / "report.json").is_file():
            go_on(folder)
        else:
            go_on_or_begin(folder, settings)
        assert not list(folder.rglob(".*"))
        assert weights_of(folder) == weights_of(whole.path)
        report, expected = (json.loads((each / "report.json").read_text()) for each in (folder, whole.path))
        assert report["after"] == expected["after"] and report["before"] == expected["before"]
        assert losses(folder) == losses(whole.path)
        shutil.rmtree(folder)
    assert last > 2 * 60


def weights_of(folder: Path) -> bytes:
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


def test_two_at_once(tiny_settings: list[str], tmp_path: Path, whole: Run) -> None:
    """The same command twice: one trains, the other is told who does, and takes nothing away."""
    settings = [*tiny_settings, f"training.steps={STEPS}"]
    folder = tmp_path / "run"

    def work() -> None:
        try:
            go_on_or_begin(folder, settings)
        except UserError as error:
            # Who holds it may not have written his name yet; tests/test_locks.py has that he does.
            assert "another process works in it" in str(error) or "already holds a run" in str(error)
            os._exit(3)

    workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        worker.kill()
    assert sorted(worker.exitcode or 0 for worker in workers) == [0, 3]
    assert weights_of(folder) == weights_of(whole.path)


def test_whoever_was_killed_is_told(interrupt: Callable[..., Path], tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "run", 5)

    def be_killed() -> None:
        with locks.held(folder):
            os._exit(KILLED)

    assert ends(be_killed) == KILLED
    _, told = go_on(folder)
    assert f"{folder} was held by process " in told and "It is taken." in told

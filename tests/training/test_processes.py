"""Several processes learn what one learns: the same examples in each step, the same gradients, one folder."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Failure, free_port, in_processes, launched
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback

from glmtune import distributed
from glmtune.commands import train
from glmtune.config import load_recipe
from glmtune.training import processes, sharding
from glmtune.training.run_trainer import RunTrainer
from glmtune.training.trainer import Trainer

METHODS = {
    "lora": ["method.rank=4"],
    "ptuning_v2": ["method.name=ptuning_v2", "method.num_virtual_tokens=4"],
    "freeze": ["method.name=freeze", "method.num_layers=1"],
    "full": ["method.name=full"],
}
OFFLOADED = {"full": ["training.cpu_offload=true"]}  # shares are kept in the machine's memory
# Small steps: by large ones, differences of a rounding grow in a random model from step to step.
STEADY = ["model.dtype=float32", "training.learning_rate=0.0001"]


class Gradients(TrainerCallback):
    """Keeps the gradients of each step, clipped as the optimizer sees them."""

    def __init__(self, trainer: RunTrainer, kept: list[torch.Tensor]):
        self.trainer, self.kept = trainer, kept

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        weights = self.trainer.trained_weights().values()
        grads = [sharding.whole(weight.grad).flatten() for weight in weights if weight.grad is not None]
        self.kept.append(torch.cat(grads).clone())


def learn(settings: list[str]) -> tuple[dict[str, Any], list[Any]]:
    """A training by some settings, on all processes there are: its report, and the gradients of its steps."""
    kept: list[torch.Tensor] = []
    plain = Trainer.learn

    def learn_and_keep(self: Trainer, start: Path | None) -> None:
        self.add_callback(Gradients(self, kept))
        plain(self, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "learn", learn_and_keep)
        done = train.run(overrides=settings, console=Console(file=io.StringIO()))
    return done.report, [gradient.tolist() for gradient in kept]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """What a run has saved."""
    [file] = [file for place in ("adapter", "model") for file in (folder / place).glob("*.safetensors")]
    return load_file(file)


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """How far two tensors are apart, relative to their size."""
    return float((left - right).norm() / right.norm().clamp(min=1e-12))


def losses(folder: Path) -> list[float]:
    """The losses of a run's log."""
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def judged(folder: Path) -> list[int]:
    """The steps after which a run's log has answers."""
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [record["step"] for record in records if "accuracy" in record]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Nine records, learned four at a time: the last step of an epoch has one, and a process none."""
    file = tmp_path_factory.mktemp("records") / "nine.jsonl"
    lines = [{"prompt": f"{number}+1=", "target": str(number + 1) * (1 + number % 4)} for number in range(9)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    others = file.with_name("held_out.jsonl")
    others.write_text('{"prompt": "11+2=", "target": "13"}\n{"prompt": "10+3=", "target": "13"}\n')
    return ["task.name=instructions", f"task.file={file}", f"task.held_out_file={others}"]


@pytest.fixture(scope="module")
def settings(tiny_settings: list[str]) -> list[str]:
    return [one for one in tiny_settings if not one.startswith("method.")] + STEADY


def cases(settings: list[str], records: list[str]) -> dict[str, list[str]]:
    """What is learned: arithmetic by some methods, and records by LoRA."""
    general = [one for one in settings if not one.startswith("task.")]
    uneven = ["training.eval_steps=1", "evaluation.num_examples_during=1"]  # which one process answers
    of_records = [*general, *records, "method.rank=4", "training.steps=6", "training.batch_size=1"]
    return {
        **{name: [*settings, "training.steps=3", *METHODS[name], *uneven] for name in ("lora", "full")},
        "packed": [*settings, "training.steps=3", "method.rank=4", "model.bits=4", "model.quantize_embedding=true"],
        "records": [*of_records, "training.gradient_accumulation_steps=4"],
    }


MORE = {
    "bits=8": ["model.bits=8", "method.rank=4"],
    "bits=4": ["model.bits=4", "method.rank=4"],
    "quantized embedding": ["model.quantize_embedding=true", "method.rank=4"],
    "gradient checkpointing": ["training.gradient_checkpointing=true", "method.rank=4"],
    "dora": ["method.use_dora=true", "method.rank=4"],
    "projection": ["method.name=ptuning_v2", "method.num_virtual_tokens=4", "method.prefix_projection=true"],
    "muon": ["method.name=full", "training.optimizer=muon"],
    "packing": ["data.packing=true", "method.rank=4"],
    "bits=4, quantized embedding": ["model.bits=4", "model.quantize_embedding=true", "method.name=ptuning_v2"],
    "bits=4, recomputed": ["model.bits=4", "training.gradient_checkpointing=true", "method.rank=4"],
    "one at a time": ["training.batch_size=1", "training.gradient_accumulation_steps=7", "method.rank=4"],
}


@pytest.fixture(scope="module")
def trained(settings: list[str], records: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """By how many processes: the folder of the runs, and what each process said of each."""
    found = {}
    for count in (1, 2):
        folder = tmp_path_factory.mktemp(f"by_{count}")

        def work(rank: int, folder: Path = folder) -> dict[str, Any]:
            said = {}
            for name, more in cases(settings, records).items():
                said[name] = learn([*more, f"training.output_dir={folder / name}"])
            return said

        found[count] = folder, in_processes(work, count)
    return found


@pytest.mark.parametrize("case", ["lora", "full", "packed", "records"])
def test_two_processes_learn_what_one_learns(trained: dict[int, Any], case: str) -> None:
    (one, [alone]), (two, both) = trained[1], trained[2]
    assert not any(isinstance(said, Failure) for said in both), both
    [expected, *_], (first, second) = [alone[case]], (said[case] for said in both)
    assert len(first[1]) == len(expected[1]) > 2
    for ours, theirs, right in zip(first[1], second[1], expected[1], strict=True):
        assert ours == theirs  # to the bit: both take the same step
        assert apart(torch.tensor(ours), torch.tensor(right)) < 1e-5
    assert losses(two / case) == pytest.approx(losses(one / case), rel=1e-5)
    ours, right = weights_of(two / case), weights_of(one / case)
    assert {name: weight.shape for name, weight in ours.items()} == {n: weight.shape for n, weight in right.items()}
    assert apart(*(torch.cat([w[name].flatten() for name in right]) for w in (ours, right))) < 1e-5
    assert {name: first[0][name] for name in ("before", "after")} == {n: expected[0][n] for n in ("before", "after")}


@pytest.fixture(scope="module")
def divided(settings: list[str], records: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The same cases by two processes that divide the weights."""
    folder = tmp_path_factory.mktemp("divided")

    def work(rank: int) -> dict[str, Any]:
        return {
            name: learn(
                [*more, *OFFLOADED.get(name, []), "training.sharding=full", f"training.output_dir={folder / name}"]
            )
            for name, more in cases(settings, records).items()
        }

    return folder, in_processes(work)


@pytest.mark.parametrize("case", ["lora", "full", "packed", "records"])
def test_divided_weights_learn_what_whole_ones_learn(
    trained: dict[int, Any], divided: tuple[Path, Any], case: str
) -> None:
    (one, [alone]), (two, both) = trained[1], divided
    assert not any(isinstance(said, Failure) for said in both), both
    expected, first, second = alone[case], both[0][case], both[1][case]
    assert len(first[1]) == len(expected[1]) > 2
    for ours, theirs, right in zip(first[1], second[1], expected[1], strict=True):
        assert ours == theirs and apart(torch.tensor(ours), torch.tensor(right)) < 1e-5
    assert losses(two / case) == pytest.approx(losses(one / case), rel=1e-5)
    ours, right = weights_of(two / case), weights_of(one / case)
    assert {name: weight.shape for name, weight in ours.items()} == {n: weight.shape for n, weight in right.items()}
    assert apart(*(torch.cat([w[name].flatten() for name in right]) for w in (ours, right))) < 1e-5
    assert first[0]["after"] == expected[0]["after"]


def test_one_process_keeps_its_weights_elsewhere(
    trained: dict[int, Any], settings: list[str], records: list[str], tmp_path: Path
) -> None:
    """By itself it is no part of a group before that, nor after."""
    (one, [alone]), more = trained[1], ["training.sharding=full", "training.cpu_offload=true"]

    def work(rank: int) -> tuple[Any, bool]:
        found = learn([*cases(settings, records)["full"], *more, f"training.output_dir={tmp_path / 'run'}"])
        return found, distributed.process_group() is None

    [said] = in_processes(work, 1)
    assert not isinstance(said, Failure), said
    (report, grads), is_alone = said
    assert is_alone and report["after"] == alone["full"][0]["after"]
    assert apart(torch.tensor(grads[-1]), torch.tensor(alone["full"][1][-1])) < 1e-5
    ours, right = weights_of(tmp_path / "run"), weights_of(one / "full")
    assert apart(*(torch.cat([w[name].flatten() for name in right]) for w in (ours, right))) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", "full"])
@pytest.mark.parametrize("case", [*METHODS, *MORE])
def test_four_processes_learn_what_one_learns(settings: list[str], tmp_path: Path, case: str, how: str) -> None:
    """By each method, and with all that a recipe may ask of the storage and the loop."""
    if how == "full" and case == "muon":
        pytest.skip("is refused")
    more = [*settings, "training.steps=3", *{**METHODS, **MORE}[case]]

    def learned(count: int) -> list[Any]:
        given = [f"training.output_dir={tmp_path / str(count)}", *([f"training.sharding={how}"] if count > 1 else [])]
        return in_processes(lambda rank: learn([*more, *given]), count)

    [alone], four = learned(1), learned(4)
    assert not any(isinstance(said, Failure) for said in four), four
    rounding = 1e-4 if case == "muon" else 1e-5  # Muon lifts small directions of a gradient to the size of large ones
    for step, (ours, right) in enumerate(zip(four[3][1], alone[1], strict=True)):
        assert apart(torch.tensor(ours), torch.tensor(right)) < (rounding if step else 1e-5)
    ours, right = weights_of(tmp_path / "4"), weights_of(tmp_path / "1")
    assert apart(*(torch.cat([w[name].flatten() for name in right]) for w in (ours, right))) < rounding


def test_the_folder_is_that_of_one_process(trained: dict[int, Any]) -> None:
    files = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "rng_state" not in path.name}
        for folder, _ in trained.values()
    ]
    assert files[0] == files[1]
    assert {path.name for path in trained[2][0].rglob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    for case in ("lora", "records"):
        logs = [(folder / case / "log.jsonl").read_text().splitlines() for folder, _ in trained.values()]
        assert len(logs[0]) == len(logs[1])


@pytest.fixture(scope="module")
def steady(settings: list[str], records: list[str]) -> list[str]:
    """Settings by which a run that is made longer takes the steps that the longer one takes."""
    more = ["training.lr_scheduler_type=constant_with_warmup", "training.warmup_ratio=0", "training.eval_steps=3"]
    return [*cases(settings, records)["records"], *more]


@pytest.fixture(scope="module")
def never_stopped(steady: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, by one process."""
    folder = tmp_path_factory.mktemp("never") / "run"
    [said] = in_processes(lambda rank: learn([*steady, f"training.output_dir={folder}"])[0], 1)
    assert not isinstance(said, Failure), said
    return folder


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param("2", "1", marks=pytest.mark.slow),
        ("2 divided", "1"),
        ("1", "2 divided"),
        pytest.param("2 divided", "2", marks=pytest.mark.slow),
    ],
)
def test_other_processes_go_on(steady: list[str], never_stopped: Path, tmp_path: Path, first: str, then: str) -> None:
    """In the second epoch, whose order is another one."""
    folder = tmp_path / "run"

    def work(who: str, *more: str, resume: Path | None = None) -> list[Any]:
        how = f"training.sharding={'full' if 'divided' in who else 'none'}"

        def act(rank: int) -> Any:
            return train.run(overrides=[*more, how], resume=resume, console=Console(file=io.StringIO())).report

        return in_processes(act, int(who[0]))

    said = work(first, *steady, "training.steps=3", f"training.output_dir={folder}")
    said += work(then, "training.steps=6", resume=folder)
    assert not any(isinstance(one, Failure) for one in said), said
    ours, right = weights_of(folder), weights_of(never_stopped)
    assert apart(*(torch.cat([w[name].flatten() for name in right]) for w in (ours, right))) < 1e-5
    assert losses(folder) == pytest.approx(losses(never_stopped), rel=1e-5)


def test_sigterm_puts_an_evaluation_off(
    steady: list[str], never_stopped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On all processes, though one alone is told; it is made up for when the run goes on."""
    folder = tmp_path / "run"

    def work(rank: int) -> Any:
        class Told(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
                if rank == 1 and state.global_step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

        plain = Trainer.learn

        def learn_and_be_told(self: Trainer, start: Path | None) -> None:
            self.add_callback(Told())
            plain(self, start)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "learn", learn_and_be_told)
            train.run(overrides=[*steady, f"training.output_dir={folder}"], console=Console(file=io.StringIO()))

    assert {one.kind for one in both_raise(work)} == {"Terminated"}
    assert json.loads((folder / "checkpoints/checkpoint-3/open.json").read_text())["is_unjudged"]
    judged = [
        json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines() if "accuracy" in line
    ]
    assert judged == [0]

    def go_on(rank: int) -> Any:
        return train.run(resume=folder, console=Console(file=io.StringIO())).report

    said = in_processes(go_on)
    assert not any(isinstance(one, Failure) for one in said), said
    ours, right = weights_of(folder), weights_of(never_stopped)
    assert apart(*(torch.cat([w[name].flatten() for name in right]) for w in (ours, right))) < 1e-5
    logs = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (folder, never_stopped)
    ]
    first, second = ([record["step"] for record in log if "accuracy" in record] for log in logs)
    assert first == second


def both_raise(work: Callable[[int], Any]) -> list[Failure]:
    """What two processes raise."""
    found = in_processes(work)
    assert all(isinstance(one, Failure) for one in found), found
    return found


def test_what_differs_is_told_before_anything_is_loaded(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each check in turn, in one meeting of two processes; all of it is said by one of them."""
    plain = processes.versions

    def told(act: Callable[[], Any]) -> tuple[str, bool]:
        with pytest.raises(ValueError) as caught:
            act()
        return str(caught.value), distributed.is_first_to_say(str(caught.value))

    def work(rank: int) -> list[tuple[str, bool]]:
        distributed.join()
        said = [told(lambda: train.run(overrides=[*settings, f"training.steps={rank + 3}"]))]
        said.append(told(lambda: train.run(overrides=[*settings, "training.steps=-1"])))
        said.append(told(lambda: train.run(overrides=[*settings, *(["training.steps=-1"] if rank else [])])))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "versions", lambda: {**plain(), "peft": f"0.{rank}"})
            said.append(told(lambda: train.run(overrides=settings)))
        with pytest.MonkeyPatch.context() as patch:
            if rank:
                patch.chdir(elsewhere)
            said.append(told(lambda: train.run(overrides=[*settings, "training.output_dir=here"])))
        return said

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    found = in_processes(work)
    assert not any(isinstance(one, Failure) for one in found), found
    first, second = found
    for (ours, we), (theirs, they) in zip(first, second, strict=True):
        assert ours == theirs and we != they
    texts = [text for text, _ in first]
    assert "training.steps is 4 on process 1" in texts[0] and "and 3 on the main process" in texts[0]
    assert texts[1].startswith("The recipe has faults") and texts[2].startswith("Process 1 of 2 (")
    assert "peft is 0.1 on process 1" in texts[3]
    assert "training.output_dir" in texts[4] and "All machines must see one run folder" in texts[4]
    assert not (tmp_path / "here").exists() and not (tmp_path / "runs").exists()


def test_a_loss_that_is_no_number_ends_both(settings: list[str], tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        from glmtune.training import trainer

        plain, count = trainer.target_loss, iter(range(99))
        with pytest.MonkeyPatch.context() as patch:
            broken = rank == 1
            patch.setattr(
                trainer, "target_loss", lambda *a: plain(*a) * (float("nan") if next(count) == 2 and broken else 1.0)
            )
            more = ["training.eval_steps=1", "training.steps=4", "method.rank=4"]
            return train.run(overrides=[*settings, *more, f"training.output_dir={tmp_path / 'run'}"])

    first, second = both_raise(work)
    assert first == second and "The loss of step 3 is nan (examples" in first.text
    assert "The best weights before that are in" in first.text


def test_a_full_disk_ends_both(settings: list[str], tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        from glmtune.training import run_trainer

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_trainer, "save_weights", full)
            return train.run(overrides=[*settings, "method.rank=4", f"training.output_dir={tmp_path / 'run'}"])

    first, second = both_raise(work)
    assert first == second and "No space left on device" in first.text and "Make room" in first.text
    assert not list((tmp_path / "run/checkpoints").glob("checkpoint-*"))


def test_nobody_at_the_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in launched(1, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match=r"MASTER_ADDR=127.0.0.1 .*process 1 of 2 .*did not meet the others within 1 s"
    ):
        distributed.join(timedelta(seconds=1))
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ValueError, match=r"(?s)missing: .*MASTER_PORT.*Start with torchrun"):
        distributed.join(timedelta(seconds=1))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    yield lambda count: monkeypatch.setattr(processes, "visible_gpus", lambda: count)


def test_how_many_processes(gpus: Callable[[int], None]) -> None:
    for here, devices, count in [(0, "all", 1), (0, 3, 3), (1, "all", 1), (8, "all", 8), (8, 2, 2), (8, 8, 8)]:
        gpus(here)
        assert processes.count_processes(devices) == count  # type: ignore[arg-type]
    gpus(2)
    with pytest.raises(ValueError, match=r"training.devices=3: torch sees 2 GPUs here.*Set 2, or all"):
        processes.count_processes(3)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.dtype=float16", "model.dtype=float16 has its loss scaled"),
        ("training.optimizer=muon", "training.optimizer=muon needs whole weights. Use adamw"),
    ],
)
def test_what_is_not_divided(setting: str, told: str) -> None:
    recipe = load_recipe(None, ["training.sharding=full", setting])
    with pytest.raises(ValueError, match=f"training.sharding=full: {told}"):
        sharding.check_sharding(recipe)
    sharding.check_sharding(load_recipe(None, [setting]))
    with pytest.raises(ValueError, match=r"nano is stored by bitsandbytes, whose layers cannot be divided"):
        sharding.check_sharding(load_recipe(None, ["training.sharding=full"]), has_own_form=False)
    with pytest.raises(ValueError, match=r"training.cpu_offload=true: .*Add training.sharding=full"):
        sharding.check_sharding(load_recipe(None, ["training.cpu_offload=true"]))


def test_one_process_divides_nothing(settings: list[str]) -> None:
    with pytest.raises(ValueError, match=r"training.sharding=full: several processes divide the weights, and this is"):
        train.run(overrides=[*settings, "method.rank=4", "training.sharding=full"])


def test_a_script_is_one_process(settings: list[str]) -> None:
    with pytest.raises(ValueError, match=r"training.devices=2: .*torchrun --nproc-per-node 2"):
        train.run(overrides=[*settings, "method.rank=4", "training.devices=2"])

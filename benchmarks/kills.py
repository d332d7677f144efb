"""Tiny trainings that are killed (kill -9) at random moments and started again until they end, beside one that is not.

Some are of one process, others of two, of which either is killed; the other has to end by itself, as nobody ends it.
Each start is a fork of a process that has imported everything; charts are written, but blank, as to draw them takes
longer than to train. A share of the kills, `--aimed`, waits until a checkpoint is being written. After each kill all
that lies in the run folder is read; in the end weights, losses and the report are compared with those of the training
that was never stopped. Then what checkpoints cost, every 20 steps of nano.
"""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from matplotlib.figure import Figure
from recording import options, record
from rich.console import Console
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from glmtune import distributed
from glmtune.commands import train
from glmtune.config import load_recipe
from glmtune.files import WORKED_IN
from glmtune.libraries import quiet_libraries
from glmtune.models import loading
from glmtune.plan import prepare
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder
from glmtune.training.checkpoints import check_resumable, find_last, numbered

SIZES = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "inner_hidden_size": 64}
STEPS = 24
# Dropout draws random numbers, and losses are logged at other steps than checkpoints are written.
SETTINGS = (
    "task={operators: +, kinds: [integer], maximum: 5, style: direct, echo: false, held_out: 0.3}",
    "method={rank: 4, dropout: 0.1}",
    f"training={{steps: {STEPS}, batch_size: 4, logging_steps: 5, eval_steps: 3, learning_rate: 0.01}}",
    "evaluation={num_examples: 6, num_examples_during: 2}",
    "generation.max_new_tokens=6",
)
UNLIKE = ("training_seconds", "peak_memory")  # of two reports
AIMED = 0.25  # share of the kills that wait for a checkpoint to be written, where nothing else is said
LONGEST_WAIT = 0.01  # seconds after its folder was seen
LONGEST_LIFE = 60  # seconds that a process may go on once another of its training was killed
INTERVAL = 20  # steps between two checkpoints of nano


@dataclass
class Counts:
    """What happened to trainings, each of so many processes."""

    processes: int = 1
    trainings: int = 0
    kills: int = 0
    while_saving: int = 0
    while_writing_else: int = 0
    lost_steps: int = 0
    different_weights: int = 0
    different_reports: int = 0
    unreadable_files: int = 0
    left_hanging: int = 0
    failures: int = 0

    def add(self, other: Counts) -> None:
        for name, value in asdict(other).items():
            if name != "processes":
                setattr(self, name, getattr(self, name) + value)


def make_checkpoint(folder: Path) -> Path:
    """Write a ChatGLM-6B of some 30,000 random weights."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(
        loading.EMBEDDED["nano"], **SIZES, max_sequence_length=128, initializer_range=0.6
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(loading.EMBEDDED["nano"]).save_pretrained(folder)
    return folder


def leave_blank(figure: Figure, file: Any, format: str, **options: Any) -> None:
    """Stand in for `Figure.savefig`."""
    if format == "svg":
        file.write('<svg viewBox="0 0 1 1"></svg>')
    else:
        Path(file).write_bytes(b"blank")


def work(folder: Path, model: Path) -> None:
    """Train, or go on, until the end."""
    settings = [f"model.path={model}", *SETTINGS, f"training.output_dir={folder}"]
    train.run(overrides=settings, console=Console(file=io.StringIO()))


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(folder: Path, model: Path, log: Path, processes: int) -> list[int]:
    """Train in forks, which are told who they are as by a launcher; return their numbers."""
    port, children = free_port(), []
    for rank in range(processes):
        child = os.fork()
        if not child:
            train_as(rank, processes, port, folder, model, log)
        children.append(child)
    return children


def train_as(rank: int, processes: int, port: int, folder: Path, model: Path, log: Path) -> None:
    """Train as one of some processes, and end."""
    code = 1
    tqdm.set_lock(RLock())  # its own is shared by all forks, and stays locked where one is killed that holds it
    try:
        output = os.open(f"{log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if processes > 1:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ.update({name: str(value) for name, value in told.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        work(folder, model)
        distributed.together(lambda: None)  # nobody leaves before all have done
        time.sleep(0.0 if rank else 0.1 * (processes - 1))  # the main one keeps the store by which they met
        code = 0
    except BaseException as error:
        os.write(2, repr(error).encode())
    finally:
        os._exit(code)


def left_in(folder: Path) -> set[str]:
    """Return the names that somebody was writing on when he was killed."""
    return {found[1] for path in folder.rglob(".*") if (found := WORKED_IN.fullmatch(path.name))}


def run_until(children: list[int], folder: Path, seconds: float, saving: bool) -> tuple[list[int] | None, int, int]:
    """Let a training run, and kill one of its processes.

    Args:
        children: its processes.
        folder: its run folder.
        seconds: after which one is killed.
        saving: wait after that until a checkpoint is being written, and a moment.

    Returns:
        The exit codes, None if it was killed; the step of the last checkpoint that was seen; and how many processes did
        not end by themselves.
    """
    checkpoints, end, seen, codes = folder / "checkpoints", time.monotonic() + seconds, 0, {}
    while True:
        codes.update(ended(children, codes))
        if len(codes) == len(children) or any(codes.values()):
            hanging = end_all(children, codes)
            return [codes.get(child, 1) for child in children], seen, hanging
        names = os.listdir(checkpoints) if checkpoints.is_dir() else []
        seen = max([seen, *(int(name[11:]) for name in names if name.startswith("checkpoint-"))])
        if time.monotonic() >= end and (not saving or any(WORKED_IN.fullmatch(name) for name in names)):
            break
        time.sleep(0.0005 if saving else 0.002)
    if saving:
        time.sleep(random.uniform(0, LONGEST_WAIT))
    chosen = random.choice(children)
    codes.update(ended(children, codes))
    if chosen in codes:
        end_all(children, codes)
        return [codes.get(child, 1) for child in children], seen, 0
    os.kill(chosen, signal.SIGKILL)
    _, status = os.waitpid(chosen, 0)
    codes[chosen] = os.waitstatus_to_exitcode(status)
    return None, seen, end_all(children, codes)


def ended(children: list[int], known: dict[int, int]) -> dict[int, int]:
    """Return the exit codes of those that have ended since."""
    found = {}
    for child in children:
        if child not in known and (status := os.waitpid(child, os.WNOHANG))[0]:
            found[child] = os.waitstatus_to_exitcode(status[1])
    return found


def end_all(children: list[int], codes: dict[int, int]) -> int:
    """Wait for the others to end by themselves; end those that do not, and return how many these are."""
    until = time.monotonic() + LONGEST_LIFE
    while len(codes) < len(children) and time.monotonic() < until:
        codes.update(ended(children, codes))
        time.sleep(0.005)
    left = [child for child in children if child not in codes]
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return len(left)


def count_unreadable(folder: Path) -> int:
    """Read all files that have their names; return how many cannot be read."""
    count = 0
    for file in folder.rglob("*"):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".safetensors":
                load_file(file)
            elif file.suffix == ".yaml":
                load_recipe(file)
            elif file.name == "report.html":
                count += "</html>" not in file.read_text()
        except Exception:
            count += 1
    return count


def outcome(folder: Path) -> tuple[bytes, dict[str, Any], list[Any]]:
    """Return what a training ends with: weights, report, losses and scores on the way."""
    report = json.loads((folder / "report.json").read_text())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figures = [(one["step"], one.get("loss"), one.get("accuracy")) for one in log if "train_runtime" not in one]
    weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    return weights, {name: value for name, value in report.items() if name not in UNLIKE}, figures


def train_and_kill(
    place: Path, model: Path, seed: int, seconds: float, most: int, processes: int, aimed: float
) -> Counts:
    """Train once, killed up to so often, after 0.4 of the seconds that a training takes on average."""
    random.seed(seed)
    counts, folder, last = Counts(processes, trainings=1), place / f"run-{seed}", 0
    expected = outcome(place / "whole")
    while True:
        children = start(folder, model, place / f"{seed}.txt", processes)
        is_last = counts.kills >= most
        wait = 1e9 if is_last else random.expovariate(2.5 / seconds)
        codes, seen, hanging = run_until(children, folder, wait, not is_last and random.random() < aimed)
        counts.left_hanging += hanging
        if codes is not None:
            break
        if (folder / "report.json").is_file():  # which comes last: the training had ended, and its processes had not
            codes = [0]
            break
        counts.kills += 1
        left = left_in(folder)
        counts.while_saving += any(name.startswith("checkpoint-") for name in left)
        counts.while_writing_else += bool(left) and not any(name.startswith("checkpoint-") for name in left)
        counts.unreadable_files += count_unreadable(folder)
        found, damaged = find_last(folder / "checkpoints")
        counts.unreadable_files += len(damaged)
        check_resumable(folder / "checkpoints")
        step = next((number for number, path in numbered(folder / "checkpoints").items() if path == found), 0)
        counts.lost_steps += max(0, max(seen, last) - step)
        last = step
    if any(codes):
        counts.failures += 1
        for rank in range(processes):
            print((place / f"{seed}.txt.{rank}").read_text(), flush=True)
        return counts
    weights, report, figures = outcome(folder)
    counts.different_weights += weights != expected[0]
    counts.different_reports += (report, figures) != expected[1:]
    shutil.rmtree(folder)
    return counts


def kill(kills: int, seconds: float, workers: int, processes: int, aimed: float) -> tuple[Counts, float]:
    """Kill trainings, some at a time, so often or for so long; return the counts and the seconds it took."""
    counts = Counts(processes)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = make_checkpoint(place / "model")
        gc.freeze()  # what is imported stays, and is not searched for garbage by each start
        begun = time.monotonic()
        codes, _, _ = run_until(
            start(place / "whole", model, place / "whole.txt", processes), place / "whole", 1e9, False
        )
        took = time.monotonic() - begun
        assert codes is not None and not any(codes), (place / "whole.txt.0").read_text()
        begun = time.monotonic()
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            seed, waiting = 0, []
            while counts.kills < kills and time.monotonic() - begun < seconds:
                while len(waiting) < workers:
                    waiting.append(pool.apply_async(train_and_kill, (place, model, seed, took, 12, processes, aimed)))
                    seed += 1
                time.sleep(0.01)
                for done in [one for one in waiting if one.ready()]:
                    waiting.remove(done)
                    counts.add(done.get())
                    print(counts, f"after {time.monotonic() - begun:.0f} s", flush=True)
            for left in waiting:
                counts.add(left.get())
        return counts, time.monotonic() - begun


class Alternately(TrainerCallback):
    """Has every second of some stretches end with a checkpoint; notes what each took, and what checkpoints took."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.steps: list[float] = []
        self.saves: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step % INTERVAL == 0:
            self.steps.append(time.perf_counter() - self.begun)
            control.should_save = state.global_step // INTERVAL % 2 == 0
            self.begun = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.saves.append(time.perf_counter() - self.begun)
        self.begun = time.perf_counter()


def measure_overhead(stretches: int) -> dict[str, Any]:
    """Train nano; return what a checkpoint takes, and its share of the steps between two."""
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run")
        folder.path.mkdir()
        steps = stretches * INTERVAL + 1
        recipe = load_recipe(None, [f"training.steps={steps}", f"training.eval_steps={steps}"])
        plan = prepare(ResolvedModel(recipe), folder)
        base, _ = plan.model.load()
        model = plan.method.apply(base)
        trainer = plan.objective.trainer(plan, model, lambda _: {"accuracy": 0.0})
        noting = Alternately()
        trainer.add_callback(noting)
        trainer.run()
    took, save = statistics.median(noting.steps[1:]), statistics.median(noting.saves[:-1] or noting.saves)
    return {"seconds_of_20_steps": took, "seconds_of_a_checkpoint": save, "overhead": save / took}


def main() -> None:
    """Kill, compare, measure and record.

    Of one process in kills.json, of several in kills_of_N.json; where more than AIMED wait for a checkpoint, in
    kills_aimed.json.
    """
    chosen = options(__doc__, processes=1, kills=1000, seconds=3600, workers=2, stretches=4, aimed=str(AIMED))
    quiet_libraries()
    torch.set_num_threads(1)
    Figure.savefig = leave_blank  # type: ignore[method-assign, assignment]
    aimed = float(chosen.aimed)
    counts, took = kill(chosen.kills, chosen.seconds, chosen.workers, chosen.processes, aimed)
    row = {**asdict(counts), "seconds": took, "seconds_per_kill": took / max(1, counts.kills)}
    settings = {"kills_asked_for": chosen.kills, "workers": chosen.workers, "aimed": aimed}
    if aimed != AIMED:
        record("kills_aimed", settings, [row])
    elif chosen.processes == 1:
        record("kills", settings, [row], **measure_overhead(chosen.stretches))
    else:
        record(f"kills_of_{chosen.processes}", settings, [row])


if __name__ == "__main__":
    main()

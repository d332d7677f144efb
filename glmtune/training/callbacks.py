"""What happens beside the loop: the log file, the progress bar, saving by time, Ctrl-C and SIGTERM."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer, get_ident
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from glmtune.distributed import anywhere, is_main, most, world_size
from glmtune.files import unfollowed, write_text
from glmtune.runtime import UserError
from glmtune.terminal import say, to_json


class LogCallback(TrainerCallback):
    """Appends each record of the Trainer to `log.jsonl`, on the main process: losses, held-out scores, seconds.

    A resumed run goes on where its checkpoint left off: what was logged after that is dropped, the seconds add up.

    Raises:
        UserError: in an event, if the log cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.start = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not is_main():
            return
        kept = cut_log(self.path, state.global_step)
        self.start = time.perf_counter() - max((record["seconds"] for record in kept), default=0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # the last steps count, too
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not is_main():
            return
        record: dict[str, Any] = {"step": state.global_step, "seconds": round(time.perf_counter() - self.start, 1)}
        record |= {key.removeprefix("eval_"): value for key, value in (logs or {}).items()}
        if "ci95_low" in record:
            record[f"{args.metric_for_best_model}_ci95"] = [record.pop("ci95_low"), record.pop("ci95_high")]
        try:
            with open(self.path, "a", encoding="utf-8", opener=unfollowed) as file:
                file.write(as_line(record))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error


def cut_log(path: Path, step: int) -> list[dict[str, Any]]:
    """Take away what a log has after a step, summaries of earlier sittings too, and return the rest of its records."""
    lines = read_lines(path)
    kept = [record for record in records_of(lines) if record["step"] <= step]
    if [as_line(record) for record in kept] != lines:
        write_text(path, "".join(map(as_line, kept)))
    return kept


def mend_log(path: Path) -> None:
    """Take away what is no record of a log, as a stop leaves it in the middle of a line."""
    lines = read_lines(path)
    whole = [as_line(record) for line in lines if (record := record_of(line)) is not None]
    if len(whole) < len(lines) or not all(line.endswith("\n") for line in lines):
        write_text(path, "".join(whole))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a log, each with its end; none where there is no log."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []


def start_log(path: Path, result: dict[str, Any]) -> None:
    """Begin a log with what the judge says before training, as step 0."""
    write_text(path, as_line({"step": 0, "seconds": 0.0, **result}))


def as_line(record: dict[str, Any]) -> str:
    """Return a record as a line of the log."""
    return to_json(record) + "\n"


def records_of(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of a log, without summaries of earlier sittings and what is none, as a full disk leaves it."""
    for line in lines:
        record = record_of(line)
        if record is None or "train_runtime" in record:
            continue
        if isinstance(record.get("step"), int) and isinstance(record.get("seconds"), int | float):
            yield record


def record_of(line: str) -> dict[str, Any] | None:
    """Return what a line of a log holds; None if it is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


class ProgressBar(TrainerCallback):
    """A bar with steps, time left, loss and the latest held-out figure."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            smoothing=0.05,
            disable=not is_main(),
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        metric = args.metric_for_best_model
        judged = (f"eval_{metric}", "held-out", "{:.1%}" if metric == "accuracy" else "{:.4f}")
        for key, name, form in (("loss", "loss", "{:.4f}"), judged):
            if logs and key in logs:
                self.shown[name] = form.format(logs[key])
        if self.bar is not None:
            self.bar.set_postfix(self.shown)

    def close(self) -> None:
        """Leave the bar as it is, so that what is printed next has a line of its own."""
        if self.bar is not None:
            self.bar.close()


class Means(TrainerCallback, ExportableState):  # type: ignore[misc]
    """The means of what was measured since the last record of the log, as a checkpoint keeps it.

    What a step measures counts once it is made: one that is given up measures nothing.

    Args:
        names: of all that may be measured.
    """

    def __init__(self, names: Sequence[str]):
        self.names = [*names]
        self.sums, self.counts = [0.0] * len(self.names), [0] * len(self.names)
        self.measured: list[tuple[int, float, int]] = []  # by the step at hand: place, sum, count

    def add(self, figures: Mapping[str, float], counts: Mapping[str, int] | None = None) -> None:
        """Add figures of the step at hand, by name; with `counts`, they are sums of so many."""
        for name, value in figures.items():
            self.measured.append((self.names.index(name), float(value), 1 if counts is None else counts[name]))

    def take(self) -> dict[str, float]:
        """Return the means by name, and begin anew."""
        found = zip(self.names, self.sums, self.counts, strict=True)
        means = {name: total / count for name, total, count in found if count}
        self.sums, self.counts = [0.0] * len(self.names), [0] * len(self.names)
        return means

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {"names": self.names}, "attributes": {"sums": self.sums, "counts": self.counts}}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.measured = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for place, value, count in self.measured:
            self.sums[place] += value
            self.counts[place] += count
        self.measured = []


class SavingByTime(TrainerCallback):
    """Has a checkpoint written when the last one is some seconds old, by the clock of the main process."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.last = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if anywhere(is_main() and time.monotonic() - self.last >= self.seconds):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.last = time.monotonic()


class GivenUp(BaseException):
    """The step or the evaluation at hand would take longer than the machine has left."""


class InterruptCallback(TrainerCallback):
    """Ctrl-C and SIGTERM end the run after the step at hand, with a checkpoint; a second Ctrl-C ends it at once.

    After half of the grace that SIGTERM leaves, the step at hand is given up, or the evaluation; what several processes
    do together is not, as the others would wait. They begin no evaluation then.

    Args:
        grace_seconds: from SIGTERM to the end of the machine.

    Attributes:
        interrupted: the run is to end.
        terminated: by SIGTERM.
        may_give_up: nothing would be lost now but the step or the evaluation at hand.
    """

    def __init__(self, grace_seconds: float):
        self.grace_seconds = grace_seconds
        self.interrupted = self.terminated = self.may_give_up = self.is_late = False
        self.half = 0.0  # of the grace, as `time.monotonic` counts
        self.timer: Timer | None = None  # which sends SIGTERM once more then, so that whatever waits wakes up

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to Ctrl-C and SIGTERM while the block runs."""

        def note(number: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, previous[signal.SIGINT])
            if is_main():
                say("\nEnding after this step, with a checkpoint. Ctrl-C again ends at once.", error=True)

        def hurry(number: int, frame: Any) -> None:
            if self.terminated:
                return self.give_up() if time.monotonic() >= self.half else None
            self.interrupted = self.terminated = True
            self.half = time.monotonic() + self.grace_seconds / 2
            if world_size() == 1:
                self.timer = Timer(self.grace_seconds / 2, signal.pthread_kill, (main, signal.SIGTERM))
                self.timer.daemon = True
                self.timer.start()
            if is_main():
                say(f"\nTold to end (SIGTERM): saving within {self.grace_seconds:g} seconds.", error=True)

        main = get_ident()
        previous: dict[signal.Signals, Any] = {}
        try:
            for number, act in ((signal.SIGINT, note), (signal.SIGTERM, hurry)):
                previous[number] = signal.signal(number, act)
        except ValueError:  # not in the main thread, where no signal arrives
            yield
            return
        try:
            yield
        finally:
            if self.timer is not None:
                self.timer.cancel()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def give_up(self) -> None:
        """Give up what is at hand, or what comes next."""
        self.is_late = True
        if self.may_give_up:
            self.may_give_up = False
            raise GivenUp

    @contextmanager
    def giving_up(self, may: bool) -> Iterator[None]:
        """Say what may be given up: nothing while the block runs, or all of it."""
        before, self.may_give_up = self.may_give_up, may
        try:
            if may and self.is_late:
                raise GivenUp
            yield
        finally:
            self.may_give_up = before

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if world_size() > 1:
            return
        if self.terminated:  # since the last step, which is the one to be saved
            raise GivenUp
        self.may_give_up = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.may_give_up = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # A signal reaches processes in different steps; one that comes meanwhile counts at the end of the next step.
        told = most(2 if self.terminated else int(self.interrupted))
        if told:
            self.interrupted, self.terminated = True, told == 2
            control.should_save = True
            control.should_training_stop = True

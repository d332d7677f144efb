"""What happens beside the loop: the log file, the progress bar, Ctrl-C."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glmtune.distributed import anywhere, is_main
from glmtune.files import replacing, unfollowed
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
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        kept = [record for record in records_of(lines) if record["step"] <= state.global_step]
        if len(kept) < len(lines):
            with replacing(self.path) as temporary:
                temporary.write_text("".join(map(as_line, kept)), encoding="utf-8")
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


def start_log(path: Path, result: dict[str, Any]) -> None:
    """Begin a log with what the judge says before training, as step 0."""
    with open(path, "w", encoding="utf-8", opener=unfollowed) as file:
        file.write(as_line({"step": 0, "seconds": 0.0, **result}))


def as_line(record: dict[str, Any]) -> str:
    """Return a record as a line of the log."""
    return to_json(record) + "\n"


def records_of(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of a log, without summaries of earlier sittings and what is none, as a full disk leaves it."""
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or "train_runtime" in record:
            continue
        if isinstance(record.get("step"), int) and isinstance(record.get("seconds"), int | float):
            yield record


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


class InterruptCallback(TrainerCallback):
    """Ctrl-C ends the run after the step at hand, with a checkpoint; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to Ctrl-C while the block runs."""

        def note(signal_number: int, frame: Any) -> None:
            if is_main():
                say("\nEnding after this step, with a checkpoint. Ctrl-C again ends at once.", error=True)
            self.interrupted = True
            signal.signal(signal.SIGINT, previous)

        previous = signal.getsignal(signal.SIGINT)
        try:
            signal.signal(signal.SIGINT, note)
        except ValueError:  # not in the main thread, where no Ctrl-C arrives
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.interrupted = anywhere(self.interrupted)  # a signal reaches processes in different steps
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

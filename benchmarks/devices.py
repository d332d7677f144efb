"""Gradients of several processes against those of one: the same steps of nano in fp32, by each method.

Each number of processes is started by torchrun: on GPUs where there are enough of them (NCCL), else on the CPU (gloo).
They work with the whole model each (DDP), and with a share of the weights (FSDP2). A row tells how far the gradients of
the last step, clipped as the optimizer sees them, and the weights that were saved are from those of one process,
relative to their size; the share of the weights that the main process keeps; and the seconds of a step.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from recording import options, record
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from glmtune import distributed
from glmtune.commands import train
from glmtune.training import sharding
from glmtune.training.trainer import Trainer

METHODS = {
    "lora": [],
    "ptuning_v2": ["method.name=ptuning_v2", "method.num_virtual_tokens=16"],
    "freeze": ["method.name=freeze"],
    "full": ["method.name=full"],
}
WAYS = {"DDP": [], "FSDP2": ["training.sharding=full"]}
SETTINGS = [
    "model.dtype=float32",
    "training.learning_rate=0.0001",  # by larger steps, differences of a rounding grow from step to step
    "training.gradient_accumulation_steps=4",
    "training.logging_steps=1",
    "task.style=direct",
    "task.kinds=[integer]",
    "evaluation.num_examples=4",
    "evaluation.num_examples_during=1",
]


class Keeper(TrainerCallback):
    """Keeps the gradients of the last step, and the seconds from the second step on: the first one warms up."""

    def __init__(self, trainer: Trainer, file: Path):
        self.trainer, self.file, self.seconds, self.start = trainer, file, 0.0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.seconds += (time.perf_counter() - self.start) * (state.global_step > 0)
        if state.global_step + 1 < state.max_steps:
            return
        weights = self.trainer.trained_weights()
        grads = sharding.whole_weights({n: weight.grad for n, weight in weights.items() if weight.grad is not None})
        if distributed.is_main():
            told = {
                "seconds": json.dumps(self.seconds / (state.max_steps - 1)),
                "share": json.dumps(sharding.local_share(self.trainer.unwrapped)),
            }
            save_file(grads, self.file, told)


def work(folder: Path, settings: list[str]) -> None:
    """Train by each method as one of the processes that there are."""
    plain = Trainer.learn

    for name, more in METHODS.items():
        file = folder / f"{name}.safetensors"

        def learn(self: Trainer, start: Path | None, file: Path = file) -> None:
            self.add_callback(Keeper(self, file))
            plain(self, start)

        Trainer.learn = learn  # type: ignore[method-assign]
        train.run(
            overrides=[*SETTINGS, *more, *settings, f"training.output_dir={folder / name}"],
            console=Console(file=io.StringIO()),
        )


def start(count: int, folder: Path, settings: list[str]) -> None:
    """Do that with so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    arguments = [__file__, "--worker", str(folder), *settings]
    command = [*launcher, *arguments] if count > 1 else [sys.executable, *arguments]
    subprocess.run(command, check=True)


def vector(folder: Path) -> torch.Tensor:
    """The weights that a run has saved."""
    [file] = [file for place in ("adapter", "model") for file in (folder / place).glob("*.safetensors")]
    return torch.cat([weight.flatten() for _, weight in sorted(load_file(file).items())])


def gradient(file: Path) -> torch.Tensor:
    """What `Keeper` kept."""
    return torch.cat([grad.flatten() for _, grad in sorted(load_file(file).items())])


def told(file: Path) -> dict[str, float]:
    """The seconds of a step and the share of the weights that stand beside it."""
    with safe_open(file, framework="pt") as opened:
        return {name: float(value) for name, value in opened.metadata().items()}


def apart(ours: torch.Tensor, right: torch.Tensor) -> float:
    """How far two vectors are apart, relative to the length of the second."""
    return float((ours - right).norm() / right.norm())


def main() -> None:
    """Measure, and write `results/devices_cpu.json` or `results/devices_gpu.json`."""
    chosen = options(__doc__, processes="1 2 4", steps=4, batch_size=4)
    gpus = torch.cuda.device_count()
    counts = [count for count in map(int, chosen.processes.split()) if count <= gpus or not gpus]
    settings = [f"training.steps={chosen.steps}", f"training.batch_size={chosen.batch_size}"]
    ways = [(count, how) for count in counts for how in (WAYS if count > 1 else ["alone"])]
    with tempfile.TemporaryDirectory() as place:
        rows = []
        one = Path(place) / "1 alone"
        for count, how in ways:
            folder = Path(place) / f"{count} {how}"
            folder.mkdir()
            start(count, folder, [*settings, *WAYS.get(how, [])])
            for name in METHODS:
                file = folder / f"{name}.safetensors"
                facts = told(file)
                rows.append(
                    {
                        "method": name,
                        "processes": count,
                        "how": how,
                        "gradients_apart": apart(gradient(file), gradient(one / file.name)),
                        "weights_apart": apart(vector(folder / name), vector(one / name)),
                        "local_share": facts["share"],
                        "step_seconds": facts["seconds"],
                    }
                )
    worst = max(row["gradients_apart"] for row in rows)
    record("devices_gpu" if gpus else "devices_cpu", {**vars(chosen), "model": "nano"}, rows, worst_gradients=worst)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()

"""Training tokens per second: ours against transformers' Trainer with peft and its default padding.

Same model, same LoRA, same examples, same number of steps, in turns within one run. The plain loop gets its examples
tokenised beforehand; ours draws and tokenises while it trains. Tokens are those of the examples, without padding.

`--real 1` does so with SmolLM2-135M-Instruct in bfloat16, each loop in a process of its own, whose CPU time and peak of
resident memory are told; a few steps of 8 are enough there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from real_model import real_model
from recording import options, record
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, TrainingArguments
from transformers import Trainer as PlainTrainer
from transformers.utils import logging

from glmtune import distributed, registry
from glmtune.config import Recipe, load_recipe
from glmtune.data import EncodedDraws, examples_of
from glmtune.data.encoder import Encoder
from glmtune.methods import Method
from glmtune.models import loading
from glmtune.runtime import RunFolder
from glmtune.tasks import Task
from glmtune.training.trainer import make_trainer

Clock = Callable[[], float]


def train_ours(recipe: Recipe, task: Task, folder: Path, clock: Clock = time.perf_counter) -> float:
    """Seconds of our loop by a clock, without evaluation."""
    model, tokenizer = loading.load_model(recipe.model)
    method: Method = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
    steps, batch_size = recipe.training.steps or 1, recipe.training.batch_size
    dataset = EncodedDraws(examples_of(task, "train", steps * batch_size, recipe.seed), Encoder(tokenizer))
    model = method.apply(model)
    start = clock()
    make_trainer(model, tokenizer, dataset, recipe, steps, no_judge, RunFolder(folder)).run()
    return clock() - start


def no_judge(model: Any) -> dict[str, Any]:
    """The one evaluation at the end costs nothing."""
    return {"accuracy": 0.0, "accuracy_ci95": [0.0, 1.0], "n": 0}


def train_plain(recipe: Recipe, rows: list[Any], folder: Path, clock: Clock = time.perf_counter) -> float:
    """Seconds of a plain Trainer loop by a clock, on the same examples."""
    place = loading.locate(recipe.model.path)
    dtype = loading.dtype_of(recipe.model, loading.load_config(place), distributed.local_device())
    model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    tokenizer = loading.load_tokenizer(place)
    settings: Any = recipe.method
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.target_modules)
    tokenizer.padding_side = "right"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.training.steps or 1,
        per_device_train_batch_size=recipe.training.batch_size,
        learning_rate=recipe.training.learning_rate,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10**6,
        remove_unused_columns=False,
        bf16=recipe.model.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = PlainTrainer(
        model=get_peft_model(model, config),
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    start = clock()
    trainer.train()
    return clock() - start


def examples_for(recipe: Recipe) -> tuple[Task, list[Any], int]:
    """The task, its examples as tokens, and how many tokens these are; the recipe gets its learning rate."""
    task: Task = registry.find("glmtune.tasks", recipe.task.name)(recipe.task, recipe.data)
    method: Method = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
    folder = loading.locate(recipe.model.path)
    recipe.training.learning_rate = method.learning_rate(loading.load_config(folder).hidden_size)
    count = (recipe.training.steps or 1) * recipe.training.batch_size
    dataset = EncodedDraws(examples_of(task, "train", count, recipe.seed), Encoder(loading.load_tokenizer(folder)))
    encoded = [dataset[i] for i in range(len(dataset))]
    return task, encoded, sum(len(row["input_ids"]) for row in encoded)


def measure(who: str, overrides: list[str]) -> dict[str, float]:
    """One loop in this process: tokens for each second of a CPU, and the peak of resident memory in GiB."""
    recipe = load_recipe(None, overrides)
    task, encoded, tokens = examples_for(recipe)
    with tempfile.TemporaryDirectory() as folder:
        if who == "ours":
            seconds = train_ours(recipe, task, Path(folder), time.process_time)
        else:
            seconds = train_plain(recipe, encoded, Path(folder), time.process_time)
    status = Path("/proc/self/status").read_text()
    return {"tokens_per_cpu_s": tokens / seconds, "peak_gib": int(status.partition("VmHWM:")[2].split()[0]) / 2**20}


def started(who: str, overrides: list[str]) -> dict[str, float]:
    """The same in a process of its own; what it printed last."""
    command = [sys.executable, __file__, "--loop", who, *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{who}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare_real(overrides: list[str], repeats: int, settings: dict[str, Any]) -> None:
    """Measure both on the real model, in turns."""
    overrides += [f"model.path={real_model()}", "model.dtype=bfloat16"]
    rows = []
    for repeat in range(repeats):
        row: dict[str, Any] = {"repeat": repeat}
        for who in ("ours", "plain"):
            row |= {f"{who}_{name}": figure for name, figure in started(who, overrides).items()}
        row["speed"] = row["ours_tokens_per_cpu_s"] / row["plain_tokens_per_cpu_s"]
        rows.append(row | {"peak": row["ours_peak_gib"] / row["plain_peak_gib"]})
        middle = {f"median_{name}": sorted(row[name] for row in rows)[len(rows) // 2] for name in ("speed", "peak")}
        record("train_throughput_real", settings, rows, **middle)


def main() -> None:
    """Measure both in turns."""
    chosen = options(__doc__, steps=150, batch_size=32, repeats=3, real=0)
    overrides = [f"training.steps={chosen.steps}", f"training.batch_size={chosen.batch_size}"]
    overrides += ["training.logging_steps=1000000"]
    if chosen.real:
        compare_real(overrides, chosen.repeats, vars(chosen))
        return
    quiet()
    recipe = load_recipe(None, overrides)
    task, encoded, tokens = examples_for(recipe)
    rows = []
    for repeat in range(chosen.repeats):
        with tempfile.TemporaryDirectory() as folder:
            ours = tokens / train_ours(recipe, task, Path(folder))
            plain = tokens / train_plain(recipe, encoded, Path(folder))
        rows.append({"repeat": repeat, "ours_tokens_per_s": ours, "plain_tokens_per_s": plain, "ratio": ours / plain})
    ratios = sorted(row["ratio"] for row in rows)
    record("train_throughput", vars(chosen) | {"tokens": tokens}, rows, median_ratio=ratios[len(ratios) // 2])


def quiet() -> None:
    """Keep the libraries silent."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    if "--loop" in sys.argv:
        quiet()
        print(json.dumps(measure(sys.argv[2], sys.argv[3:])))
    else:
        main()

"""Public data sets from file to report, and how fast records are encoded, packed and kept.

`--data` names a folder with alpaca_zh.json, belle_eval.jsonl, belle_seed_tasks.jsonl, ape210k_mwp.jsonl, gsm8k.jsonl
and math23k_trainset.sample.json, as published; `--tokenizer` one with ChatGLM-6B's own ice_text.model, by which
encoding is timed. Each file is inspected, then all of nano is tuned on it (`full`) by one command, `glmtune train`,
and judged on what was held out before and after. nano knows no Chinese and takes 512 tokens: what it learns here is
the form of an answer, and the figures say so. Real files of records are faulty: these are skipped, and what is too
long is dropped.

Packing is timed by steps of the same loop in turns: packed, padded in batches of similar length, and padded in batches
as they come. Tokens are those of the records, without padding.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from huggingface_hub import constants
from recording import options, record
from torch.utils.data import DataLoader
from transformers.utils import logging

from glmtune import registry
from glmtune.commands import inspect, train
from glmtune.config import DataSettings, Recipe, load_recipe
from glmtune.data import EncodedDataset, LengthGroupedSampler
from glmtune.data.collation import Collator
from glmtune.data.encoder import Encoder
from glmtune.data.table import encode_records
from glmtune.evaluation.decision import decide
from glmtune.examples import Example
from glmtune.models import loading
from glmtune.models.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.records import read_examples
from glmtune.runtime import RunFolder
from glmtune.training.trainer import make_trainer

# What each is asked for beside what all are.
FILES: dict[str, list[str]] = {
    "alpaca_zh.json": ["generation.max_new_tokens=192", "data.packing=true"],
    "belle_eval.jsonl": ["generation.max_new_tokens=192", "task.held_out=0.2"],
    "belle_seed_tasks.jsonl": ["generation.max_new_tokens=192", "task.held_out=0.3"],
    "ape210k_mwp.jsonl": ["generation.max_new_tokens=48"],
    "gsm8k.jsonl": ["generation.max_new_tokens=256", "task.held_out=0.1"],
    "math23k_trainset.sample.json": ["generation.max_new_tokens=48", "task.held_out=0.4"],
}
MANY = 264_000  # records, of which a twentieth is held out: 250,000 are learned
TIMED = 4000  # records by which encoding is timed


def from_file_to_report(file: Path, steps: int, folder: Path) -> dict[str, Any]:
    """Inspect a file, tune nano on it, and tell what came out."""
    overrides = ["data.on_error=skip", "data.too_long=drop", "training.batch_size=16", *FILES[file.name]]
    copy = folder / file.name  # what is skipped is written beside it
    copy.write_bytes(file.read_bytes())
    seen = inspect.run([str(copy)], overrides=overrides)
    settings = [
        *("task.name=instructions", f"task.file={copy}", f"training.output_dir={folder / file.stem}"),
        *(f"training.steps={steps}", "evaluation.forgetting=true", "evaluation.num_examples=200", *overrides),
        *("method.name=full", "evaluation.num_examples_during=16", f"training.eval_steps={steps // 2}"),
    ]
    start = time.perf_counter()
    done = train.run(None, settings)
    log = [json.loads(line) for line in done.folder.log.read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    before, after = done.report["before"], done.report["after"]
    return {
        "file": file.name,
        "format": seen["format"],
        "records": seen["records"],
        "faults": len(seen["faults"]),
        "duplicates": seen["duplicates"],
        "too_long": seen["tokens"]["too_long"],
        "held_out_asked": after["n"],
        "exact_before": before["accuracy"],
        "exact_after": after["accuracy"],
        "rouge_l_before": before["rouge-l"],
        "rouge_l_after": after["rouge-l"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "verdict": decide(done.report)[0],
        "forgotten": done.report["forgetting"]["level"],
        "seconds": time.perf_counter() - start,
        "report_html": (done.folder.path / "report.html").stat().st_size,
    }


def encoding_speed(file: Path, tokenizer: Any) -> dict[str, float]:
    """Records a second, encoded and kept, then taken from what is kept."""
    examples = read_examples(str(file), DataSettings(on_error="skip"))
    examples = [examples[place % len(examples)] for place in range(TIMED)]
    encoder, speeds = Encoder(tokenizer, 2048), {}
    for name in ("first", "kept"):
        start = time.perf_counter()
        table = encode_records(examples, encoder, DataSettings(too_long="truncate"), file.name)
        for index in range(len(table)):
            table[index]
        speeds[name] = len(examples) / (time.perf_counter() - start)
    return {f"encoding_{name}_records_per_s": speed for name, speed in speeds.items()}


def packing_speed(file: Path, steps: int, batch_size: int, repeats: int) -> dict[str, float]:
    """Real tokens a second of the loop by how its batches are laid out, the median of some runs of each, in turns."""
    tokenizer = loading.load_tokenizer(loading.locate("nano"))
    settings = DataSettings(on_error="skip", too_long="drop")
    examples = read_examples(str(file), settings)
    table = encode_records(examples, Encoder(tokenizer, 512), settings, file.name)
    speeds: dict[str, list[float]] = {"packed": [], "grouped": [], "padded": []}
    for _ in range(repeats):
        for name, found in speeds.items():
            found.append(loop_speed(name, table, steps, batch_size))
    median = {name: sorted(found)[len(found) // 2] for name, found in speeds.items()}
    return {f"{name}_tokens_per_s": speed for name, speed in median.items()} | {
        "packed_against_padded": median["packed"] / median["padded"],
        "packed_against_grouped": median["packed"] / median["grouped"],
    }


def loop_speed(name: str, table: EncodedDataset, steps: int, batch_size: int) -> float:
    """Tokens a second of one run, loading of the model left out."""
    recipe = load_recipe(
        None,
        [
            *(f"training.steps={steps}", f"training.batch_size={batch_size}", "training.learning_rate=1e-3"),
            *("training.logging_steps=1000000", f"data.packing={str(name == 'packed').lower()}"),
        ],
    )
    chosen = Chosen(table, steps * batch_size, name)
    model, tokenizer = loading.load_model(recipe.model)
    model = registry.find("glmtune.methods", recipe.method.name)(recipe.method).apply(model)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        make_trainer(model, tokenizer, chosen, recipe, steps, no_judge, RunFolder(folder)).run()
        return chosen.tokens / (time.perf_counter() - start)


class Chosen(EncodedDataset):
    """As many records as the steps take, from anywhere in the table; `padded` hides their lengths from the sampler."""

    def __init__(self, table: EncodedDataset, count: int, name: str):
        rng = random.Random(0)
        self.table, self.places = table, [rng.randrange(len(table)) for _ in range(count)]
        self.hides = name == "padded"
        self.tokens = sum(map(table.length, self.places))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        return {**self.table[self.places[index]], "record": index}

    def length(self, index: int) -> int:
        """Tokens of a record; the same for all where that is hidden."""
        return 0 if self.hides else self.table.length(self.places[index])


def no_judge(model: Any) -> dict[str, Any]:
    """The one evaluation at the end costs nothing."""
    return {"accuracy": 0.0, "accuracy_ci95": [0.0, 1.0], "n": 0}


def memory_of_many(folder: str) -> None:
    """Print what reading, encoding and going through many records takes, in bytes of resident memory at most."""
    process, peaks = psutil.Process(), [0]
    tokenizer = loading.load_tokenizer(loading.locate("nano"))
    started = process.memory_info().rss
    rng = random.Random(0)
    file = Path(folder, "many.jsonl")
    with file.open("w", encoding="utf-8") as stream:
        for number in range(MANY):
            digits = "".join(rng.choices("0123456789", k=95))
            stream.write(json.dumps({"prompt": f"{number}:{digits}", "target": digits[::-1]}) + "\n")
    recipe: Recipe = load_recipe(None, ["task.name=instructions", f"task.file={file}"])
    task = registry.find("glmtune.tasks", "instructions")(recipe.task, recipe.data)

    def note(*_: Any) -> None:
        peaks.append(process.memory_info().rss)

    examples: list[Example] = task.records("train")
    note()
    start = time.perf_counter()
    table = encode_records(examples, Encoder(tokenizer, 512), recipe.data, "many.jsonl")
    encoding = time.perf_counter() - start
    note()
    sampler = LengthGroupedSampler(table, 32, 0)
    loader: Any = DataLoader(table, 32, sampler=sampler, collate_fn=Collator(tokenizer.pad_token_id))
    start, tokens = time.perf_counter(), 0
    for batch in loader:
        tokens += int(batch["attention_mask"].sum())
    note()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "records": len(table),
                "tokens_per_record": tokens / len(table),
                "start_gib": started / 2**30,
                "peak_gib": max(peak, *peaks) / 2**30,
                "encoding_s": encoding,
                "one_epoch_of_batches_s": time.perf_counter() - start,
            }
        )
    )


def in_a_process(function: Callable[[str], None], folder: str) -> dict[str, Any]:
    """What a function of this file prints, in a process whose memory is its own."""
    command = [sys.executable, __file__, function.__name__, folder]
    environment = {**os.environ, "HF_HOME": folder}  # where nothing was kept before
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """All of it."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = options(__doc__, data="", tokenizer="", steps=600, speed_steps=30, batch_size=16, repeats=3)
    data = Path(chosen.data)
    with tempfile.TemporaryDirectory() as name:
        constants.HF_HOME = name  # nothing was kept before
        folder = Path(name)
        summary: dict[str, Any] = {
            "packing": packing_speed(data / "alpaca_zh.json", chosen.speed_steps, chosen.batch_size, chosen.repeats)
        }
        if chosen.tokenizer:
            tokenizer = ChatGLMTokenizer(Path(chosen.tokenizer, "ice_text.model"))
            summary["encoding"] = encoding_speed(data / "alpaca_zh.json", tokenizer)
        summary["many_records"] = in_a_process(memory_of_many, name)
        rows = []
        for file in FILES:
            rows.append(from_file_to_report(data / file, chosen.steps, folder))
            print(rows[-1], flush=True)
    settings = {"steps": chosen.steps, "batch_size": chosen.batch_size, "speed_steps": chosen.speed_steps}
    record("data", settings, rows, **summary)


if __name__ == "__main__":
    if sys.argv[1:2] == [memory_of_many.__name__]:
        memory_of_many(sys.argv[2])
    else:
        main()

"""Training tokens per second: ours against transformers' Trainer with peft and its default padding.

Same model, same LoRA, same examples, same number of steps, in turns within one run. The plain loop gets its examples
tokenised beforehand; ours draws and tokenises while it trains. Tokens are those of the examples, without padding.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from recording import options, record
from transformers import DataCollatorForSeq2Seq, TrainingArguments
from transformers import Trainer as PlainTrainer
from transformers.utils import logging

from glmtune import registry
from glmtune.config import Recipe, load_recipe
from glmtune.data import EncodedDraws, examples_of
from glmtune.data.encoder import Encoder
from glmtune.methods import Method
from glmtune.models import loading
from glmtune.runtime import RunFolder
from glmtune.tasks import Task
from glmtune.training.trainer import make_trainer


def train_ours(recipe: Recipe, task: Task, folder: Path) -> float:
    """Seconds of our loop, without evaluation."""
    model, tokenizer = loading.load_model(recipe.model)
    method: Method = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
    steps, batch_size = recipe.training.steps or 1, recipe.training.batch_size
    dataset = EncodedDraws(examples_of(task, "train", steps * batch_size, recipe.seed), Encoder(tokenizer))
    model = method.apply(model)
    start = time.perf_counter()
    make_trainer(model, tokenizer, dataset, recipe, steps, no_judge, RunFolder(folder)).run()
    return time.perf_counter() - start


def no_judge(model: Any) -> dict[str, Any]:
    """The one evaluation at the end costs nothing."""
    return {"accuracy": 0.0, "accuracy_ci95": [0.0, 1.0], "n": 0}


def train_plain(recipe: Recipe, rows: list[Any], folder: Path) -> float:
    """Seconds of a plain Trainer loop on the same examples."""
    model, tokenizer = loading.load_model(recipe.model)
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
    )
    trainer = PlainTrainer(
        model=get_peft_model(model, config),
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def main() -> None:
    """Measure both in turns."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = options(__doc__, steps=150, batch_size=32, repeats=3)
    overrides = [f"training.steps={chosen.steps}", f"training.batch_size={chosen.batch_size}"]
    recipe = load_recipe(None, [*overrides, "training.logging_steps=1000000"])
    task: Task = registry.find("glmtune.tasks", recipe.task.name)(recipe.task, recipe.data)
    method: Method = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
    config = loading.load_config(loading.locate(recipe.model.path))
    recipe.training.learning_rate = method.learning_rate(config.hidden_size)
    tokenizer = loading.load_tokenizer(loading.locate(recipe.model.path))
    dataset = EncodedDraws(
        examples_of(task, "train", chosen.steps * chosen.batch_size, recipe.seed), Encoder(tokenizer)
    )
    encoded = [dataset[i] for i in range(len(dataset))]
    tokens = sum(len(row["input_ids"]) for row in encoded)
    rows = []
    for repeat in range(chosen.repeats):
        with tempfile.TemporaryDirectory() as folder:
            ours = tokens / train_ours(recipe, task, Path(folder))
            plain = tokens / train_plain(recipe, encoded, Path(folder))
        rows.append({"repeat": repeat, "ours_tokens_per_s": ours, "plain_tokens_per_s": plain, "ratio": ours / plain})
    ratios = sorted(row["ratio"] for row in rows)
    record("train_throughput", vars(chosen) | {"tokens": tokens}, rows, median_ratio=ratios[len(ratios) // 2])


if __name__ == "__main__":
    main()

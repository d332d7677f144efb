"""A small subclass of transformers' Trainer and the run that it makes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainingArguments
from transformers import Trainer as TransformersTrainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from glmtune.config import Recipe
from glmtune.data import EncodedDataset, LengthGroupedSampler
from glmtune.data.collation import Collator
from glmtune.methods import Model
from glmtune.models import choose_dtype
from glmtune.training.callbacks import InterruptCallback, LogCallback, ProgressBar

METRIC = "exact_match"
# Adam's best learning rate falls with the width of the model (Yang et al. 2022, https://arxiv.org/abs/2203.03466).
# 0.4 gives 3e-3 for nano, where it was measured (docs/log.md), and 1e-4 for ChatGLM-6B, as is customary there.
RATE_TIMES_WIDTH = 0.4
Judge = Callable[[Model], dict[str, Any]]  # scores a model on held-out examples


class Trainer(TransformersTrainer):
    """transformers' loop with batches of similar length, judged by what the model answers, not by its loss.

    The loss is a mean over the target tokens of a whole optimiser step, because the model receives
    `num_items_in_batch`; micro-batches, padding and accumulation cannot change it.
    """

    def __init__(self, judge: Judge, **kwargs: Any):
        super().__init__(**kwargs)
        self.judge = judge

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        dataset = train_dataset or self.train_dataset
        assert isinstance(dataset, EncodedDataset)
        return LengthGroupedSampler(dataset, step, self.args.data_seed or self.args.seed)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the model on held-out examples by greedy decoding."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        start = time.perf_counter()
        model.eval()
        result = self.judge(model)
        model.train(was_training)
        metrics = {f"eval_{METRIC}": result[METRIC], "eval_seconds": round(time.perf_counter() - start, 2)}
        low, high = result[f"{METRIC}_ci95"]
        self.log({**metrics, "eval_ci95_low": low, "eval_ci95_high": high, "eval_n": result["n"]})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def default_learning_rate(model: Model) -> float:
    """Peak learning rate where the recipe names none."""
    return RATE_TIMES_WIDTH / model.config.hidden_size


def training_arguments(recipe: Recipe, steps: int, folder: Path, model: Model) -> TrainingArguments:
    """transformers' form of the recipe's settings, for `steps` optimiser steps.

    What is trained is fp32; on a 16-bit base the computation is autocast to its precision.
    """
    device = model.device
    dtype = choose_dtype(recipe.model.dtype, device)
    settings = recipe.training
    eval_steps = settings.eval_steps or max(1, -(-steps // 5))
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate or default_learning_rate(model),
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=round(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16 and device.type == "cuda",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        save_total_limit=settings.save_total_limit,
        load_best_model_at_end=True,
        metric_for_best_model=METRIC,
        greater_is_better=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        use_cpu=device.type == "cpu",
    )


def fit(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    dataset: EncodedDataset,
    recipe: Recipe,
    steps: int,
    judge: Judge,
    log_path: Path,
    checkpoints: Path,
    resume: bool = False,
) -> Trainer:
    """Train, keeping the best weights by held-out exact match; the model ends with them.

    Args:
        model: with a method applied.
        dataset: examples to learn.
        steps: optimiser steps in all, also when resuming.
        judge: scores the model on held-out examples.
        log_path: `log.jsonl`, appended to.
        checkpoints: folder of resumable checkpoints.
        resume: go on from the last checkpoint.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    model.config.use_cache = False
    interrupt = InterruptCallback()
    callbacks = [LogCallback(log_path), ProgressBar(), interrupt]
    if recipe.training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    trainer = Trainer(
        judge=judge,
        model=model,
        args=training_arguments(recipe, steps, checkpoints, model),
        train_dataset=dataset,
        eval_dataset=dataset,  # unused: `evaluate` asks the judge; the Trainer wants one all the same
        data_collator=Collator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    with interrupt.listening():
        trainer.train(resume_from_checkpoint=resume)
    if interrupt.interrupted:
        raise KeyboardInterrupt
    model.config.use_cache = True
    return trainer

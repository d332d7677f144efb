"""A small subclass of transformers' Trainer and the run that it makes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainerState, TrainingArguments
from transformers import Trainer as TransformersTrainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from glmtune.config import Recipe
from glmtune.data import EncodedDataset, LengthGroupedSampler
from glmtune.data.collation import Collator
from glmtune.methods import Model
from glmtune.models import choose_dtype
from glmtune.runtime import UserError
from glmtune.training.callbacks import InterruptCallback, LogCallback, ProgressBar

METRIC = "exact_match"
# Adam's best learning rate falls with the width of the model (Yang et al. 2022, https://arxiv.org/abs/2203.03466).
# 0.256 gives 2e-3 for nano, where it was measured (docs/log.md), and 6e-5 for ChatGLM-6B.
RATE_TIMES_WIDTH = 0.256
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
        metrics = {f"eval_{METRIC}": result[METRIC], "eval_duration": round(time.perf_counter() - start, 2)}
        low, high = result[f"{METRIC}_ci95"]
        self.log({**metrics, "eval_ci95_low": low, "eval_ci95_high": high, "eval_n": result["n"]})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if result[METRIC] == self.state.best_metric:  # of equals the last is kept: it has learned longest
            self.state.best_global_step = self.state.global_step
        return metrics

    def take_best(self, state: TrainerState) -> None:
        """Load the best weights of a run that has ended already."""
        self.state = state
        state.best_model_checkpoint = str(Path(str(self.args.output_dir)) / f"checkpoint-{state.best_global_step}")
        self._load_best_model()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the base class does, but without a half-written checkpoint where the disk is full.

        Raises:
            UserError: it cannot be written.
        """
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = Path(str(self.args.output_dir))
            shutil.rmtree(folder / f"checkpoint-{self.state.global_step}", ignore_errors=True)
            free = shutil.disk_usage(folder).free // 2**20
            raise UserError(
                f"{folder}: the checkpoint of step {self.state.global_step} cannot be written ({free} MB free on this "
                f"disk): {error}. Make room, then go on with: glmtune train --resume {folder.parent}"
            ) from error


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
    eval_steps = settings.eval_steps or max(1, -(-steps // 10))
    recompute: dict[str, Any] = {}
    if settings.gradient_checkpointing:
        recompute = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
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
        **recompute,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16 and device.type == "cuda",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        save_total_limit=settings.save_total_limit + 1,  # transformers counts the best one, too
        load_best_model_at_end=True,
        metric_for_best_model=METRIC,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        use_cpu=device.type == "cpu",
    )


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The latest complete checkpoint in a folder, if any: the state is written last."""
    complete = [state.parent for state in checkpoints.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def has_ended(state: TrainerState, steps: int, patience: int | None) -> bool:
    """Whether all steps were made, or early stopping has had enough."""
    callbacks: Any = state.stateful_callbacks
    stopper = callbacks.get(EarlyStoppingCallback.__name__, {"attributes": {}})
    worse = stopper["attributes"].get("early_stopping_patience_counter", 0)
    return state.global_step >= steps or (patience is not None and worse >= patience)


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
        resume: go on from the last checkpoint, or begin where there is none.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    model.config.use_cache = False
    interrupt, bar = InterruptCallback(), ProgressBar()
    callbacks = [LogCallback(log_path), bar, interrupt]
    patience = recipe.training.early_stopping_patience
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience))
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
    start = last_checkpoint(checkpoints) if resume else None
    state = TrainerState.load_from_json(str(start / TRAINER_STATE_NAME)) if start else None
    if state is not None and has_ended(state, steps, patience):
        trainer.take_best(state)
    else:
        with interrupt.listening(), closing(bar):
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    if interrupt.interrupted:
        raise KeyboardInterrupt
    model.config.use_cache = True
    return trainer

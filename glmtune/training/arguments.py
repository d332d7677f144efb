"""transformers' form of a recipe's settings, for its own Trainer or for one of trl's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from glmtune import distributed
from glmtune.config import Recipe, TrainingSettings
from glmtune.models.loading import choose_dtype
from glmtune.runtime import UserError
from glmtune.training import optimizers, trackers

A = TypeVar("A", bound=TrainingArguments)


def check_precision(dtype: torch.dtype, device: torch.device) -> None:
    """See whether a device can train in a precision. fp16 needs its loss scaled, which only GPUs have.

    Raises:
        UserError: small gradients would be lost.
    """
    if dtype == torch.float16 and device.type != "cuda":
        raise UserError(
            f"model.dtype=float16: on {device.type} there is no loss scaling, and small gradients would be lost. "
            "Use model.dtype=bfloat16 or float32."
        )


def make_arguments(
    recipe: Recipe,
    steps: int,
    folder: Path,
    device: torch.device,
    kind: type[A] = TrainingArguments,  # type: ignore[assignment]
    **others: Any,
) -> A:
    """Return the arguments of a Trainer that makes `steps` optimizer steps by a recipe.

    What is trained is fp32; on a 16-bit base the computation is autocast to its precision.

    Args:
        recipe: with its learning rate filled in.
        folder: of the checkpoints.
        device: where the model is.
        kind: class of the arguments, such as trl's `SFTConfig`.
        others: arguments of that class, which go before those of the recipe.

    Raises:
        UserError: the device cannot train in the recipe's precision, or an optional package is missing.
    """
    dtype = choose_dtype(recipe.model.dtype, device, wide=True)  # of a plan it is decided
    check_precision(dtype, device)
    trackers.check_installed(recipe.training.trackers)
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        # Every weight that is trained takes part in every pass; buffers are the same everywhere, and stay so.
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        **steps_of(recipe.training, steps),
        **records_of(recipe.training, steps),
    }
    if kind is not TrainingArguments:  # trl's recompute unless they are told not to
        values = {"gradient_checkpointing": False, **values}
    arguments = kind(**{**values, **others})
    if arguments.n_gpu > 1:  # transformers would scatter batches over all GPUs of the machine
        arguments._n_gpu = 1
    return arguments


def steps_of(settings: TrainingSettings, steps: int) -> dict[str, Any]:
    """Return the arguments that say what a step does to the weights.

    Raises:
        UserError: the optimizer needs a package that is not installed.
    """
    assert settings.learning_rate is not None, "the plan fills in the method's"
    optimizers.check_installed(settings.optimizer)
    recompute: dict[str, Any] = {}
    if settings.gradient_checkpointing:
        recompute = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return {
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": -(-settings.gradient_accumulation_steps // distributed.world_size()),
        "optim": optimizers.TABLE[settings.optimizer].optim,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": round(settings.warmup_ratio * steps),
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "max_grad_norm": settings.max_grad_norm,
        **recompute,
    }


def records_of(settings: TrainingSettings, steps: int) -> dict[str, Any]:
    """Return the arguments that say when the loop logs, judges and saves, and what it keeps."""
    eval_steps = settings.evaluated_every(steps)
    return {
        "logging_steps": settings.logged_every(steps),
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": eval_steps,
        "save_strategy": "steps",
        "save_steps": eval_steps,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "greater_is_better": True,
        "restore_callback_states_from_checkpoint": True,
        "report_to": "none",
        "disable_tqdm": True,
    }

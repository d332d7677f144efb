"""Checkpoints of a run: the weights that are trained, whatever the method, and nothing of a frozen base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from glmtune.runtime import UserError

WEIGHTS = "trainable.safetensors"

Weights = dict[str, torch.nn.Parameter]


def trained_weights(model: torch.nn.Module) -> Weights:
    """Return the parameters that are trained, by name; a tied one once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_weights(weights: Weights, folder: Path) -> None:
    """Write trained weights into the folder of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, folder / WEIGHTS)


def load_weights(weights: Weights, folder: Path) -> None:
    """Put the weights of a checkpoint in place of those of the model.

    Raises:
        UserError: it was made with other settings.
    """
    path = folder / WEIGHTS
    with safe_open(path, framework="pt") as file, torch.no_grad():
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
        wanted = {name: tuple(weight.shape) for name, weight in weights.items()}
        if found != wanted:
            name = min(name for name in found | wanted if found.get(name) != wanted.get(name))
            raise UserError(
                f"{path} does not fit the recipe: {name} is {found.get(name)} there and {wanted.get(name)} by "
                "recipe.yaml. Put recipe.yaml back as it was when the run began."
            )
        for name, weight in weights.items():
            weight.copy_(file.get_tensor(name))


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the latest complete checkpoint in a folder, if any: the state is written last."""
    complete = [state.parent for state in checkpoints.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def read_state(checkpoint: Path) -> TrainerState:
    """Return the state of the loop at a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def has_ended(state: TrainerState, steps: int, patience: int | None) -> bool:
    """Return whether all steps were made, or early stopping has had enough."""
    return state.global_step >= steps or (patience is not None and count_without_better(state) >= patience)


def count_without_better(state: TrainerState) -> int:
    """Return how many evaluations early stopping has counted since the best one."""
    callbacks: Any = state.stateful_callbacks
    stopper = callbacks.get(EarlyStoppingCallback.__name__, {"attributes": {}})
    return int(stopper["attributes"].get("early_stopping_patience_counter", 0))

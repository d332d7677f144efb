"""What a recipe needs of this machine before anything is loaded: packages, and a device that can do it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from glmtune import distributed
from glmtune.config import Recipe
from glmtune.methods import Method
from glmtune.models import loading
from glmtune.models.architecture import has_own_form, stored_bits
from glmtune.runtime import UserError
from glmtune.training import optimizers, trackers
from glmtune.training.sharding import check_sharding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def check_packages(recipe: Recipe, config: PreTrainedConfig) -> None:
    """See whether the optional packages are installed that a recipe needs.

    Args:
        recipe: `model`, `training`.
        config: of its model.

    Raises:
        UserError: one is missing.
    """
    bits, training = recipe.model.bits, recipe.training
    optimizers.check_installed(training.optimizer)
    trackers.check_installed(training.trackers)
    if (
        bits < stored_bits(config)
        and training.sharding == "none"
        and distributed.local_device().type == "cuda"
        and importlib.util.find_spec("bitsandbytes") is None
    ):
        raise UserError(
            f"model.bits={bits}: bitsandbytes is not installed. pip install 'glmtune[quantization]', or leave it out."
        )


def check_model(recipe: Recipe, config: PreTrainedConfig, method: Method) -> None:
    """See whether the device computes, stores and trains the model as a recipe says.

    Raises:
        UserError: it does not.
    """
    from glmtune.training.arguments import check_precision

    settings, device = recipe.model, distributed.local_device()
    check_precision(loading.dtype_of(settings, config, device), device)
    method.check_base(settings, stored_bits(config))
    loading.check_bits(settings, config)
    if settings.random_init and method.saves_adapter:
        raise UserError(
            f"model.random_init: fresh weights must learn and be saved, and method.name={recipe.method.name} saves "
            "what it trains alone. Use method.name=full."
        )
    check_sharding(recipe, has_own_form(config))


def count_trainable(method: Method, config: PreTrainedConfig) -> int | None:
    """Return how many parameters learn, tried on a model that is made without its numbers.

    Returns:
        None where the method starts from the numbers themselves.

    Raises:
        UserError: the method does not find what it trains, or cannot train it.
    """
    own = type(method)(method.settings)  # the given one is to remember nothing of this model
    try:
        tuned = own.apply(without_numbers(config))
    except UserError:
        raise
    except Exception:  # whatever torch says of missing numbers
        return None
    return sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)


def without_numbers(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model of names and shapes alone."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model

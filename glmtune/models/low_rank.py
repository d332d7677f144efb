"""Low-rank updates beside the layers of a model, on torch's side: which there are, and what PiSSA starts them from.

PiSSA (https://arxiv.org/abs/2404.02948) takes the largest singular values of a weight out of it, and lets them learn.

Letters: W weight of a linear layer, A and B its update's matrices, s the update's scale, r its rank: W + s B A.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from glmtune.runtime import UserError

ADAPTER = "default"  # peft's name of the one adapter that there is

# The singular value decomposition of a 2048 x 2048 matrix takes half a minute on two cores, and ChatGLM-6B has 112
# larger ones. Layers that are larger than this are decomposed by subspace iteration (https://arxiv.org/abs/0909.4061):
# 6 seconds for 16384 x 4096. 16 rounds are peft's advice for PiSSA.
EXACT_UP_TO = 512
SUBSPACE_ITERATIONS = 16
OVERSAMPLING = 8  # singular vectors followed beyond the rank, so that the last ones converge, too

Start = dict[str, tuple[Tensor, Tensor]]  # name of a layer -> A and B before training


@torch.no_grad()
def take_out(model: nn.Module, rank: int) -> Start:
    """Move the largest singular values of each updated layer from the base into its update.

    Done here and not by peft, which rounds A and B to the precision of the base after it has taken them out of it: on a
    16-bit base, their product would no longer fill the gap.

    Raises:
        UserError: the rank is larger than a layer, or an updated layer is no linear one.
    """
    start: Start = {}
    for name, layer in updated_layers(model):
        if not isinstance(layer.get_base_layer(), nn.Linear | Conv1D):
            raise UserError(
                f"method.init=pissa: {name} is a {type(layer.get_base_layer()).__name__}, no linear layer. "
                "Leave it out of method.target_modules, or set method.init=default."
            )
        weight = base_weight(layer)
        if rank > min(weight.shape):
            raise UserError(
                f"method.rank={rank}: {name} is {' x '.join(map(str, weight.shape))} and has only "
                f"{min(weight.shape)} singular values to start from (method.init=pissa). Lower the rank."
            )
        left, values, right = principal_part(weight.float(), rank)
        roots = (values / layer.scaling[ADAPTER]).sqrt()
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        down.copy_(roots[:, None] * right)
        up.copy_(left * roots)
        weight.copy_(weight.float() - layer.scaling[ADAPTER] * up @ down)
        start[name] = down.clone(), up.clone()
    return start


@torch.no_grad()
def give_back(model: Any, start: Start, rank: int) -> None:
    """Give the base back what was taken out, and make of the update what it has learned since.

    With A0 and B0 the start: (W - s B0 A0) + s B A = W + [s B, -s B0] [A; A0], a LoRA of rank 2r with scale 1. The base
    is as it was but for the rounding of its precision.
    """
    for name, layer in updated_layers(model):
        first_down, first_up = start[name]
        scale, down, up = layer.scaling[ADAPTER], layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        weight = base_weight(layer)
        weight.copy_(weight.float() + scale * first_up @ first_down)
        down.weight = nn.Parameter(torch.cat((down.weight, first_down)))
        up.weight = nn.Parameter(scale * torch.cat((up.weight, -first_up), dim=1))
        down.out_features = up.in_features = 2 * rank
        layer.r[ADAPTER] = layer.lora_alpha[ADAPTER] = 2 * rank
        layer.scaling[ADAPTER] = 1.0
    config = model.peft_config[ADAPTER]
    config.r, config.lora_alpha, config.use_rslora = 2 * rank, 2 * rank, False


def updated_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, layer in peft's wrapping) of every layer that has an update beside it."""
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            yield name, layer


def unwrap(model: nn.Module) -> None:
    """Put the modules back that peft has wrapped, all of them or some before it failed: the model is as before.

    peft's own `unload` needs its model around this one, and leaves modules that were trained whole.
    """
    for name, part in [*model.named_children()]:
        own: Any = part
        while isinstance(own, BaseTunerLayer | AuxiliaryTrainingWrapper):
            own = own.get_base_layer() if isinstance(own, BaseTunerLayer) else own.original_module
        if own is not part:
            setattr(model, name, own)
        unwrap(own)
    vars(model).pop("peft_config", None)


def named_linear_layers(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    """Return (name, layer) of all linear layers but the head."""
    head = model.get_output_embeddings()
    layers = model.named_modules()
    return [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear) and layer is not head]


def expert_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters (experts, rows, columns) that hold a layer of all experts of a block.

    transformers stores them so, in no linear layer, so that an update needs peft's `target_parameters`.
    """
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and not name.endswith("weight_scale")  # of packed layers, by groups
    ]


@contextmanager
def as_written() -> Iterator[None]:
    """Let peft take a configuration as it is written, meanwhile.

    It takes each one for a mixture of experts for one of transformers 4, where experts were linear layers: it leaves
    out a dense or shared MLP (GLM-4.5's) whose layers are called as those of the experts were, and says nothing.
    """
    try:
        from peft.utils import transformers_weight_conversion as library
    except ImportError:  # before peft did so
        yield
        return
    converts = library.convert_peft_config_for_transformers
    library.convert_peft_config_for_transformers = lambda *arguments, **named: None
    try:
        yield
    finally:
        library.convert_peft_config_for_transformers = converts


@contextmanager
def uncast_inputs(model: nn.Module) -> Iterator[None]:
    """Give updates what their layers get, for passes in which autocast brings both to one precision.

    Without it, peft turns each input to the update's fp32, and autocast turns it back: the same numbers, but kept for
    the backward pass once for every layer that reads them. DoRA computes its lengths in that precision, and keeps it.
    """
    layers = [layer for _, layer in updated_layers(model) if isinstance(layer, LoraLayer) and not layer.lora_variant]
    before = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = enabled


def tied_updates(model: Any) -> list[str]:
    """Return the names of updated layers that are the head or the embedding of a model where these are one matrix.

    An update beside one of them is none of the other, so that it cannot become part of the matrix.
    """
    ends = [bare(end) for end in (model.get_output_embeddings(), model.get_input_embeddings()) if end is not None]
    if len(ends) < 2 or ends[0].weight is not ends[1].weight:
        return []
    return [name for name, layer in updated_layers(model) if any(bare(layer) is end for end in ends)]


def bare(layer: Any) -> Any:
    """Return a layer without the update beside it."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def base_weight(layer: Any) -> Tensor:
    """Return the (outputs, inputs) weight beside an update; a view where the layer keeps it the other way round.

    Of experts it is (experts, rows, columns).
    """
    weight: Tensor = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
    return weight.T if layer.fan_in_fan_out else weight


def principal_part(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `rank` largest singular values of a matrix (m, n) with their vectors: U (m, r), S (r,), V^T (r, n)."""
    smallest = min(weight.shape)
    if smallest <= EXACT_UP_TO:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        followed = min(rank + OVERSAMPLING, smallest)
        left, values, vectors = torch.svd_lowrank(weight, q=followed, niter=SUBSPACE_ITERATIONS)
        right = vectors.T
    return left[:, :rank], values[:rank], right[:rank]

"""Weights that several processes divide (FSDP2): each keeps its share, and a block is whole only while it computes.

What is saved has the form that one process gives it: shares are put together on the way to a file, and taken from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from glmtune import distributed
from glmtune.config import Recipe
from glmtune.runtime import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from glmtune.methods import Model

LIBRARY = "5.20.2"  # of transformers, whose Trainer leaves a model alone that is sharded


def check_sharding(recipe: Recipe, has_own_form: bool = True) -> None:
    """See whether a recipe's weights can be divided, if it asks for that.

    Args:
        recipe: `model`, `training`.
        has_own_form: files of 8 or 4 bits, if they are such, are ours or the original's, not bitsandbytes'.

    Raises:
        UserError: they cannot.
    """
    model, training = recipe.model, recipe.training
    if training.sharding == "none":
        if training.cpu_offload:
            raise UserError(
                "training.cpu_offload=true: what is kept in the machine's memory are shares of the weights. Add "
                "training.sharding=full, also for one process alone, or leave it out."
            )
        return
    remedy = "or leave training.sharding out: then each device has the whole model."
    if not has_own_form:
        raise UserError(
            f"training.sharding=full: {model.path} is stored by bitsandbytes, whose layers cannot be divided. Take the "
            f"checkpoint of 16 bits with model.bits=4 or 8, {remedy}"
        )
    if model.dtype == "float16":
        raise UserError(
            f"training.sharding=full: model.dtype=float16 has its loss scaled, which divided gradients have not. Use "
            f"bfloat16 or float32, {remedy}"
        )
    if training.optimizer != "adamw":
        raise UserError(
            f"training.sharding=full: training.optimizer={training.optimizer} needs whole weights. Use adamw, {remedy}"
        )
    if Version(found := metadata.version("transformers")) < Version(LIBRARY):
        raise UserError(
            f"training.sharding=full: transformers {found} would wrap what is divided once more. Install {LIBRARY} or "
            f"newer, {remedy}"
        )


def shard(model: Model, on_cpu: bool = False) -> None:
    """Divide all weights of a model among the processes, block by block: packed ones by their bytes.

    Args:
        model: with a method applied.
        on_cpu: shares are kept in the machine's memory; default: on this process's device.

    Raises:
        RuntimeError: they are not divided after that.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    device = distributed.local_device().type
    mesh = init_device_mesh(device, (distributed.world_size(),))
    policy = CPUOffloadPolicy(pin_memory=device == "cuda") if on_cpu else OffloadPolicy()
    blocks: list[Any] = list(blocks_of(model))
    root: Any = model
    for block in blocks:
        fully_shard(block, mesh=mesh, offload_policy=policy)
    fully_shard(root, mesh=mesh, offload_policy=policy)  # the embedding, the head and what else is in no block
    # The next block of the backward pass is fetched ahead. Left to itself, a process would go by the forward passes
    # since the last step, and after an evaluation, of which each has its share, wait for the others for ever.
    for block, before in zip([*blocks, root], [blocks[0], *blocks], strict=True):
        block.set_modules_to_backward_prefetch([before])
    if not is_sharded(model) or local_share(model) > 1.5 / distributed.world_size():
        raise RuntimeError(f"a process has {local_share(model):.0%} of the weights: they are not divided")


def blocks_of(model: Model) -> Iterable[torch.nn.Module]:
    """Return the decoder's layers.

    Raises:
        UserError: they do not stand in one list.
    """
    from peft import PeftModel

    from glmtune.methods.freeze import find_blocks

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    try:
        return find_blocks(base)[1]
    except UserError:
        raise UserError(
            f"training.sharding=full: {type(base).__name__} does not keep its layers in one list, by which it would be "
            "divided. Leave training.sharding out: then each device has the whole model."
        ) from None


def is_sharded(model: torch.nn.Module | None) -> bool:
    """Return whether the weights of a model are divided."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def local_share(model: torch.nn.Module) -> float:
    """Return the share of a model's bytes that this process keeps, 0 to 1."""
    weights = list(model.parameters())
    return sum(local(weight).nbytes for weight in weights) / sum(weight.nbytes for weight in weights)


def device_of(model: Model) -> torch.device:
    """Return where a model computes, wherever its shares are kept."""
    return distributed.local_device() if is_sharded(model) else model.device


def local(weight: Tensor) -> Tensor:
    """Return this process's share of a weight, or the whole where it is not divided."""
    from torch.distributed.tensor import DTensor

    return weight.to_local() if isinstance(weight, DTensor) else weight


def whole(weight: Tensor) -> Tensor:
    """Return a weight in one piece, on all processes, which all call this at the same time."""
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def divided_like(weight: Tensor, value: Tensor) -> Tensor:
    """Return a tensor in one piece as its weight is: divided among the processes, each of which has it, or whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None).to(weight.device)


def whole_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return divided weights in one piece on the CPU of the main process, and none on others; one by one on a GPU."""
    kept = {}
    for name, weight in weights.items():
        together = whole(weight.detach())
        if distributed.is_main():
            kept[name] = together.cpu()
    return kept


def whole_state(optimizer: Any) -> dict[str, Any]:
    """Return what an optimizer has gathered as one process saves it, on the CPU of the main process."""
    saved = optimizer.state_dict()
    return {**saved, "state": {number: whole_weights(values) for number, values in saved["state"].items()}}


def load_state(optimizer: Any, file: Path) -> None:
    """Let an optimizer of divided weights go on with what one of whole ones has gathered."""
    import torch

    saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, values in saved["state"].items():
        saved["state"][number] = {name: divided_like(weights[number], value) for name, value in values.items()}
    optimizer.load_state_dict(saved)


@contextmanager
def put_together(model: torch.nn.Module) -> Iterator[None]:
    """Let each process have all weights while the block runs, so that it asks a model as often as it likes.

    A model that is not divided stays as it is.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            if part is not model:  # whose weights the backward pass needs first
                part.set_reshard_after_forward(True, recurse=False)


def release(model: torch.nn.Module) -> None:
    """Give back the memory of a divided model, which is of no use after that."""
    for weight in model.parameters():
        local(weight.detach()).untyped_storage().resize_(0)

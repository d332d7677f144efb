"""How many processes a training is of, and whether they are all started alike. No torch before it is needed."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, Literal

from glmtune import distributed
from glmtune.config import Recipe
from glmtune.runtime import RunFolder, UserError, versions
from glmtune.training import sharding
from glmtune.training.placement import torch_takes_gpus
from glmtune.training.resumption import flat

if TYPE_CHECKING:
    from glmtune.methods import Model


def count_processes(devices: Literal["all"] | int) -> int:
    """Return how many processes `training.devices` asks for on this machine.

    Raises:
        UserError: more than it has GPUs.
    """
    gpus = visible_gpus()
    if devices == "all":
        return max(1, gpus)
    if 0 < gpus < devices:
        raise UserError(
            f"training.devices={devices}: torch sees {gpus} GPU{'s' * (gpus > 1)} here, and each process needs one of "
            f"its own. Set {gpus}, or all; CUDA_VISIBLE_DEVICES may hide some."
        )
    return devices


def visible_gpus() -> int:
    """Return how many GPUs torch sees; it is imported where it could see any."""
    if not torch_takes_gpus():
        return 0
    import torch

    return int(torch.cuda.device_count())


def check_processes(recipe: Recipe) -> None:
    """See that all processes have the same recipe and packages, and that there are as many as it asks for.

    Raises:
        UserError: they differ, or a process alone cannot be several.
    """
    devices = recipe.training.devices
    if distributed.process_group() is None and devices != "all" and devices > 1:
        raise UserError(
            f"training.devices={devices}: a training from Python is of the processes that run it, and this is one. "
            f"Start the script with torchrun --nproc-per-node {devices}, or use `glmtune train`."
        )
    training = recipe.training
    if training.sharding == "full" and not training.cpu_offload and distributed.world_size() == 1:
        raise UserError(
            "training.sharding=full: several processes divide the weights, and this is one. Start more "
            "(training.devices=N, or torchrun), keep them in the machine's memory (training.cpu_offload=true), or "
            "leave it out."
        )
    distributed.check_alike({**versions(), "python": platform.python_version(), **flat(recipe)})


def check_seen(folder: RunFolder) -> None:
    """See that the main process's run folder is there for this process, too.

    Raises:
        UserError: it is on a disk of another machine.
    """
    if not folder.path.is_dir():
        raise UserError(
            f"training.output_dir: {folder.path.absolute()} is not there on {platform.node()}. All machines must see "
            "one run folder: name one on a disk that they share."
        )


def describe_processes(model: Model, step: int, batch_size: int) -> str:
    """Return a line that says how several processes work together; nothing of one.

    Args:
        model: that is trained, divided or not.
        step: examples of a step, of all processes.
        batch_size: the most that one holds at a time.
    """
    count = distributed.world_size()
    group: Any = distributed.process_group()
    if group is None or (count == 1 and not sharding.is_sharded(model)):
        return ""
    each = min(batch_size, -(-step // count))
    kept, how = "the whole model", "DDP"
    if sharding.is_sharded(model):
        kept, how = f"{sharding.local_share(model):.1%} of the weights", "FSDP2"
    if count == 1:
        return f"One process ({how}), whose weights are in the machine's memory, and there while they compute."
    return (
        f"{count} processes ({group.get_backend()}, {how}), each with {kept} and up to {each} of a step's {step} "
        "examples at a time."
    )

"""Which of several processes this is, and what they say to one another. One process alone needs no torch for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# By which torchrun, `accelerate launch`, Slurm's recipes and Ray tell each process who it is and where the others meet;
# and where the head of the Ray cluster is.
VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
    "RAY_ADDRESS",
)


def told() -> dict[str, str]:
    """Return what this process was told of others in its environment, by `VARIABLES`; nothing of the rest."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def process_group() -> ModuleType | None:
    """Return torch.distributed where several processes have joined; what nobody imported has joined none."""
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_available() and module.is_initialized() else None


def rank() -> int:
    """Return the number of this process, from 0."""
    group = process_group()
    return group.get_rank() if group else 0


def world_size() -> int:
    """Return the number of processes."""
    group = process_group()
    return group.get_world_size() if group else 1


def is_main() -> bool:
    """Return whether this process is the one that writes files and speaks to the user."""
    return rank() == 0


def local_device() -> torch.device:
    """Return where models of this process live: its GPU, the GPU where there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        group = process_group()
        return torch.device("cuda", group.get_node_local_rank()) if group else torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def on_main(act: Callable[[], T]) -> T:
    """Call `act` on the main process alone, and return its result on all; meanwhile the others wait.

    Raises:
        Exception: what `act` raises, on all processes.
    """
    group = process_group()
    if group is None:
        return act()
    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = act()
        except Exception as error:
            told[1] = error
    group.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def share(items: Sequence[T]) -> Sequence[T]:
    """Return the part of `items` that is this process's to work on: every so-many-th, beginning at its number."""
    return items if world_size() == 1 else [*items][rank() :: world_size()]


def gather(parts: Sequence[T]) -> list[T]:
    """Return what all processes made of their `share`, one result an item, in the order of the items, on all."""
    group = process_group()
    if group is None:
        return list(parts)
    gathered: list[Any] = [None] * world_size()
    group.all_gather_object(gathered, list(parts))
    count = len(gathered)
    return [gathered[index % count][index // count] for index in range(sum(map(len, gathered)))]

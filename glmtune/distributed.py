"""Which of several processes this is, and what they say to one another. One process alone needs no torch for it."""

from __future__ import annotations

import atexit
import io
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from glmtune.runtime import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

MEETING = timedelta(minutes=5)  # in which all processes must have come
WAIT = timedelta(minutes=30)  # for what another process does; one that hangs ends all others then

# By which torchrun, `accelerate launch`, Slurm's recipes and Ray tell each process who it is and where the others meet;
# and where the head of the Ray cluster is.
VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
    "RAY_ADDRESS",
)

BACKENDS = "cpu:gloo,cuda:nccl"  # by which tensors go where there are GPUs; on the CPU alone, gloo

_meetings: list[Any] = []  # the store by which the processes met, if they did


def told() -> dict[str, str]:
    """Return what this process was told of others in its environment, by `VARIABLES`; nothing of the rest."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def is_launched() -> bool:
    """Return whether a launcher started this process as one of several: torchrun, accelerate launch, Ray."""
    return {"RANK", "WORLD_SIZE"} <= told().keys()


def join(timeout: timedelta = MEETING) -> None:
    """Join the processes that a launcher started; a process alone, or one that has joined, has nothing to do.

    Tensors on a GPU go by NCCL; those on the CPU, and objects, by gloo.

    Args:
        timeout: in which the main process must be reached.

    Raises:
        UserError: it cannot be reached, a variable of the launcher is missing, or there are more processes than GPUs.
    """
    if process_group() is not None or not is_launched():
        return
    import torch

    launcher = told()
    sys.stdin = io.StringIO()  # one of several asks nobody
    try:
        store, number, count = next(torch.distributed.rendezvous("env://", timeout=timeout))
    except ValueError as error:
        raise UserError(
            f"RANK={launcher['RANK']} WORLD_SIZE={launcher['WORLD_SIZE']}: the rest of what a launcher sets is "
            f"missing: {error}. Start with torchrun, or unset both."
        ) from None
    except RuntimeError as error:  # torch's DistError is one
        raise UserError(
            f"MASTER_ADDR={launcher.get('MASTER_ADDR')} MASTER_PORT={launcher.get('MASTER_PORT')}: process "
            f"{launcher['RANK']} of {launcher['WORLD_SIZE']} ({platform.node()}) did not meet the others within "
            f"{timeout.total_seconds():g} seconds: {str(error).splitlines()[0]}. Name a machine and a port that all "
            "can reach, and start all processes."
        ) from None
    _meetings.append(store)
    gpus, local = torch.cuda.device_count(), int(launcher.get("LOCAL_RANK", number))
    if gpus and int(launcher.get("LOCAL_WORLD_SIZE", local + 1)) > gpus:
        raise UserError(
            f"{launcher.get('LOCAL_WORLD_SIZE', local + 1)} processes on a machine with {gpus} visible GPUs: each "
            f"needs one of its own. Start {gpus} there (torchrun --nproc-per-node {gpus})."
        )
    if gpus:
        torch.cuda.set_device(local)
    torch.distributed.init_process_group(
        BACKENDS if gpus else "gloo", store=store, rank=number, world_size=count, timeout=WAIT
    )
    atexit.register(leave)


def leave() -> None:
    """Leave the other processes, if any were joined."""
    group = process_group()
    if group is not None:
        group.destroy_process_group()


@contextmanager
def grouped() -> Iterator[None]:
    """Let a process alone be a group of one while the block runs; those that have joined others are one already."""
    if process_group() is not None:
        yield
        return
    import torch

    backend = BACKENDS if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        leave()


def share_cores(count: int) -> None:
    """Let each of several processes that are started from here use its share of the cores, unless the user set it."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))


def is_first_to_say(text: str) -> bool:
    """Return whether no other process has said this, so that what befalls all is told once."""
    if not _meetings:
        return True
    try:
        return bool(_meetings[-1].add(f"glmtune/said/{sha256(text.encode()).hexdigest()}", 1) == 1)
    except RuntimeError:  # whoever kept the store has gone
        return True


def is_loss(error: BaseException) -> bool:
    """Return whether an error says that another process has ended, or does not answer."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return process_group() is not None and (
        "DistError" in names or ("RuntimeError" in names and "/gloo/" in str(error))
    )


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
        return torch.device("cuda", group.get_node_local_rank(0)) if group else torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def on_main(act: Callable[[], T]) -> T:
    """Call `act` on the main process alone, and return its result on all; meanwhile the others wait.

    Raises:
        Exception: what `act` raises, on all processes.
    """
    group = process_group()
    if group is None:
        return act()
    said: list[Any] = [None, None]
    if is_main():
        try:
            said[0] = act()
        except Exception as error:
            said[1] = error
    group.broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    return said[0]


def together(act: Callable[[], T]) -> T:
    """Call `act` on all processes, and return what it returned here, once it has ended well on all.

    Args:
        act: does not wait for other processes.

    Raises:
        Exception: what it raises, where all raise the same.
        UserError: on all, where it fails on some: which of them, on which machine, and why.
    """
    group = process_group()
    if group is None:
        return act()
    result, error = None, None
    try:
        result = act()
    except Exception as caught:
        error = caught
    said: list[Any] = [None] * world_size()
    group.all_gather_object(said, error and (platform.node(), str(error) or repr(error)))
    failed = {number: one for number, one in enumerate(said) if one is not None}
    if not failed:
        return result  # type: ignore[return-value]
    if error is not None and len({text for _, text in failed.values()}) == 1 and len(failed) == len(said):
        raise error
    number, (machine, text) = next(iter(failed.items()))
    raise UserError(f"Process {number} of {len(said)} ({machine}): {text}") from error


def anywhere(happened: bool) -> bool:
    """Return whether something happened on any process. All ask at the same time."""
    return bool(most(int(happened)))


def most(count: int) -> int:
    """Return the largest number that any process has. All ask at the same time."""
    group = process_group()
    if group is None:
        return count
    import torch

    place = torch.device("cpu") if "cpu" in group.get_backend_config() else local_device()
    number = torch.tensor(count, device=place)
    group.all_reduce(number, op=group.ReduceOp.MAX)
    return int(number.item())


def check_alike(facts: Mapping[str, Any]) -> None:
    """Compare what all processes know of the same things.

    Raises:
        UserError: on all, where one knows otherwise than the main process.
    """
    if process_group() is None:
        return
    said = gather([(platform.node(), dict(facts))])
    main, expected = said[0]
    for number, (machine, found) in enumerate(said):
        for name in {**expected, **found}:
            if found.get(name) != expected.get(name):
                raise UserError(
                    f"{name} is {found.get(name)} on process {number} ({machine}) and {expected.get(name)} on the main "
                    f"process ({main}). All processes must be started alike: the same recipe, files and packages."
                )


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

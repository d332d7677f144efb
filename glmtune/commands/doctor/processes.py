"""What is looked at where several devices or machines are to work together: GPUs, NCCL, and what the launcher told.

One process can ask no other. What must be the same everywhere is printed as a mark, by each of those that torchrun
starts: `torchrun --nproc-per-node 2 -m glmtune doctor`.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import partial
from hashlib import sha256

from glmtune import distributed
from glmtune.commands.doctor.checks import Check, Finding
from glmtune.commands.doctor.machine import OPTIONAL, REQUIRED, version_of
from glmtune.config import to_yaml
from glmtune.plan import Plan

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCH = "Start each process with torchrun: torchrun --nproc-per-node 2 -m glmtune ..."
REACHED_WITHIN = 3.0  # seconds


def process_checks() -> list[Check]:
    """Return what is looked at without a recipe; of processes and their versions only where a launcher started this."""
    checks = [Check("devices", devices, "Install torch again: https://pytorch.org/get-started/locally", ("torch",))]
    told = distributed.told()
    if not any(name in told for name in NEEDED):
        return checks
    return [
        *checks,
        Check("processes", partial(processes, told), LAUNCH, ("devices",)),
        Check("master", partial(master, told), LAUNCH, ("processes",)),
        Check("versions of all", versions, LAUNCH),
    ]


def recipe_mark() -> list[Check]:
    """Return what is said of the recipe where a launcher started this process."""
    return [Check("recipe of all", recipe, LAUNCH)] if "RANK" in distributed.told() else []


def devices() -> Finding:
    """Count the GPUs, and see whether they can talk to one another."""
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return "ok", "no GPU; several processes talk by gloo", ""
    names = ", ".join(sorted({torch.cuda.get_device_name(number) for number in range(count)}))
    found = f"{count} x {names}"
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        return "ok", f"{found}; NCCL {version}", ""
    remedy = "Install torch with NCCL (Linux, CUDA): https://pytorch.org/get-started/locally"
    return ("failure" if count > 1 else "ok"), f"{found}; torch has no NCCL, by which GPUs talk", remedy * (count > 1)


def processes(told: dict[str, str]) -> Finding:
    """See whether the launcher told this process who it is, and whether it has a GPU to itself."""
    import torch

    if missing := [name for name in NEEDED if name not in told]:
        given = ", ".join(f"{name}={told[name]}" for name in NEEDED if name in told)
        return "failure", f"the environment has {given}, but no {', '.join(missing)}", LAUNCH
    counts = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT") if name in told]
    if wrong := [name for name in counts if not told[name].isdecimal()]:
        return "failure", f"{wrong[0]}={told[wrong[0]]}: not a whole number", LAUNCH
    if not 0 < int(told["MASTER_PORT"]) < 2**16:
        return "failure", f"MASTER_PORT={told['MASTER_PORT']}: ports are from 1 to {2**16 - 1}", LAUNCH
    rank, size = int(told["RANK"]), int(told["WORLD_SIZE"])
    if rank >= size:
        return "failure", f"RANK={rank} of WORLD_SIZE={size}: ranks are from 0 to {size - 1}", LAUNCH
    gpus, local = torch.cuda.device_count(), int(told.get("LOCAL_RANK", 0))
    if gpus and local >= gpus:
        remedy = f"Start {gpus} processes here at most: torchrun --nproc-per-node {gpus} ..."
        return "failure", f"LOCAL_RANK={local}: a process more than there are GPUs here, {gpus}", remedy
    return "ok", f"rank {rank} of {size}, {socket.gethostname()}", ""


def master(told: dict[str, str]) -> Finding:
    """See whether the processes can meet: rank 0 opens the port, unless torchrun has; the others reach it."""
    host, port = told["MASTER_ADDR"], int(told["MASTER_PORT"])
    place = f"MASTER_ADDR={host} MASTER_PORT={port}"
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return (
            "failure",
            f"{place}: no such address: {error}",
            "Set MASTER_ADDR to the name or the IP of rank 0's machine.",
        )
    if told["RANK"] == "0" and told.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        try:
            with socket.socket(family) as listening:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind(address)
        except OSError as error:
            remedy = "Choose another MASTER_PORT, the same for all, or end the program that holds it."
            return "failure", f"{place}: cannot be opened here: {error.strerror}", remedy
        return "ok", f"{place}: is free", ""
    with suppress(OSError):
        socket.create_connection((host, port), REACHED_WITHIN).close()
        return "ok", f"{place}: answers", ""
    remedy = "Start rank 0 first, or let its machine's firewall pass this port from here."
    return "failure", f"{place}: nobody answers", remedy


def versions() -> Finding:
    """Give the mark of all versions that must be the same everywhere."""
    found = {name: version_of(name) for name in ("glmtune", *REQUIRED, *OPTIONAL)}
    return "ok", f"mark {mark(repr(found))}: must be the same for every rank", ""


def recipe(plan: Plan) -> Finding:
    """Give the mark of the recipe, which must be the same everywhere."""
    return "ok", f"mark {mark(to_yaml(plan.model.recipe))}: must be the same for every rank", ""


def mark(text: str) -> str:
    """Return a short hash of a text."""
    return sha256(text.encode()).hexdigest()[:12]

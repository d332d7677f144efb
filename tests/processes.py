"""Several processes that work together, as a launcher starts them: forks, which have the libraries already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Failure:
    """What was raised in a process."""

    kind: str
    text: str


def in_processes(work: Callable[[int], Any], count: int = 2, seconds: float = 150) -> list[Any]:
    """What `work(rank)` returns in each of several processes, or its `Failure`; one alone is not launched."""
    context, port = multiprocessing.get_context("fork"), free_port()
    pipes = [context.Pipe() for _ in range(count)]
    workers = [context.Process(target=_work, args=(work, rank, count, port, pipes[rank][1])) for rank in range(count)]
    for worker in workers:
        worker.start()
    try:
        found = []
        for ours, _ in pipes:
            assert ours.poll(seconds), "a process says nothing"
            found.append(ours.recv())
        return found
    finally:
        for ours, _ in pipes:
            ours.send("all are done")
        for worker in workers:
            worker.join(timeout=10)
            worker.kill()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def launched(rank: int, count: int, port: int) -> dict[str, str]:
    """What a launcher sets."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {**{name: str(value) for name, value in ranks.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _work(work: Callable[[int], Any], rank: int, count: int, port: int, pipe: Any) -> None:
    if count > 1:
        os.environ.update(launched(rank, count, port))
    try:
        pipe.send(work(rank))
    except BaseException as error:
        traceback.print_exc()
        pipe.send(Failure(type(error).__name__, str(error)))
    pipe.recv()  # the main process keeps the store by which they met
    os._exit(0)

"""The same command once more, as several processes of this machine, by torch's elastic launcher."""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import psutil

from glmtune import distributed
from glmtune.runtime import Terminated, UserError

GRACE = 10  # seconds between the second Ctrl-C, which ends processes at once, and their end


def start_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `glmtune` with some arguments as several processes, and wait for them.

    Ctrl-C and SIGTERM are passed on to each. Where one ends badly, the launcher ends the others.

    Args:
        count: of processes; each finds its number in `RANK`.
        arguments: of the command line, behind `glmtune`.

    Returns:
        The exit code: 0, or that of the process which ended first, and which has told why.

    Raises:
        Terminated: SIGTERM came before the processes had begun.
        UserError: a process was killed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # a failure is told here, in a line
    distributed.share_cores(count)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    ended: list[BaseException] = []

    def launch() -> None:
        try:
            elastic_launch(config, sys.executable)("-m", "glmtune", *arguments)
        except BaseException as error:
            ended.append(error)

    # Beside the main thread the launcher handles no signals: it would end the processes before they have saved.
    launcher = Thread(target=launch, name="launcher", daemon=True)
    with passing_signals_on() as received:
        launcher.start()
        while launcher.is_alive():
            launcher.join(0.2)
    if not ended:
        return 0
    if not isinstance(ended[0], ChildFailedError):
        raise ended[0]
    failures = ended[0].failures.items()  # SIGTERM is the launcher's own, to those that were left
    killed = [one for one in failures if one[1].exitcode < 0 and one[1].exitcode != -signal.SIGTERM]
    number, failure = killed[0] if killed else ended[0].get_first_failure()
    if failure.exitcode >= 0:
        return int(failure.exitcode)
    if failure.exitcode == -signal.SIGTERM and signal.SIGTERM in received:  # before it listened
        raise Terminated
    name = signal.Signals(-failure.exitcode).name
    out_of_memory = " The system does that where memory runs out." if name == "SIGKILL" else ""
    raise UserError(
        f"process {number} of {count} was ended by {name}, and the others with it.{out_of_memory} Go on from the last "
        "checkpoint with: glmtune train --resume RUN"
    )


@contextmanager
def passing_signals_on() -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to the processes that this one started, while the block runs; give what has come."""
    received: list[int] = []

    def act(number: int, frame: Any) -> None:
        received.append(number)
        children = psutil.Process().children()
        for child in children:
            with suppress(psutil.Error):
                child.send_signal(number)
        # Once is to end with a checkpoint, Ctrl-C twice is at once. Of SIGTERM the processes know how long they have.
        if number == signal.SIGINT and received.count(number) > 1:
            for child in psutil.wait_procs(children, timeout=GRACE)[1]:
                with suppress(psutil.Error):
                    child.kill()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}
    try:
        for number in signals:
            signal.signal(number, act)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

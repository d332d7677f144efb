"""Who works in a folder: one process at a time, which is named to every other one.

On one machine the system's own lock decides, which ends with its process. A file beside it, `.lock`, says who holds it,
and is touched from time to time as a sign of life: disks that several machines share may not share such locks.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from glmtune.files import is_own, lock, write_json
from glmtune.runtime import UserError

FILE = ".lock"
BEAT = 5.0  # seconds between two signs of life
SILENCE = 4 * BEAT  # after which a process of another machine has ended


@dataclass(frozen=True)
class Holder:
    """Who holds a folder, or held it.

    Attributes:
        pid: number of the process.
        host: name of its machine.
        since: local time when it began.
        born: when the system started the process, in seconds, as numbers of processes are used again.
        folder: number of the folder on its disk, by which a copy is told from it.
    """

    pid: int
    host: str
    since: str
    born: float
    folder: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def held(folder: Path | str) -> Iterator[Holder | None]:
    """Hold a folder while the block runs, so that no second process works in it; it is free again when this one ends.

    Yields:
        Who held it and ended without giving it back, as a process does that is killed; else None.

    Raises:
        UserError: another process holds it; tells its number and machine.
    """
    folder = Path(folder)
    try:
        descriptor = lock(folder, wait=False)
    except BlockingIOError:
        raise refusal(folder, read_holder(folder)) from None
    try:
        left = read_holder(folder)
        if left is not None and is_alive(left, folder, certain=descriptor is not None):
            raise refusal(folder, left)
        write_json(folder / FILE, asdict(present(folder)))
        with signs_of_life(folder / FILE):
            yield left
    finally:
        if descriptor is not None:
            os.close(descriptor)


def refusal(folder: Path, holder: Holder | None) -> UserError:
    """Return the error that says who works in a folder, and what to do."""
    who = f"another process works in it ({holder})" if holder else "another process works in it"
    return UserError(f"{folder}: {who}. Wait until that has ended, or choose another folder.")


def present(folder: Path) -> Holder:
    """Return this process as the holder of a folder."""
    now = datetime.now().isoformat(sep=" ", timespec="seconds")
    return Holder(os.getpid(), platform.node(), now, born(os.getpid()) or 0.0, folder.stat().st_ino)


def born(pid: int) -> float | None:
    """Return when a process of this machine was started; None where there is none of this number."""
    import psutil

    try:
        return round(psutil.Process(pid).create_time(), 2)
    except psutil.Error:
        return None


def read_holder(folder: Path) -> Holder | None:
    """Return who holds a folder by its file; None where there is none, or it was copied here with the folder."""
    file = folder / FILE
    try:
        if not is_own(file):
            return None
        holder = Holder(**json.loads(file.read_text(encoding="utf-8")))
        return holder if holder.folder == folder.stat().st_ino else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def is_alive(holder: Holder, folder: Path, certain: bool) -> bool:
    """Return whether the holder of a folder still works.

    Args:
        holder: by the folder's file.
        folder: that it holds.
        certain: the system's lock could be had, so that no process of this machine has it.
    """
    if holder.host == platform.node():
        return not certain and holder.pid != os.getpid() and born(holder.pid) == holder.born
    return gives_a_sign(folder / FILE)


def gives_a_sign(file: Path) -> bool:
    """Return whether a file is touched before long; clocks of machines differ, and are not compared."""
    first, end = touched(file), time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(SILENCE / 50)
        if touched(file) != first:
            return True
    return False


def touched(file: Path) -> int:
    """Return when a file was touched; it is opened for it, so that network disks look."""
    with suppress(OSError), open(file, "rb") as opened:
        return os.fstat(opened.fileno()).st_mtime_ns
    return 0


@contextmanager
def signs_of_life(file: Path) -> Iterator[None]:
    """Touch a file from time to time while the block runs; then remove it."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=touch, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):
            file.unlink(missing_ok=True)

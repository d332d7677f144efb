"""What becomes of files when the machine loses its power at any moment: processes that end there, and what is lost."""

from __future__ import annotations

import builtins
import io
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 137
OPERATIONS = [
    *((os, name) for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync", "truncate")),
    *((shutil, name) for name in ("rmtree",)),
    *((module, "open") for module in (builtins, io)),
]


class Power:
    """The power of a machine, which fails before the nth operation on files; what no `fsync` was asked for is lost.

    Args:
        folder: in which files lose what is not on the disk.
        last: number of the operation, from 1.
    """

    def __init__(self, folder: Path, last: int):
        self.folder, self.last, self.made = folder, last, 0
        self.on_disk = {self.number(file): file.stat().st_size for file in self.files()}

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    @staticmethod
    def number(file: Path) -> int:
        return file.stat().st_ino

    def watch(self, put: Callable[[Any, str, Any], None] = setattr) -> None:
        """Count operations from now on, in this process, which ends at the last."""
        for module, name in OPERATIONS:
            put(module, name, self.counting(getattr(module, name), name))

    def counting(self, act: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if name != "open" or set(str(args[1] if len(args) > 1 else options.get("mode", "r"))) & set("wax+"):
                self.made += 1
                if self.made == self.last:
                    self.fail()
            result = act(*args, **options)
            if name == "fsync":
                found = os.fstat(args[0])
                self.on_disk[found.st_ino] = found.st_size
            return result

        return counted

    def fail(self) -> None:
        for file in self.files():
            size, kept = file.stat().st_size, self.on_disk.get(self.number(file), 0)
            if kept < size:
                descriptor = os.open(file, os.O_WRONLY)
                os.ftruncate(descriptor, kept)
        os._exit(KILLED)


class FullDisk(Power):
    """A disk that has no room for one operation, and then again."""

    def counting(self, act: Callable[..., Any], name: str) -> Callable[..., Any]:
        return super().counting(act, name) if name in ("open", "mkdir", "fsync", "replace") else act

    def fail(self) -> None:
        raise OSError(28, "No space left on device")


def ends(act: Callable[[], Any]) -> int:
    """Call in a process of its own, a fork, and return its exit code: 0 unless it was killed or failed."""
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join(timeout=300)
    process.kill()
    assert process.exitcode is not None
    return process.exitcode


def cut_off(act: Callable[[], Any], folder: Path, last: int) -> bool:
    """Call in a process of its own whose power fails before its nth operation; return whether it came to that."""

    def work() -> None:
        Power(folder, last).watch()
        act()

    code = ends(work)
    assert code in (0, KILLED), code
    return code == KILLED

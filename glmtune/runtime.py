"""The machine and the folder around a run: errors for users, run folders, seeds, versions."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

# What is left where JSON breaks off: nothing, or the beginning of a word, of a number or of an escaped character.
_BEGUN = re.compile(r"|t(r(ue?)?)?|f(a(l(se?)?)?)?|n(u(ll?)?)?|-|[.eE][-+\d]*|u[0-9a-fA-F]{0,4}")


class UserError(ValueError):
    """Something that the user can mend. The message says what, where and how; the command line shows no traceback."""


class Terminated(KeyboardInterrupt):
    """The system told this process to end (SIGTERM). The message, if any, says how what was begun is gone on with."""


def json_fault(error: Exception) -> str:
    """Return what is wrong with a line that is no JSON, and at which character; which line it is says the caller."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    if error.msg.startswith("Unterminated") or _BEGUN.fullmatch(error.doc[error.pos :].strip()):
        return "the line ends in mid-record, as where a file is cut off or a record stands on several lines"
    return f"{error.msg} (character {error.pos + 1})"


def read_json_lines(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) of a JSONL file.

    Raises:
        UserError: no such file, or a line that is empty or no JSON object; the file and line number are told.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    raise UserError(
                        f"{path}, line {number}: empty; every line must be one JSON object. Delete the line."
                    )
                try:
                    record = json.loads(line.rstrip("\r\n"))
                except (ValueError, RecursionError) as error:  # not JSON, a number of 4300 digits, nested too deeply
                    message = f"{path}, line {number}: not JSON: {json_fault(error)}. One JSON object a line."
                    raise UserError(message) from None
                if not isinstance(record, dict):
                    raise UserError(f"{path}, line {number}: a {type(record).__name__}, not a JSON object {{...}}")
                yield number, record
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text: {error}. Convert it, e.g. with iconv -t UTF-8.") from None


class RunFolder:
    """A run: `recipe.yaml log.jsonl before.json adapter/ (or model/) checkpoints/ report.json *.png`,
    and `start/` or `base/` where it goes on from another one.

    Every other verb needs only this folder.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.log = self.path / "log.jsonl"
        self.before = self.path / "before.json"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.base = self.path / "base"  # where training goes on from an adapter that was merged first
        self.start = self.path / "start"  # the adapter that learns on, as it was
        self.checkpoints = self.path / "checkpoints"
        self.report = self.path / "report.json"

    @classmethod
    def is_run(cls, path: Path | str) -> bool:
        """Return whether `path` holds a run; a checkpoint that carries a recipe is none."""
        return cls(path).recipe.is_file() and not (Path(path) / "config.json").is_file()

    @classmethod
    def create(cls, path: Path | str | None, default_name: str, begun: Collection[str] = ()) -> RunFolder:
        """Return a new run folder: `path`, or the next free `runs/DEFAULT_NAME-N`.

        What is hidden does not count: a run that is killed at its very beginning leaves no more.

        Args:
            path: where it is to be.
            default_name: where nobody says.
            begun: names of what it may hold, too, from a start that was killed.

        Raises:
            UserError: `path` holds something already.
        """
        if path is None:
            return cls.create_numbered(default_name)
        run = cls(path)
        if run.path.exists() and not (
            run.path.is_dir() and all(inner.name[0] == "." or inner.name in begun for inner in run.path.iterdir())
        ):
            what = "already holds a run" if cls.is_run(path) else "is not empty"
            longer = f"`glmtune train --resume {path} training.steps=N`"
            remedy = f", train that run longer with {longer}," if cls.is_run(path) else ""
            raise UserError(
                f"training.output_dir: {path} {what}. Choose another folder with training.output_dir=...{remedy} "
                "or remove it yourself. Nothing in it was touched."
            )
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"training.output_dir: {path} cannot be made: {error.strerror}") from error
        return run

    @classmethod
    def create_numbered(cls, name: str) -> RunFolder:
        """Return the next free `runs/NAME-N`, made by this process and by no other that starts at the same time.

        Raises:
            UserError: it cannot be made.
        """
        number = 1
        while True:
            path = Path(f"runs/{name}-{number}")
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                number += 1
            except OSError as error:
                raise UserError(f"training.output_dir: {path} cannot be made: {error.strerror}") from error


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    from transformers import set_seed

    set_seed(seed)


def versions() -> dict[str, str]:
    """Return the versions of the packages that a training depends on."""
    return {name: metadata.version(name) for name in ("glmtune", "torch", "transformers", "peft", "accelerate")}


def machine() -> dict[str, Any]:
    """Return what a measurement was made on: processor, cores, memory, GPU, versions and the date."""
    import torch

    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_size() / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def memory_size() -> int:
    """Return the bytes of this machine's memory, or of this container's share of it."""
    import psutil

    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):  # no such limit: "max", or another system
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def release_memory() -> None:
    """Give freed memory back to the system, where its allocator keeps it: glibc's does between blocks still in use."""
    with suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())

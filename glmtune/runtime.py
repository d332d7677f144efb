"""The machine and the files around a run: errors for users, run folders, atomic writes, seeds, versions."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Something that the user can mend. The message says what, where and how; the command line shows no traceback."""


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the place of `path` when the block ends well.

    Raises:
        UserError: the disk is full, or the folder cannot be written; what stood at `path` is still there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            if temporary.is_dir() and path.is_dir():
                os.replace(path, Path(folder) / f"{path.name}.old")  # deleted with `folder`
            os.replace(temporary, path)
    except OSError as error:
        free = shutil.disk_usage(path.parent if path.parent.is_dir() else ".").free // 2**20
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error} ({free} MB free on this disk)"
        ) from error


def check_output(output: Path | str) -> None:
    """Find out before the work whether its result can be written to a file; its folder is made.

    Raises:
        UserError: it cannot.
    """
    path = Path(output)
    if path.is_dir():
        raise UserError(f"--output {output}: is a folder. Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}. Choose another place.") from error


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


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
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:  # not JSON, a number of 4300 digits, nested too deeply
                    raise UserError(f"{path}, line {number}: not JSON: {error}. One JSON object a line.") from None
                if not isinstance(record, dict):
                    raise UserError(f"{path}, line {number}: a {type(record).__name__}, not a JSON object {{...}}")
                yield number, record
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text: {error}. Convert it, e.g. with iconv -t UTF-8.") from None


class RunFolder:
    """A run: `recipe.yaml log.jsonl adapter/ (or model/) checkpoints/ report.json *.png`.

    Every other verb needs only this folder.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.log = self.path / "log.jsonl"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"
        self.report = self.path / "report.json"

    @classmethod
    def is_run(cls, path: Path | str) -> bool:
        """Return whether `path` holds a run; a checkpoint that carries a recipe is none."""
        return cls(path).recipe.is_file() and not (Path(path) / "config.json").is_file()

    @classmethod
    def create(cls, path: Path | str | None, default_name: str) -> RunFolder:
        """Return a new run folder: `path`, or the next free `runs/DEFAULT_NAME-N`.

        Raises:
            UserError: `path` holds something already.
        """
        if path is None:
            number = 1
            while Path(f"runs/{default_name}-{number}").exists():
                number += 1
            path = f"runs/{default_name}-{number}"
        run = cls(path)
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            what = "already holds a run" if cls.is_run(path) else "is not empty"
            remedy = f", go on with `glmtune train --resume {path}`," if cls.is_run(path) else ""
            raise UserError(
                f"training.output_dir: {path} {what}. Choose another folder with training.output_dir=...{remedy} "
                "or remove it yourself. Nothing in it was touched."
            )
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"training.output_dir: {path} cannot be made: {error.strerror}") from error
        return run


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    from transformers import set_seed

    set_seed(seed)


def machine() -> dict[str, Any]:
    """Return what a measurement was made on: processor, cores, memory, GPU, versions and the date."""
    import torch

    names = ("glmtune", "torch", "transformers", "peft", "accelerate")
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_size() / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def quiet_libraries() -> None:
    """Keep progress bars, advice and announcements of the libraries below out of the way; other warnings stay."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels that it would rather have
    warnings.simplefilter("ignore", FutureWarning)


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

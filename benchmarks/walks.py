"""How far a thing travels through glmtune: the modules and rooms in which a function runs on its way.

    python benchmarks/walks.py

Three walks of the smallest size: an example that is drawn, trained on, asked and scored; a record of a file to the
report of its run; a LoRA run to its export. A hook of Python's profiler notes the file of each function that is called,
from `run` of the command to its return; importing a module is no visit. A room is a module or package right below
`glmtune`. Beside them stands how often `config.json` and the tokenizer are read, and a prompt is encoded.
"""

from __future__ import annotations

import importlib
import inspect
import io
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

import glmtune

PACKAGE = Path(glmtune.__file__).parent
SMALL = [
    "training.steps=1",
    "training.batch_size=1",
    "evaluation.num_examples=1",
    "evaluation.num_examples_during=1",
    "generation.max_new_tokens=200",
]
TOLD = ("load_config", "load_tokenizer", "encode_prompt")


def walk(run: Callable[..., Any], **arguments: Any) -> str:
    """Call a command; return what it passes."""
    modules: set[str] = set()
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        own = code.co_filename.startswith(f"{PACKAGE}/") and code.co_filename.endswith(".py")
        if event == "call" and own and code.co_flags & inspect.CO_OPTIMIZED:  # bodies of modules and classes are not
            modules.add(Path(code.co_filename).relative_to(PACKAGE).as_posix())
            calls[code.co_name] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run(**arguments, console=Console(file=io.StringIO()))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    rooms = {module.partition("/")[0].removesuffix(".py") for module in modules}
    told = ", ".join(f"{name} {calls[name]}" for name in TOLD)
    return f"{len(modules)} modules of {len(rooms)} rooms; {told}\n  {' '.join(sorted(modules))}"


def main() -> None:
    """Print the three walks."""
    train, export = (importlib.import_module(f"glmtune.commands.{name}").run for name in ("train", "export"))
    with tempfile.TemporaryDirectory() as folder:
        records, run = Path(folder) / "records.jsonl", f"{folder}/run"
        records.write_text("".join(f'{{"prompt": "{i}+1=", "target": "{i + 1}"}}\n' for i in range(20)))
        own = ["task.name=instructions", f"task.file={records}", "task.held_out=0.5"]
        drawn = walk(train, overrides=[*SMALL, f"training.output_dir={run}"])
        read = walk(train, overrides=[*SMALL, *own, f"training.output_dir={folder}/records"])
        print("one example to its score:", drawn)
        print("one record to the report:", read)
        print("a LoRA run to its export:", walk(export, target=run))


if __name__ == "__main__":
    main()

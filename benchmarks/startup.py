"""Seconds to import the package, to print the help and to tell what is wrong: median of several fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import options, record

# Each command, and its exit code.
COMMANDS = {
    "import glmtune": (["-c", "import glmtune"], 0),
    **{
        f"glmtune {words}": (["-m", "glmtune", *words.split()], code)
        for words, code in {
            "--help": 0,
            "train --help-settings": 0,
            "train training.lr=1": 2,
            "train training.output_dir=taken": 2,
            "train task.name=instructions task.file=nowhere.jsonl": 2,
            "train task.name=instructions task.file=faulty.jsonl": 2,
            "evaluate nano --data faulty.jsonl": 2,
            "chat runs/nowhere": 2,
        }.items()
    },
}


def seconds(arguments: list[str], code: int, folder: Path) -> float:
    """Wall time of one fresh Python in a folder, which must end with an exit code."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, cwd=folder, text=True)
    taken = time.perf_counter() - start
    if done.returncode != code:
        raise SystemExit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
    return taken


def main() -> None:
    """Measure each command."""
    repeats = options(__doc__, repeats=9).repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "taken").mkdir()
        (folder / "taken" / "notes.txt").write_text("precious")
        (folder / "faulty.jsonl").write_text('{"prompt": "1", "target": "2"}\n{"prompt": 1\n')
        rows = [
            {"command": command, "median_s": statistics.median(seconds(*call, folder) for _ in range(repeats))}
            for command, call in COMMANDS.items()
        ]
    record("startup", {"repeats": repeats}, rows)


if __name__ == "__main__":
    main()

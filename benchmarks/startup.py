"""Seconds to import the package and to print the help: median of several fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from recording import options, record

COMMANDS = {
    "import glmtune": ["-c", "import glmtune"],
    "glmtune --help": ["-m", "glmtune", "--help"],
    "glmtune train --help-settings": ["-m", "glmtune", "train", "--help-settings"],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one fresh Python."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure each command."""
    repeats = options(__doc__, repeats=9).repeats
    rows = [
        {"command": name, "median_s": statistics.median(seconds(arguments) for _ in range(repeats))}
        for name, arguments in COMMANDS.items()
    ]
    record("startup", {"repeats": repeats}, rows)


if __name__ == "__main__":
    main()

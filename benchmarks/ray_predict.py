"""Records answered on Ray by two workers, one of which is killed on the way, against plain `glmtune predict`.

Both answer the same arithmetic problems with nano, greedily. A third of the way, one worker's process is ended by
SIGKILL; Ray starts it again. Then it is counted how many answers are missing, there twice, out of order, or others than
plain predict's. Seconds are those of the whole verb; those of Ray hold its start, and the loading in each worker.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from recording import options, record

from glmtune.cluster import Cluster, Worker
from glmtune.commands import predict


def write_problems(file: Path, count: int) -> None:
    """Sums, differences and products, each with its number."""
    rng = random.Random(0)
    with file.open("w") as stream:
        for number in range(count):
            problem = f"{rng.randrange(1000)}{rng.choice('+-*')}{rng.randrange(1000)}="
            stream.write(json.dumps({"id": number, "prompt": problem}) + "\n")


def workers() -> list[psutil.Process]:
    """Processes of this one's Ray that hold a model."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if f"({Worker.__name__})" in " ".join(child.cmdline())]


def kill_one(output: Path, lines: int, killed: list[dict[str, Any]], over: threading.Event) -> None:
    """End a worker as soon as so many lines are written."""
    while not over.wait(0.05):
        written = output.read_bytes().count(b"\n") if output.exists() else 0
        if written >= lines and (found := workers()):
            os.kill(found[0].pid, signal.SIGKILL)
            killed.append({"after_records": written, "workers": len(found)})
            return


def main() -> None:
    """Measure and record."""
    chosen = options(__doc__, records=50_000, workers=2, max_new_tokens=16)
    settings = [f"generation.max_new_tokens={chosen.max_new_tokens}"]
    with tempfile.TemporaryDirectory() as folder:
        problems, plain, spread = (Path(folder) / f"{name}.jsonl" for name in ("problems", "plain", "ray"))
        write_problems(problems, chosen.records)
        start = time.perf_counter()
        predict.run("nano", str(problems), str(plain), settings)
        alone = time.perf_counter() - start
        killed: list[dict[str, Any]] = []
        over = threading.Event()
        killer = threading.Thread(target=kill_one, args=(spread, chosen.records // 3, killed, over))
        killer.start()
        start = time.perf_counter()
        try:
            predict.run("nano", str(problems), str(spread), settings, cluster=Cluster(workers=chosen.workers))
        finally:
            over.set()
            killer.join()
        together = time.perf_counter() - start
        expected, found = ([json.loads(line) for line in file.open()] for file in (plain, spread))
    numbers = [one["id"] for one in found]
    rows = [
        {"who": who, "seconds": seconds, "records_per_s": chosen.records / seconds}
        for who, seconds in (("glmtune predict", alone), (f"--ray, {chosen.workers} workers, 1 killed", together))
    ]
    record(
        "ray_predict",
        {"model": "nano", **vars(chosen)},
        rows,
        killed=len(killed),
        killed_after_records=killed[0]["after_records"] if killed else None,
        lost=chosen.records - len(set(numbers)),
        doubled=len(numbers) - len(set(numbers)),
        out_of_order=sum(number != place for place, number in enumerate(numbers)),
        other_answers=sum(one != other for one, other in zip(expected, found, strict=False)),
    )
    assert killed, "it was over before a worker could be killed: ask for more records"


if __name__ == "__main__":
    main()

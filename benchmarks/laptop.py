"""From a run to a laptop: accuracy, size, memory and speed of its GGUF files in llama.cpp, by precision.

The run is that of `python benchmarks/demo_real.py --folder RUN`. Each file is asked the run's held-out problems by
`glmtune evaluate`. Then one prompt after the other is answered with long texts, on one thread: tokens a second of
processor time, in llama.cpp and by torch from the same file, stored there at the bits of the file.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from recording import options, record

from glmtune.commands import evaluate, export
from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.inference.completion import Answering, Request
from glmtune.inference.engine import Engine
from glmtune.inference.llama_cpp.engine import LlamaCppEngine
from glmtune.inference.llama_cpp.found import Found, find_llama_cpp
from glmtune.libraries import quiet_libraries
from glmtune.resolution import ResolvedModel, resolve

BITS = {"float16": 16, "q8_0": 8, "q4_0": 4, "q4_k_m": 4}  # of the linear layers here
PROMPTS = ("Write about the sea.", "Why is the sky blue?", "Tell a story of a horse.", "What is a prime number?")


def tokens_of(engine: Answering, tokens: int) -> int:
    """Answer the prompts, and return how many tokens that gave."""
    settings = GenerationSettings(max_new_tokens=tokens, batch_size=1)
    requests = [Request(encode_prompt(engine.tokenizer, prompt), settings) for prompt in PROMPTS]
    return sum(len(completion.token_ids) for _, completion in engine.complete(requests))


def in_llama_cpp(found: Found, resolved: ResolvedModel, tokens: int) -> tuple[float, float]:
    """Tokens a second of processor time, and GiB of memory, of llama.cpp's process on one thread."""
    parts = (Path(resolved.place), resolved.tokenizer, resolved.stops, resolved.limit)
    with LlamaCppEngine(found, *parts, threads=1) as engine:
        tokens_of(engine, 1)
        connection: Any = engine.connection
        process = psutil.Process(connection.process.running.pid)
        before = process.cpu_times()
        count = tokens_of(engine, tokens)
        after, memory = process.cpu_times(), process.memory_info().rss
    return count / (after.user + after.system - before.user - before.system), memory / 2**30


def in_torch(run: str, file: Path, tokens: int) -> float:
    """Tokens a second of processor time of this process on one thread."""
    resolved = resolve(file, [f"model.bits={BITS[file.stem]}"], recipe=run)
    engine = Engine(*resolved.load(), resolved.limit)
    tokens_of(engine, 1)
    start = time.process_time()
    return tokens_of(engine, tokens) / (time.process_time() - start)


def measure(run: str, file: Path, found: Found, tokens: int, problems: int) -> dict[str, Any]:
    """One row: a file of a run."""
    asked = [f"evaluation.num_examples={problems}"]
    _, report = evaluate.run(file, overrides=asked, recipe=run, engine=None)
    resolved = resolve(file, recipe=run)
    theirs, memory = in_llama_cpp(found, resolved, tokens)
    ours = in_torch(run, file, tokens)
    return {
        "precision": file.stem,
        "accuracy": report["accuracy"],
        "low": report["accuracy_ci95"][0],
        "high": report["accuracy_ci95"][1],
        "n": report["n"],
        "size_mib": file.stat().st_size / 2**20,
        "memory_gib": memory,
        "llama_cpp_tokens_per_cpu_s": theirs,
        "ours_tokens_per_cpu_s": ours,
        "ours_against_llama_cpp": ours / theirs,
    }


def measure_all(run: str, precisions: Sequence[str], tokens: int, problems: int) -> tuple[Found, list[dict[str, Any]]]:
    """A row for each precision."""
    found, rows = find_llama_cpp(), []
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            file = Path(folder, f"{precision}.gguf")
            export.run(run, "gguf", str(file), precision=precision)  # type: ignore[arg-type]
            rows.append(measure(run, file, found, tokens, problems))
            file.unlink()
    return found, rows


def main() -> None:
    """Measure and record."""
    chosen = options(__doc__, run="runs/demo-real", precisions="float16,q8_0,q4_0,q4_k_m", tokens=64, problems=200)
    quiet_libraries()
    torch.set_num_threads(1)
    found, rows = measure_all(chosen.run, chosen.precisions.split(","), chosen.tokens, chosen.problems)
    record("laptop", vars(chosen), rows, engine=found.name)


if __name__ == "__main__":
    main()

"""The engine and the server: tokens per second, times to the first token, and answers under load, each checked.

Every answer must be the one that the same model gives when it is asked alone, in this process.
"""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import torch
from http_client import Answered, ask, sent
from recording import options, record
from rounds import decode
from transformers.utils import logging

import glmtune
from glmtune import registry
from glmtune.config import GenerationSettings, load_recipe
from glmtune.data import examples_of
from glmtune.data.encoding import encode_prompt
from glmtune.inference.completion import Completion, Request
from glmtune.inference.engine import Engine
from glmtune.resolution import resolve

WIDE = Path(__file__).parents[1] / "checkpoints/arithmetic-wide"
INVALID: list[Any] = [b"{", {"model": "nano"}, {"model": "nobody", "messages": [{"role": "user", "content": "1"}]}]
TURNS = 3
PAGED = ["--continuous-batching", "--cb-max-memory-percent", "0.3"]  # else 0.6 of the memory of a machine
SHORT = 300  # characters of the workings that are asked for
Row = dict[str, Any]


def main() -> None:
    """Measure all of it, one thing after the other."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = options(__doc__, prompts=192, seconds=60, smol="", transformers="")
    torch.set_num_threads(2)
    rows = [*engine_rows(chosen.prompts), *mixed_rows(chosen.prompts), *server_rows(chosen.seconds)]
    if chosen.smol:
        rows += real_rows(chosen.smol)
    record("serving", vars(chosen) | {"smol": bool(chosen.smol)}, [{**EMPTY, **row} for row in rows])


EMPTY: Row = {
    "measured": "",
    "who": "",
    "tokens_per_s": None,
    "ratio": None,
    "p50_ms": None,
    "p95_ms": None,
    "p99_ms": None,
    "answers": None,
    "same": None,
    "refused": None,
    "memory_growth": None,
}


def wording(count: int) -> list[Any]:
    """Questions that nano knows the form of."""
    module = registry.find("glmtune.tasks", "wording")
    task = module(module.Settings(name="wording"))
    return [example.prompt for example in examples_of(task, "held_out", count, load_recipe().seed)]


def engine_rows(count: int) -> Iterator[Row]:
    """Problems of arithmetic-wide, worked out in full: batches of `generate` in rounds, and rows that come and go."""
    resolved = resolve(str(WIDE))
    model, tokenizer = resolved.load()
    drawn = examples_of(resolved.task, "held_out", 4 * count, resolved.recipe.seed)
    short = [example for example in drawn if len(example.target) <= SHORT][:count]
    prompts = [encode_prompt(tokenizer, example.prompt) for example in short]
    longest = [2 * SHORT] * len(prompts)
    yield from compared("engine, problems of arithmetic-wide", model, tokenizer, prompts, longest, (16, 32, 64))


def mixed_rows(count: int) -> Iterator[Row]:
    """Prompts and answers of many lengths: a few long ones among short ones, as files of records have them."""
    model, tokenizer = glmtune.load(str(WIDE))
    rng = random.Random(0)
    prompts, longest = [], []
    for _ in range(count):
        long = rng.random() < 0.2
        terms = "+".join(str(rng.randrange(10**6)) for _ in range(rng.randrange(6, 12) if long else 2))
        prompts.append(encode_prompt(tokenizer, f"{terms}="))
        longest.append(rng.randrange(150, 300) if long else rng.randrange(8, 40))
    yield from compared("predict, mixed lengths", model, tokenizer, prompts, longest, (32, 64))


def compared(
    what: str, model: Any, tokenizer: Any, prompts: Sequence[Any], longest: Sequence[int], sizes: Sequence[int]
) -> Iterator[Row]:
    """Rounds of batches of 64 and slots of some sizes, in fp32, where answers must be the same; in turns, the medians.

    A ratio is the median of those of each turn: a machine that others use is now faster, now slower.
    """
    model.float()
    engine = Engine(model, tokenizer)
    stops, pad = engine.reader.stops, tokenizer.pad_token_id

    def in_rounds() -> list[list[int]]:
        return decode(model, prompts, stops, pad, longest, 64)

    def in_slots(size: int) -> Callable[[], list[list[int]]]:
        settings = [GenerationSettings(max_new_tokens=room, batch_size=size) for room in longest]
        requests = [Request(ids, one) for ids, one in zip(prompts, settings, strict=True)]

        def run() -> list[list[int]]:
            answers = dict(engine.complete(requests))
            return [list(answers[index].token_ids) for index in range(len(prompts))]

        return run

    ways = {"batches of 64 in rounds": in_rounds} | {f"{size} slots": in_slots(size) for size in sizes}
    took: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(TURNS):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            took[name].append(time.perf_counter() - start)
    in_turns = took["batches of 64 in rounds"]
    expected = found["batches of 64 in rounds"]
    tokens = sum(map(len, expected))
    for name in ways:
        same = sum(a == b for a, b in zip(found[name], expected, strict=True))
        yield {
            "measured": what,
            "who": name,
            "tokens_per_s": tokens / median(took[name]),
            "ratio": median(slow / fast for slow, fast in zip(in_turns, took[name], strict=True)),
            "answers": len(prompts),
            "same": same,
        }


def server_rows(seconds: int) -> Iterator[Row]:
    """nano over HTTP."""
    model, tokenizer = glmtune.load("nano")
    prompts = list(dict.fromkeys(wording(400)))
    settings = GenerationSettings(max_new_tokens=48, batch_size=32)
    expected = dict(zip(prompts, Engine(model, tokenizer).answer(prompts, settings), strict=True))
    with serving("nano", "--slots", "64", "--max-queue", "1000") as (port, process):
        asyncio.run(many(port, prompts[:20], 4))  # warm
        yield from in_turns(Engine(model, tokenizer), port, prompts, expected, settings)
        yield arrivals(port, prompts, expected, 20, 15)
        yield soak(port, prompts, expected, 200, seconds, process)


def in_turns(
    engine: Engine, port: int, prompts: Sequence[Any], expected: dict[Any, Completion], settings: GenerationSettings
) -> Iterator[Row]:
    """Streams in this process, by as many threads as a server of a small model has, and those of 1, 16, 64 clients."""
    rows: dict[str, list[Row]] = {}
    threads = torch.get_num_threads()
    for _ in range(TURNS):
        torch.set_num_threads(max(1, threads - 1))
        rows.setdefault("in process", []).append(streamed_here(engine, prompts[:60], settings))
        torch.set_num_threads(threads)
        for clients in (1, 16, 64):
            rows.setdefault(f"{clients} clients", []).append(throughput(port, prompts, expected, clients))
    alone = [row["tokens_per_s"] for row in rows["1 clients"]]
    for who, turns in rows.items():
        rates = [row["tokens_per_s"] for row in turns]
        summed = {name: sum(row[name] for row in turns) for name in ("answers", "same") if name in turns[0]}
        times = {name: median(row[name] for row in turns) for name in turns[0] if name.endswith("_ms")}
        ratio = median(rate / one for rate, one in zip(rates, alone, strict=True))
        yield {
            "measured": "nano, streams",
            "who": who,
            "tokens_per_s": median(rates),
            "ratio": ratio,
            **times,
            **summed,
        }


def streamed_here(engine: Engine, prompts: Sequence[Any], settings: GenerationSettings) -> Row:
    """One stream after the other, in this process."""
    start, tokens = time.perf_counter(), 0
    for prompt in prompts:
        for delta in engine.stream(Request(encode_prompt(engine.tokenizer, prompt), settings)):
            tokens += len(delta.token_ids)
    return {"tokens_per_s": tokens / (time.perf_counter() - start)}


@contextmanager
def serving(*words: str, module: str = "glmtune", ready: str = "/health") -> Iterator[tuple[int, psutil.Process]]:
    """A server in a process of its own, that answers; ended at the end."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    verb = [sys.executable, "-m", module, "serve", *words, "--port", str(port)]
    process = subprocess.Popen(verb, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def body_of(prompt: Any, model: str = "nano", longest: int = 48) -> Row:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"model": model, "messages": messages, "max_tokens": longest}


async def many(port: int, prompts: Sequence[Any], clients: int, **body: Any) -> list[tuple[Any, Answered]]:
    """All prompts, asked by some clients, each of which asks one after the other."""
    waiting, found = list(prompts), []

    async def client() -> None:
        while waiting:
            prompt = waiting.pop()
            found.append((prompt, await ask(port, body_of(prompt, **body))))

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


def throughput(port: int, prompts: Sequence[Any], expected: dict[Any, Completion], clients: int) -> Row:
    """Tokens per second of some clients."""
    asked = prompts[:60] if clients == 1 else prompts
    start = time.perf_counter()
    found = asyncio.run(many(port, asked, clients))
    took = time.perf_counter() - start
    tokens = sum(answered.tokens for _, answered in found)
    return {
        "tokens_per_s": tokens / took,
        **spread([answered.first for _, answered in found]),
        **checked(found, expected),
    }


def checked(found: Sequence[tuple[Any, Answered]], expected: dict[Any, Completion]) -> Row:
    """How many answers came, and how many are those of one who is asked alone."""
    return {"answers": len(found), "same": sum(one.text == expected[prompt].text for prompt, one in found)}


def spread(times: Sequence[float | None]) -> Row:
    """Percentiles of times in seconds, in milliseconds."""
    came = sorted(1000 * one for one in times if one is not None)
    cuts = quantiles(came, n=100, method="inclusive") if len(came) > 1 else [0.0] * 99
    return {"p50_ms": cuts[49], "p95_ms": cuts[94], "p99_ms": cuts[98]}


def arrivals(port: int, prompts: Sequence[Any], expected: dict[Any, Completion], rate: float, seconds: float) -> Row:
    """Times to the first token where requests arrive by chance."""
    rng = random.Random(2)

    async def run() -> list[tuple[Any, Answered]]:
        tasks = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            prompt = rng.choice(prompts)
            tasks.append((prompt, asyncio.create_task(ask(port, body_of(prompt)))))
            await asyncio.sleep(rng.expovariate(rate))
        return [(prompt, await task) for prompt, task in tasks]

    found = asyncio.run(run())
    row = {"measured": "time to the first token, nano", "who": f"{rate:g} requests/s"}
    return {**row, **spread([answered.first for _, answered in found]), **checked(found, expected)}


def soak(
    port: int, prompts: Sequence[Any], expected: dict[Any, Completion], clients: int, seconds: float, process: Any
) -> Row:
    """Many clients at once; a tenth leave in the middle, a tenth ask what cannot be asked."""
    rng = random.Random(3)
    found: list[tuple[Any, Answered]] = []
    refused: list[int] = []
    memory: list[int] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            kind, prompt = rng.random(), rng.choice(prompts)
            if kind < 0.1:
                await ask(port, body_of(prompt), leave_after=1)
            elif kind < 0.2:
                async with sent(port, "/v1/chat/completions", rng.choice(INVALID)) as reader:
                    refused.append(int((await reader.readline()).split()[1]))
            else:
                found.append((prompt, await ask(port, body_of(prompt))))

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append(process.memory_info().rss)
            await asyncio.sleep(1)

    async def run() -> None:
        await asyncio.gather(watch(), *(client() for _ in range(clients)))

    asyncio.run(run())
    settled = memory[len(memory) // 4 :]
    return {
        "measured": f"{clients} clients for {seconds:g} s",
        "who": f"a tenth leave, a tenth ({len(refused)}) invalid",
        "tokens_per_s": sum(answered.tokens for _, answered in found) / seconds,
        **spread([answered.first for _, answered in found]),
        **checked(found, expected),
        "refused": sum(400 <= status < 500 for status in refused),
        "memory_growth": settled[-1] / settled[0] if settled else None,
    }


def real_rows(smol: str) -> Iterator[Row]:
    """SmolLM2-135M in fp32 over HTTP, and by `transformers serve` in the same run, one by one and in its batches."""
    questions = [f"Name something that has the number {number}, in one sentence." for number in range(32)]
    rates: dict[str, dict[int, float]] = {}
    plain = ["--dtype", "float32"]
    for who, words, module, model in (
        ("glmtune", [f"smol={smol}", "--slots", "64", "--set", "model.dtype=float32"], "glmtune", "smol"),
        ("transformers serve", [smol, *plain], "transformers.cli.transformers", smol),
        ("transformers serve --continuous-batching", [smol, *plain, *PAGED], "transformers.cli.transformers", smol),
    ):
        with serving(*words, module=module) as (port, _):
            asyncio.run(many(port, questions[:2], 1, model=model, longest=32))
            for clients in (1, 16, 64):
                asked = questions[:8] if clients == 1 else questions * 2
                start = time.perf_counter()
                found = asyncio.run(many(port, asked, clients, model=model, longest=32))
                took = time.perf_counter() - start
                rate = sum(answered.tokens or len(answered.chunks) for _, answered in found) / took
                rates.setdefault(who, {})[clients] = rate
                row = {"measured": "SmolLM2-135M over HTTP", "who": f"{who}, {clients} clients", "tokens_per_s": rate}
                first = spread([answered.first for _, answered in found])
                yield {**row, **first, "ratio": rate / rates["glmtune"][clients], "answers": len(found)}


if __name__ == "__main__":
    main()

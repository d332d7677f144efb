"""Decoding tokens per second: ours at batch 1, 8 and 64 against one `model.generate` call a prompt.

Greedy, the same prompts and answer lengths in all rows, in one run. The answers must be the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from recording import options, record
from rounds import generation_config
from transformers.utils import logging

import glmtune
from glmtune import registry
from glmtune.config import GenerationSettings, load_recipe
from glmtune.data import examples_of
from glmtune.data.control_tokens import plain_ids
from glmtune.data.encoding import encode_prompt
from glmtune.inference.engine import Engine
from glmtune.inference.reading import AnswerReader


def timed(decode: Callable[[], list[str]]) -> tuple[list[str], float]:
    """The answers and the seconds they took."""
    start = time.perf_counter()
    answers = decode()
    return answers, time.perf_counter() - start


def main() -> None:
    """Measure all batch sizes."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = options(__doc__, prompts=256)
    recipe = load_recipe()
    task = registry.find("glmtune.tasks", "wording")(registry.find("glmtune.tasks", "wording").Settings(name="wording"))
    model, tokenizer = glmtune.load("nano")
    prompts = [example.prompt for example in examples_of(task, "held_out", chosen.prompts, recipe.seed)]
    settings = recipe.generation

    @torch.inference_mode()
    def one_by_one() -> list[str]:
        answers = []
        for prompt in prompts:
            ids = torch.tensor([encode_prompt(tokenizer, prompt)])
            reader = AnswerReader.of(model, tokenizer)
            out = model.generate(
                ids, generation_config=generation_config(reader.stops, tokenizer.pad_token_id, settings.longest)
            )
            answers.append(reader.read(out[0, ids.shape[1] :].tolist()))
        return answers

    def batched(size: int) -> Callable[[], list[str]]:
        sized = GenerationSettings(**{**settings.model_dump(), "batch_size": size})
        return lambda: [completion.text for completion in Engine(model, tokenizer).answer(prompts, sized)]

    one_by_one()  # warm up
    expected, plain_seconds = timed(one_by_one)
    tokens = sum(len(plain_ids(tokenizer, text)) + 1 for text in expected)
    rows = [
        {"decoder": "model.generate, one by one", "tokens_per_s": tokens / plain_seconds, "ratio": 1.0, "same": True}
    ]
    for size in (1, 8, 64):
        answers, seconds = timed(batched(size))
        same = sum(a == b for a, b in zip(answers, expected, strict=True)) / len(expected)
        rows.append(
            {
                "decoder": f"glmtune, batch {size}",
                "tokens_per_s": tokens / seconds,
                "ratio": plain_seconds / seconds,
                "same": same,
            }
        )
    record("decode_throughput", vars(chosen) | {"tokens": tokens}, rows)


if __name__ == "__main__":
    main()

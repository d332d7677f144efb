"""One stream of SmolLM2-135M-Instruct at 16, 8 and 4 bits on a CPU: ours, and bitsandbytes as its documentation says.

Each writes the same number of tokens by transformers' `generate`, in turns; of each the best round counts. `cpu` is the
processor's time, which other work on the machine disturbs least. Ours is what `model.bits` loads.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from real_model import real_model
from recording import options, record
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import glmtune
from glmtune.models.library_layers import bits_config

DTYPE = torch.bfloat16


def models(path: str) -> dict[tuple[str, int], Any]:
    """Every model that is compared, by who stores it and at how many bits."""
    loaded: dict[tuple[str, int], Any] = {
        ("glmtune", bits): glmtune.load(path, bits=bits, dtype="bfloat16")[0] for bits in (16, 8, 4)
    }
    for bits in (8, 4):
        config = bits_config(bits, DTYPE)
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPE, quantization_config=config, device_map="cpu")
        loaded["bitsandbytes", bits] = plain.eval()
    return loaded


@torch.inference_mode()
def write(model: Any, tokens: int) -> tuple[float, float]:
    """Seconds, and those of the processor, that some tokens take."""
    ids = torch.arange(100, 132)[None]
    start, cpu = time.perf_counter(), time.process_time()
    model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return time.perf_counter() - start, time.process_time() - cpu


def main() -> None:
    """Measure all of them in turns."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = options(__doc__, tokens=32, rounds=3, path="")
    loaded = models(chosen.path or str(real_model()))
    found: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in loaded}
    for model in loaded.values():
        write(model, 4)  # bitsandbytes repacks weights at its first answer
    for _ in range(chosen.rounds):
        for key, model in loaded.items():
            found[key].append(write(model, chosen.tokens))
    best = {key: tuple(min(column) for column in zip(*times, strict=True)) for key, times in found.items()}
    whole = best["glmtune", 16]
    rows = [
        {
            "who": who,
            "bits": bits,
            "tokens_per_s": chosen.tokens / seconds,
            "tokens_per_cpu_s": chosen.tokens / cpu,
            "ratio_to_16": whole[0] / seconds,
            "cpu_ratio_to_16": whole[1] / cpu,
        }
        for (who, bits), (seconds, cpu) in best.items()
    ]
    record("decode_quantized", {"tokens": chosen.tokens, "rounds": chosen.rounds}, rows)


if __name__ == "__main__":
    main()

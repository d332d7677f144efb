"""ChatGLM-6B of full size and random fp16 weights at 4 bits on a CPU: loading, a packed copy, and one token.

Loaded from files of 16 bits, which are packed while they are read; saved; loaded again from the packed copy, which is
mapped, every weight read once. Each measurement runs in a process of its own; files are in the system's cache as far as
memory allows. `token_s` is the best of several tokens of one stream. Takes 17 GB of disk in the folder for temporary
files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from load import host_peak
from memory import write_checkpoint
from recording import options, record
from transformers.utils import logging

from glmtune.config import ModelSettings
from glmtune.models import loading

TOKENS = 6


@torch.inference_mode()
def measure(folder: str, bits: int, copy: str) -> dict[str, Any]:
    """Load a folder, read every weight, write tokens, and save a copy where one is wanted."""
    from glmtune.models import packed_checkpoints  # noqa: F401  imports are no part of loading

    start, cpu = time.perf_counter(), time.process_time()
    model, tokenizer = loading.load_model(ModelSettings(path=folder, dtype="bfloat16", bits=bits))  # type: ignore[arg-type]
    loaded = time.perf_counter() - start
    for weight in model.parameters():
        weight.view(torch.uint8).flatten()[::4096].sum()
    found = {"load_s": loaded, "touched_s": time.perf_counter() - start, "load_cpu_s": time.process_time() - cpu}
    found["load_gib"] = host_peak()
    prompt = tokenizer("1 + 1 = 2, " * 4, return_tensors="pt")["input_ids"]
    output = model(prompt, use_cache=True)
    seconds, processor = [], []
    for _ in range(TOKENS):
        start, cpu = time.perf_counter(), time.process_time()
        token = output.logits[:, -1:].argmax(-1)
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
    found |= {"token_s": min(seconds), "token_cpu_s": min(processor), "peak_gib": host_peak()}
    if copy:
        model.save_pretrained(copy)
        tokenizer.save_pretrained(copy)
    return found


def main() -> None:
    """Measure both ways to load."""
    chosen = options(__doc__, depth=28, bits=4)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        whole, packed = Path(temporary) / "whole", Path(temporary) / "packed"
        write_checkpoint(whole, chosen.depth)
        for folder, bits, copy in ((whole, chosen.bits, packed), (packed, 16, "")):
            command = [sys.executable, __file__, "--cell", str(folder), str(bits), str(copy)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            files = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
            rows.append({"from": folder.name, "files_gb": files, **json.loads(done.stdout.splitlines()[-1])})
    record("packed_full_size", vars(chosen), rows)


if __name__ == "__main__":
    if "--cell" in sys.argv:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        main()

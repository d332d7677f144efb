"""Peak memory and speed of ChatGLM-6B with random weights: each method at 16, 8 and 4 bits, ours and plain libraries.

On a GPU the model has its full size. On a CPU it has fewer layers of full width, and the longest batches are left out;
`--depth 28` gives it all of them, for batches of one short example, and of the plain methods LoRA alone. Both compute
in bfloat16, so that the bytes are those of a GPU; the figures of a GPU itself stay empty on a CPU. Each cell runs in a
process of its own.

"Plain" is transformers' Trainer with peft and bitsandbytes, used as their documentation says, on the same model class;
its prefix tuning cannot recompute activations. The share of the matrix rate counts the products that a frozen base
needs for its gradients, not those that are recomputed, and the head for target tokens only, for both.

Results are written after every cell; `--resume 1` goes on where a run was cut off, with the cells that are missing. A
checkpoint of 28 layers takes 12.3 GB of disk.

`--real 1` measures SmolLM2-135M-Instruct instead, against the estimate alone (`memory_real.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import memory_real
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model, prepare_model_for_kbit_training
from recording import RESULTS, options, record
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from glmtune import distributed, registry
from glmtune.config import Recipe, load_recipe
from glmtune.data import EncodedDataset
from glmtune.data.collation import Collator
from glmtune.data.encoding import IGNORED, Encoding
from glmtune.models import loading
from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.library_layers import bits_config
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder
from glmtune.training.memory import Device
from glmtune.training.placement import estimate
from glmtune.training.trainer import make_trainer

GIB = 2**30
RANK, PREFIX, FROZEN = 16, 128, 3
METHODS = {
    "lora": f"{{name: lora, rank: {RANK}}}",
    "ptuning_v2": f"{{name: ptuning_v2, num_virtual_tokens: {PREFIX}, dropout: 0}}",
    "freeze": f"{{name: freeze, num_layers: {FROZEN}}}",
}
SPECIAL = ("mask_token_id", "gmask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
ON_GPU = torch.cuda.is_available()
DEVICE = distributed.local_device()
DTYPE = "auto" if ON_GPU else "bfloat16"
FULL_DEPTH = 28


@dataclass(frozen=True)
class Cell:
    """One measurement. `method` may be `inference`; `target` is how many of the `length` tokens are learned."""

    who: str
    method: str
    bits: int
    batch: int
    length: int
    target: int
    depth: int
    quantize_embedding: bool = False


def write_checkpoint(folder: Path, depth: int) -> None:
    """A ChatGLM-6B of random fp16 weights, a file for each block, with nano's tokenizer (its text does not matter)."""
    nano = str(loading.EMBEDDED["nano"])
    small = loading.load_config(nano)
    special = {name: getattr(small, name) for name in SPECIAL}
    config = ChatGLMConfig(num_layers=depth, dtype="float16", architectures=["ChatGLMForCausalLM"], **special)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    noise = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).mul_(config.initializer_range).half()
    files: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")
        file = f"block-{parts[2]}.safetensors" if parts[1] == "layers" else "rest.safetensors"
        files.setdefault(file, []).append(name)
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in files.items():
        weights = {}
        for name in names:
            shape = model.get_parameter(name).shape
            values = noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].reshape(shape).clone()
            weights[name] = values + 1 if "layernorm.weight" in name else values
        save_file(weights, folder / file, {"format": "pt"})
    index = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.save_pretrained(folder)
    loading.load_tokenizer(nano).save_pretrained(folder)


class Rows(EncodedDataset):
    """Random token ids in the form of ChatGLM-6B: prompt, [gMASK], <sop>, answer."""

    def __init__(self, config: Any, count: int, length: int, target: int):
        self.config, self.count, self.length, self.target = config, count, length, target

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Encoding:
        ids = torch.randint(20, 100_000, (self.length,), generator=torch.Generator().manual_seed(index)).tolist()
        first = self.length - self.target
        ids[first - 2 : first] = [self.config.gmask_token_id, self.config.bos_token_id]
        return {"input_ids": ids, "labels": [IGNORED] * first + ids[first:], "record": index}


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def synchronize() -> None:
    """Wait for the GPU."""
    if ON_GPU:
        torch.cuda.synchronize()


def reset_peak() -> None:
    """Begin a new peak."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """GiB: torch's max_memory_allocated, or the largest resident memory of this process."""
    if ON_GPU:
        return torch.cuda.max_memory_allocated() / GIB
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / GIB


def recipe_of(cell: Cell, checkpoint: str) -> Recipe:
    """The cell as a user would write it."""
    method = METHODS.get(cell.method, "{name: lora}")
    # Nothing is saved below layers that learn in place, and few tokens leave little to save; peft's LoRA recomputes.
    recompute = cell.method == "lora" or (cell.method == "ptuning_v2" and cell.batch * cell.length > 512)
    return load_recipe(
        None,
        [
            f"model.path={checkpoint}",
            f"model.dtype={DTYPE}",
            f"model.bits={cell.bits}",
            f"model.quantize_embedding={cell.quantize_embedding}",
            f"method={method}",
            f"training.gradient_checkpointing={recompute}",
            f"training.batch_size={cell.batch}",
        ],
    )


def plain_model(cell: Cell, checkpoint: str) -> Any:
    """The checkpoint by transformers and bitsandbytes alone."""
    dtype = loading.choose_dtype(DTYPE, DEVICE, wide=False)
    quantized = {"quantization_config": bits_config(cell.bits, dtype)} if cell.bits < 16 else {}
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, device_map={"": DEVICE}, **quantized)


def plain_method(cell: Cell, model: Any) -> Any:
    """The method as peft documents it."""
    if cell.bits < 16:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=cell.method != "ptuning_v2")
    if cell.method == "lora":
        config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=32, target_modules="all-linear")
        return get_peft_model(model, config)
    if cell.method == "ptuning_v2":
        return get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX))
    model.requires_grad_(False)
    for block in model.transformer.layers[-FROZEN:]:
        block.float().requires_grad_(True)
    return model


def no_judge(model: Any) -> dict[str, Any]:
    """There is nothing to judge."""
    return {"accuracy": 0.0, "accuracy_ci95": [0.0, 1.0], "n": 0}


def measure_training(cell: Cell, checkpoint: str, steps: int) -> dict[str, float]:
    """Seconds a step, the first one left out, and the peaks of loading and training."""
    recipe, config = recipe_of(cell, checkpoint), AutoConfig.from_pretrained(checkpoint)
    rows = Rows(config, steps * cell.batch, cell.length, cell.target)
    clock = Clock()
    reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        if cell.who == "ours":
            base, tokenizer = loading.load_model(recipe.model)
            loaded = peak()
            method = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
            recipe.training.learning_rate = 1e-4
            model = method.apply(base)
            trainer: Any = make_trainer(model, tokenizer, rows, recipe, steps, no_judge, RunFolder(folder))
            trainer.args.eval_strategy = trainer.args.save_strategy = "no"
            trainer.args.load_best_model_at_end = False
            model.config.use_cache = False
        else:
            model = plain_model(cell, checkpoint)
            loaded = peak()
            model = plain_method(cell, model)
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=cell.batch,
                learning_rate=1e-4,
                bf16=loading.choose_dtype(DTYPE, DEVICE, wide=False) == torch.bfloat16,
                gradient_checkpointing=cell.method == "lora",
                gradient_checkpointing_kwargs={"use_reentrant": False} if cell.method == "lora" else None,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_steps=10**6,
                use_cpu=not ON_GPU,
                remove_unused_columns=False,
            )
            collate = Collator(config.pad_token_id)

            def without_records(encodings: list[Encoding]) -> dict[str, torch.Tensor]:
                batch = collate(encodings)
                del batch["record"], batch["columns"]
                return batch

            trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=without_records)
        trainer.add_callback(clock)
        reset_peak()
        trainer.train()
    timed = clock.seconds[1:] or clock.seconds
    return {"load_gib": loaded, "peak_gib": peak(), "seconds": sum(timed) / len(timed)}


def measure_inference(cell: Cell, checkpoint: str, new_tokens: int) -> dict[str, float]:
    """Seconds a token once the prompt is read, and the peaks of loading and answering."""
    reset_peak()
    model = (
        loading.load_model(recipe_of(cell, checkpoint).model)[0]
        if cell.who == "ours"
        else plain_model(cell, checkpoint)
    )
    loaded = peak()
    model.eval()
    row = Rows(model.config, 1, cell.length - new_tokens, 0)[0]["input_ids"]
    ids = torch.tensor([row] * cell.batch, device=model.device)
    reset_peak()
    stamps = Stamps()
    options = {"min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 3}
    with torch.inference_mode():  # not while it is loaded: weights that are made in it cannot be tied
        model.generate(ids, max_new_tokens=new_tokens, stopping_criteria=StoppingCriteriaList([stamps]), **options)
    return {"load_gib": loaded, "peak_gib": peak(), "seconds": (stamps[-1] - stamps[0]) / (new_tokens - 1)}


class Stamps(list[float], StoppingCriteria):
    """When each token was there."""

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        synchronize()
        self.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def matrix_rate(repeats: int = 5) -> float:
    """Multiplications and additions a second of the device, in the precision that is used on it."""
    dtype = loading.choose_dtype(DTYPE, DEVICE, wide=False)
    left, right = (torch.randn(4096, 4096, device=DEVICE, dtype=dtype) for _ in range(2))
    left @ right
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        left @ right
    synchronize()
    return 2 * 4096**3 * repeats / (time.perf_counter() - start)


def useful_products(cell: Cell, config: Any) -> float:
    """Multiplications and additions that a step needs: forward, gradients of inputs, and of the weights that learn."""
    width, inner, tokens = config.hidden_size, config.inner_hidden_size, cell.batch * cell.length
    block = 4 * width * width + 2 * width * inner
    head = 4 * width * config.vocab_size * cell.batch * cell.target
    if cell.method == "freeze":
        learned = min(FROZEN, cell.depth)
        return 2 * block * tokens * (cell.depth + 2 * learned) + head
    return 4 * block * tokens * cell.depth + head


def run(cell: Cell, checkpoint: Path, steps: int) -> dict[str, Any]:
    """A cell in a process of its own; what it printed last."""
    command = [sys.executable, __file__, "--cell", json.dumps(asdict(cell)), str(checkpoint), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        return {"failed": (last or ["no message"])[0][:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cells(depth: int) -> list[Cell]:
    """What is measured, ours and plain in turns."""
    shapes = [(1, 128, 64), (4, 128, 64), (1, 1024, 64), (4, 1024, 64), (1, 1024, 512)]
    if not ON_GPU:
        shapes = shapes[:1] if depth == FULL_DEPTH else shapes[:3]
    found = []
    for batch, length, target in shapes:
        for bits in (16, 8, 4):
            for method in METHODS:
                for who in ("ours", "plain"):
                    found.append(Cell(who, method, bits, batch, length, target, depth))
    for bits in (16, 8, 4):
        found += [Cell(who, "inference", bits, 1, 2048, 0, depth) for who in ("ours", "plain")]
    if depth == FULL_DEPTH and not ON_GPU:  # a cell takes minutes
        found = [cell for cell in found if cell.who == "ours" or cell.method == "lora"]
    small = [Cell("ours", method, 4, 1, 128, 64, depth, True) for method in ("lora", "ptuning_v2")]
    return [*found, *small, Cell("ours", "inference", 4, 1, 2048, 0, depth, True)]


def row_of(cell: Cell, found: dict[str, Any], checkpoint: Path, rate: float) -> dict[str, Any]:
    """A line of the table."""
    row: dict[str, Any] = {key: value for key, value in asdict(cell).items() if key != "depth"}
    row |= {key: found.get(key) for key in ("load_gib", "peak_gib", "seconds")}
    row |= {"tokens_per_s": None, "of_matrix_rate": None, "estimate_gib": None, "estimate_error": None}
    if "failed" in found:
        return row | {"note": found["failed"]}
    tokens = cell.batch if cell.method == "inference" else cell.batch * cell.length
    row["tokens_per_s"] = tokens / found["seconds"]
    if cell.method != "inference":
        config = AutoConfig.from_pretrained(checkpoint)
        row["of_matrix_rate"] = useful_products(cell, config) / found["seconds"] / rate
    return with_estimate(row | {"note": ""}, cell, checkpoint)


def with_estimate(row: dict[str, Any], cell: Cell, checkpoint: Path) -> dict[str, Any]:
    """A measured row of ours with what `glmtune estimate` says of it, and its error."""
    if cell.who != "ours" or row["peak_gib"] is None:
        return row
    recipe = recipe_of(cell, str(checkpoint))
    device: Device = "cuda" if ON_GPU else "cpu"
    target = cell.target or 1
    expected = estimate(recipe, ResolvedModel(recipe).architecture, device, cell.length, target)
    size = expected.inference(cell.length, cell.batch) if cell.method == "inference" else expected.step
    return row | {"estimate_gib": size / GIB, "estimate_error": size / GIB / row["peak_gib"] - 1}


def main() -> None:
    """Measure every cell."""
    depth, steps = (FULL_DEPTH, 6) if ON_GPU else (3, 3)
    chosen = options(__doc__, depth=depth, steps=steps, resume=0, real=0, only="", model="")
    if chosen.real:
        memory_real.main(chosen.only, chosen.model)
        return
    name = "memory_gpu" if ON_GPU else "memory_cpu_full_depth" if chosen.depth == FULL_DEPTH else "memory_cpu"
    settings = {"depth": chosen.depth, "steps": chosen.steps}
    wanted, rows = cells(chosen.depth), []
    if chosen.resume:
        known = json.loads((RESULTS / f"{name}.json").read_text())
        assert known["settings"] == settings, f"{name}.json was made with {known['settings']}"
        rows = known["rows"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "chatglm"
        write_checkpoint(folder, chosen.depth)
        rate = matrix_rate()
        rows = [with_estimate(row, cell, folder) for row in rows for cell in wanted if is_of(row, cell)]
        for cell in wanted:
            if any(is_of(row, cell) for row in rows):
                continue
            if cell.method == "freeze" and cell.bits < 16:
                found: dict[str, Any] = {"failed": "refused: weights of 8 or 4 bits cannot learn"}
            else:
                found = run(cell, folder, chosen.steps)
            rows.append(row_of(cell, found, folder, rate))
            print(rows[-1], file=sys.stderr, flush=True)
            rows.sort(key=lambda row: next(index for index, cell in enumerate(wanted) if is_of(row, cell)))
            record(name, settings, rows, matrix_tflops=rate / 1e12, **ratios(rows))


def is_of(row: dict[str, Any], cell: Cell) -> bool:
    """Whether a row of the results is the measurement of a cell."""
    return all(row[key] == value for key, value in asdict(cell).items() if key != "depth")


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ours against plain, cell by cell: speed and peak memory."""
    pairs: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["seconds"] and not row["quantize_embedding"]:
            shape = f"batch {row['batch']}, {row['length']} tokens, {row['target']} targets"
            key = f"{row['method']}, {row['bits']} bits, {shape}"
            pairs.setdefault(key, {})[row["who"]] = row
    both = {key: pair for key, pair in pairs.items() if len(pair) == 2}
    return {
        "speed_against_plain": {k: round(p["plain"]["seconds"] / p["ours"]["seconds"], 2) for k, p in both.items()},
        "peak_against_plain": {k: round(p["ours"]["peak_gib"] / p["plain"]["peak_gib"], 2) for k, p in both.items()},
    }


def measure(arguments: argparse.Namespace) -> None:
    """One cell, in its own process."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    spec, checkpoint, steps = arguments.cell
    cell = Cell(**json.loads(spec))
    if cell.method == "inference":
        found = measure_inference(cell, checkpoint, new_tokens=17 if ON_GPU else 4)
    else:
        found = measure_training(cell, checkpoint, int(steps))
    print(json.dumps(found))


if __name__ == "__main__":
    if "--cell" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--cell", nargs=3)
        measure(parser.parse_args())
    else:
        main()

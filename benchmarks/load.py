"""Seconds and peak memory to load a random fp16 checkpoint of full size: ours against plain `from_pretrained`.

Ours is `loading.load_model`, tokenizer and checks included: ChatGLM-6B under its original names, and ChatGLM3-6B in
the layout of its release, once as safetensors and once as pytorch_model*.bin. Plain is `from_pretrained` of a native
class of transformers, on files of the same kind and size: GPTNeoX of ChatGLM-6B's sizes, which is its nearest
relative, and for ChatGLM3-6B the same weights written as `GlmForCausalLM`. Tokenizers are small stand-ins.

Each measurement runs in a process of its own, ours and plain in turns. Just before it, the pages of the other
checkpoint are dropped from the system's cache and all of this one's are read, so that the disk is no part of it;
`disk_gib` is what came from there all the same, because memory was short. Nor are imports part of it.

Weights may be mapped into memory, and then are not there when loading ends. So every weight is read once afterwards:
`touched` seconds are those of loading and this, `cpu` seconds the processor's share of them, which other work on the
machine disturbs least, and the peak is that of both. The sum of all bits tells whether the weights of ChatGLM3-6B are
the same in either form.

A pair of checkpoints takes 25 GB of disk in the folder for temporary files; each is deleted before the next.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from recording import options, record
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GlmForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.utils import logging

from glmtune.config import ModelSettings
from glmtune.models import loading
from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.glm.modeling_glm import as_plain, rename_weight

GIB = 2**30
SHARD_BYTES = 2 * 10**9
ON_GPU = torch.cuda.is_available()
WHO = ("ours", "plain")
PAIRS = [("ChatGLM-6B", "safetensors"), ("ChatGLM3-6B", "safetensors"), ("ChatGLM3-6B", "bin")]
NATIVE: dict[str, Any] = {"ChatGLM-6B": GPTNeoXForCausalLM, "ChatGLM3-6B": GlmForCausalLM}
LATE_IMPORTS = ("glmtune.models.quantization", "sentencepiece", "transformers.models.auto.tokenization_auto")
SPECIAL = ("mask_token_id", "gmask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
CHATGLM3: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "eos_token_id": 256,  # of the stand-in: the first after its bytes
    "pad_token_id": 256,
}


def write_checkpoint(who: str, model: str, files: str, folder: Path, depth: int) -> None:
    """One of a pair: configuration, weights, and the tokenizer that ours needs."""
    folder.mkdir()
    if model == "ChatGLM3-6B":
        write_chatglm3(who, files, folder, depth)
        return
    nano = str(loading.EMBEDDED["nano"])
    small = loading.load_config(nano)
    config: Any = ChatGLMConfig(num_layers=depth, **{name: getattr(small, name) for name in SPECIAL})
    if who == "plain":
        config = GPTNeoXConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=depth,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.inner_hidden_size,
            tie_word_embeddings=True,
        )
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in AutoModelForCausalLM.from_config(config).named_parameters()}
    config.save_pretrained(folder)
    loading.load_tokenizer(nano).save_pretrained(folder)
    write_shards(random_weights(shapes), folder, files)


def write_chatglm3(who: str, files: str, folder: Path, depth: int) -> None:
    """ChatGLM3-6B as its release has it, or the same weights as transformers has them."""
    values = {**CHATGLM3, "num_layers": depth}
    weights = random_weights(chatglm3_shapes(**values))
    if who == "plain":
        config = as_plain(ChatGLMConfig.from_dict(values))
        config.save_pretrained(folder)
        parts = (part for name, weight in weights for part in rename_weight(name, weight, config))
        write_shards(((name, part[...].clone()) for name, part in parts), folder, files)
        return
    (folder / "config.json").write_text(json.dumps(values))
    tokens = [f"{base64.b64encode(bytes([rank])).decode()} {rank}\n" for rank in range(256)]
    (folder / "tokenizer.model").write_text("".join(tokens))
    write_shards(weights, folder, files)


def chatglm3_shapes(
    hidden_size: int,
    ffn_hidden_size: int,
    num_layers: int,
    multi_query_group_num: int,
    kv_channels: int,
    padded_vocab_size: int,
    **_: Any,
) -> dict[str, torch.Size]:
    """Original name -> shape of every weight of a ChatGLM3-6B with this configuration."""
    fused = hidden_size + 2 * multi_query_group_num * kv_channels
    block = {
        "input_layernorm.weight": (hidden_size,),
        "self_attention.query_key_value.weight": (fused, hidden_size),
        "self_attention.query_key_value.bias": (fused,),
        "self_attention.dense.weight": (hidden_size, hidden_size),
        "post_attention_layernorm.weight": (hidden_size,),
        "mlp.dense_h_to_4h.weight": (2 * ffn_hidden_size, hidden_size),
        "mlp.dense_4h_to_h.weight": (hidden_size, ffn_hidden_size),
    }
    blocks = {f"encoder.layers.{n}.{name}": shape for n in range(num_layers) for name, shape in block.items()}
    outside = {
        "embedding.word_embeddings.weight": (padded_vocab_size, hidden_size),
        "rotary_pos_emb.inv_freq": (kv_channels // 4,),
        "encoder.final_layernorm.weight": (hidden_size,),
        "output_layer.weight": (padded_vocab_size, hidden_size),
    }
    return {f"transformer.{name}": torch.Size(shape) for name, shape in (blocks | outside).items()}


def random_weights(shapes: dict[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
    """A weight for each shape, made when it is asked for, the same in every run."""
    noise = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for name, shape in shapes.items():
        yield name, noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].reshape(shape).clone()


def write_shards(weights: Iterable[tuple[str, Tensor]], folder: Path, files: str) -> None:
    """Files of about `SHARD_BYTES`, and their index."""
    stem = "model" if files == "safetensors" else "pytorch_model"
    index: dict[str, str] = {}
    shard: dict[str, Tensor] = {}

    def write() -> None:
        file = f"{stem}-{len(set(index.values())) + 1:05}.{files}"
        if files == "safetensors":
            save_file(shard, folder / file, {"format": "pt"})
        else:
            torch.save(shard, folder / file)
        index.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, weight in weights:
        if shard and sum(other.nbytes for other in shard.values()) + weight.nbytes > SHARD_BYTES:
            write()
        shard[name] = weight
    write()
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / f"{stem}.{files}.index.json").write_text(text)
    os.sync()  # pages that are not written yet cannot be dropped


def warm(folder: Path, other: Path) -> None:
    """Have all files of a folder in the system's cache, and none of the other."""
    for file in other.iterdir():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = bytearray(2**24)
    for file in folder.iterdir():
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def load(who: str, model: str, folder: str) -> Any:
    """What is measured."""
    if who == "ours":
        return loading.load_model(ModelSettings(path=folder, dtype="float16"))[0]
    where: dict[str, Any] = {"device_map": {"": "cuda"}} if ON_GPU else {}
    return NATIVE[model].from_pretrained(folder, dtype=torch.float16, **where)


def measure(who: str, model: str, folder: str) -> dict[str, Any]:
    """One measurement, in its own process."""
    for module in LATE_IMPORTS:
        importlib.import_module(module)
    before, start, cpu = read_from_disk(), time.perf_counter(), time.process_time()
    loaded = load(who, model, folder)
    seconds = time.perf_counter() - start
    bits = sum_of_bits(loaded)
    touched = time.perf_counter() - start
    found = {
        "parameters": loaded.num_parameters(),
        "seconds": seconds,
        "touched": touched,
        "cpu": time.process_time() - cpu,
        "disk_gib": read_from_disk() - before,
        "host_gib": host_peak(),
        "gpu_gib": torch.cuda.max_memory_allocated() / GIB if ON_GPU else 0.0,
        "bits": bits,
    }
    start = time.perf_counter()
    if who == "ours":
        loading.load_tokenizer(folder)
    return {**found, "tokenizer": time.perf_counter() - start}


def sum_of_bits(model: Any) -> int:
    """Read every weight, by one thread: several wait for each other on a busy machine."""
    torch.set_num_threads(1)
    return sum(int(weight.detach().flatten().view(torch.int64).sum()) for weight in model.parameters()) % 2**64


def host_peak() -> float:
    """GiB: the largest resident memory of this process, mapped files included."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / GIB


def read_from_disk() -> float:
    """GiB that this process had to wait for the disk for."""
    return int(Path("/proc/self/io").read_text().partition("\nread_bytes:")[2].split()[0]) / GIB


def run(who: str, model: str, folder: Path) -> dict[str, Any]:
    """A measurement in a process of its own; what it printed last."""
    command = [sys.executable, __file__, "--cell", who, model, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(model: str, files: str, depth: int, rounds: int) -> list[dict[str, Any]]:
    """Write a pair of checkpoints, and load each as often as there are rounds: two rows."""
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in WHO}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {who: Path(temporary) / who for who in WHO}
        for who, folder in folders.items():
            write_checkpoint(who, model, files, folder, depth)
        for _ in range(rounds):
            for who, other in (WHO, WHO[::-1]):
                warm(folders[who], folders[other])
                found[who].append(run(who, model, folders[who]))
                print(who, model, files, found[who][-1], file=sys.stderr, flush=True)
    ours, theirs = (found[who][0] for who in WHO)
    assert abs(ours["parameters"] / theirs["parameters"] - 1) < 0.01, "the models are not of one size"
    assert model != "ChatGLM3-6B" or ours["bits"] == theirs["bits"], "the weights are not the same"
    return [row_of(who, model, files, found[who]) for who in WHO]


def row_of(who: str, model: str, files: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A line of the table: medians of times, the largest of sizes."""
    times = {key: [round(each[key], 4) for each in found] for key in ("seconds", "touched", "cpu", "tokenizer")}
    sizes = {key: max(each[key] for each in found) for key in ("host_gib", "gpu_gib", "disk_gib")}
    return {
        "who": who,
        "model": model if who == "ours" else NATIVE[model].__name__,
        "files": files,
        "parameters": found[0]["parameters"],
        "seconds": times["seconds"],
        "median_s": statistics.median(times["seconds"]),
        "touched_seconds": times["touched"],
        "touched_median_s": statistics.median(times["touched"]),
        "cpu_seconds": times["cpu"],
        "cpu_median_s": statistics.median(times["cpu"]),
        "tokenizer_s": statistics.median(times["tokenizer"]),
        **sizes,
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ours against plain: seconds to load, to load and touch, of the processor, and peaks."""
    columns = {"load": "median_s", "load_and_touch": "touched_median_s", "cpu": "cpu_median_s"}
    columns["peak"] = "gpu_gib" if ON_GPU else "host_gib"
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    return {
        f"{name}_against_plain": {f"{a['model']}, {a['files']}": round(a[key] / b[key], 3) for a, b in pairs}
        for name, key in columns.items()
    }


def main() -> None:
    """Measure each pair."""
    chosen = options(__doc__, depth=28, rounds=3)
    rows: list[dict[str, Any]] = []
    for model, files in PAIRS:
        rows += compare(model, files, chosen.depth, chosen.rounds)
        record("load_gpu" if ON_GPU else "load_cpu", vars(chosen), rows, **ratios(rows))


if __name__ == "__main__":
    if "--cell" in sys.argv:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()

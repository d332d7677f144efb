"""What a GGUF file says of its model, in the words of transformers' `config.json`. No torch here.

transformers' own reader leaves out what its table does not name (`rope.scaling.*`, the divisors in `rope_freqs.weight`,
`attention.key_length` of most architectures), and then takes the defaults of another checkpoint.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from glmtune import registry
from glmtune.models.families import Family, all_families
from glmtune.models.gguf.header import AGAIN, Header, load_library
from glmtune.models.sizes import MOST, check_sizes
from glmtune.runtime import UserError

# What transformers calls a size -> what ggml does.
SIZES = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}
# llama.cpp stretches positions by its own divisors; transformers makes them by this rule, of these numbers (Llama 3.1).
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL_LENGTHS = [2**power for power in range(6, 21)]
LARGEST = (2 - 2**-23) * 2.0**127  # number of fp32
DTYPES = {"F32": "float32", "BF16": "bfloat16"}


def config_of(header: Header) -> dict[str, Any]:
    """Return the `config.json` of a file's model.

    Raises:
        UserError: of an architecture that is not read here, or what it says is missing or makes no model.
    """
    family = family_of_file(header)
    prefix = header.architecture
    if experts := header.get(f"{prefix}.expert_count", int, 0):
        raise UserError(
            f"model.path: {header.file} is a mixture of {experts} experts, which is not read from GGUF. Take the "
            "release in transformers' format."
        )
    values = {name: required(header, f"{prefix}.{key}", int) for name, key in SIZES.items()}
    heads = values["num_attention_heads"]
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    values |= {
        "model_type": family.model_types[0],
        "vocab_size": shapes.get("token_embd.weight", (0,))[0],
        "num_key_value_heads": header.get(f"{prefix}.attention.head_count_kv", int, heads),
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": any(f"blk.0.attn_{part}.bias" in shapes for part in ("q", "qkv")),
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        "dtype": dtype_of(header),
        "pad_token_id": header.get("tokenizer.ggml.padding_token_id", int),
        "bos_token_id": header.get("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": header.get("tokenizer.ggml.eos_token_id", int),
    }
    values["head_dim"] = header.get(f"{prefix}.attention.key_length", int, values["hidden_size"] // max(1, heads))
    check_sizes(values, header.file, MOST)
    values["rms_norm_eps"] = positive(header, f"{prefix}.attention.layer_norm_rms_epsilon")
    values["rope_parameters"] = rope_of(header, values["head_dim"])
    if family.gguf is not None and family.gguf.config is not None:
        values |= family.gguf.config(lambda key, kind: header.get(f"{prefix}.{key}", kind), values)
    check_sizes(values, header.file, MOST)
    return values


def family_of_file(header: Header) -> Family:
    """Return the family of a file's architecture.

    Raises:
        UserError: it is none that is read here.
    """
    names = load_library().MODEL_ARCH_NAMES
    by_name = {
        names[kind]: family
        for family in reversed(all_families())
        if family.gguf
        for kind in names
        if kind.name == family.gguf.architecture
    }
    if header.architecture not in by_name:
        raise UserError(
            f"model.path: {header.file}: general.architecture={header.architecture[:60]} is none that is read from "
            f"GGUF. Take the release in transformers' format.{registry.suggest(header.architecture, list(by_name))}"
        )
    return by_name[header.architecture]


def required(header: Header, key: str, kind: type) -> Any:
    """Return a value that a file must have.

    Raises:
        UserError: it is missing, or of another kind.
    """
    value = header.get(key, kind)
    if value is None:
        raise UserError(f"model.path: {header.file} does not say {key}, which its model needs. {AGAIN}")
    return value


def positive(header: Header, key: str, default: float | None = None) -> float:
    """Return a number that must be there, unless it has a default, and that a model can compute with.

    Raises:
        UserError: it is missing, or not between 0 and the largest of fp32.
    """
    value = required(header, key, float) if default is None else header.get(key, float, default)
    if not 0 < value <= LARGEST:
        raise UserError(f"model.path: {header.file}: {key} is {value}. {AGAIN}")
    return shortest(value)


def rope_of(header: Header, head_dim: int) -> dict[str, Any]:
    """Return how positions turn the numbers of a head.

    Raises:
        UserError: in a way that transformers has no rule for.
    """
    prefix = f"{header.architecture}.rope."
    kind = header.get(f"{prefix}scaling.type", str, "none")
    values: dict[str, Any] = {
        "rope_type": "default" if kind == "none" else kind,
        "rope_theta": positive(header, f"{prefix}freq_base", 10000.0),
    }
    turned = header.get(f"{prefix}dimension_count", int, head_dim)
    if not 0 < turned <= head_dim:
        raise UserError(
            f"model.path: {header.file}: {prefix}dimension_count is {turned}, and a head has {head_dim} numbers. "
            f"{AGAIN}"
        )
    if turned != head_dim:
        values["partial_rotary_factor"] = turned / head_dim
    if kind in ("linear", "yarn"):
        values["factor"] = positive(header, f"{prefix}scaling.factor")
    elif kind != "none":
        raise UserError(
            f"model.path: {header.file}: {prefix}scaling.type={kind[:40]} is not read from GGUF. Take the release in "
            "transformers' format."
        )
    if length := header.get(f"{prefix}scaling.original_context_length", int):
        values["original_max_position_embeddings"] = length
    if "rope_freqs.weight" in header.tensors:
        return llama3_rope(header, values, turned)
    return values


def llama3_rope(header: Header, values: dict[str, Any], turned: int) -> dict[str, Any]:
    """Return the rule of Llama 3.1 that makes the divisors which a file holds.

    Raises:
        UserError: it does not make them.
    """
    info = header.tensors["rope_freqs.weight"]
    count = turned // 2
    if info.shape == (count,) and info.kind == load_library().GGMLQuantizationType.F32:
        with info.file.open("rb") as stream:
            stream.seek(info.start)
            divisors = struct.unpack(f"<{count}f", stream.read(info.size))
        for length in ORIGINAL_LENGTHS if min(divisors, default=0) > 0 else ():
            rule = {"factor": shortest(max(divisors)), **LLAMA3, "original_max_position_embeddings": length}
            made = llama3_divisors(values["rope_theta"], turned, **rule)
            if all(math.isclose(one, other, rel_tol=1e-4) for one, other in zip(divisors, made, strict=True)):
                return {**values, "rope_type": "llama3", **rule}
    raise UserError(
        f"model.path: {header.file}: its rope_freqs.weight stretches positions as no rule of Llama 3 does. Take the "
        "release in transformers' format."
    )


def llama3_divisors(
    theta: float,
    turned: int,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> list[float]:
    """Return by how much each rotary frequency is divided by the rule of Llama 3.1, as `llama3` of transformers."""
    divisors = []
    for pair in range(turned // 2):
        turns = original_max_position_embeddings / (2 * math.pi * theta ** (2 * pair / turned))
        smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        smooth = min(max(smooth, 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def shortest(value: float) -> float:
    """Return the number that people write for one that a file holds in 32 bits: 1e-05 for 9.999999747378752e-06."""
    written = float(f"{value:.7g}")
    return written if struct.pack("<f", written) == struct.pack("<f", value) else value


def dtype_of(header: Header) -> str:
    """Return the precision that the weights were written in; of blocks, that in which their steps are."""
    kinds = kinds_of(header)
    return DTYPES.get(kinds.pop(), "float16") if len(kinds) == 1 else "float16"


def kinds_of(header: Header) -> set[str]:
    """Return ggml's names of the types in which the matrices are stored."""
    kinds = load_library().GGMLQuantizationType
    return {kinds(tensor.kind).name for tensor in header.tensors.values() if len(tensor.shape) > 1}

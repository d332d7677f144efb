"""The tensors of a GGUF file: ggml's names, the order of rows, precisions, and a comparison with the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.exports.gguf.blocks import FORMATS, quantize_blocks
from glmtune.exports.gguf.precisions import BLOCKS, GgufPrecision, kind_of
from glmtune.exports.gguf.source import Source, rope_type, shape_of
from glmtune.models.gguf.header import load_library
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from numpy import ndarray

CHUNK = 2**24  # numbers that are compared at a time: 64 MB in fp32
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
# Numbers with one step, and how far one may be off: shares of the largest of them, and of the largest of their block,
# in fractions of which their step is stored.
ERRORS = {
    "Q8_0": (32, 0.5 / 127, 0.0),
    "Q4_0": (32, 1 / 8, 0.0),
    "Q5_0": (32, 1 / 16, 0.0),
    "Q4_K": (32, 0.3, 0.03),
    "Q6_K": (16, 0.07, 0.01),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Attributes:
        name: ggml's.
        weight: the checkpoint's, not read yet.
        origin: its name in the checkpoint.
        heads: of a projection whose rows are reordered; 0 where they stay.
        more: what is added to each number: 1 for norms that are kept less one.
    """

    name: str
    weight: Any
    origin: str = ""
    heads: int = 0
    more: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first; ggml itself counts the other way round."""
        return shape_of(self.weight)

    def read(self) -> ndarray:
        """Return the numbers in fp32, as the file is to hold them.

        Rotary pairs are reordered where llama.cpp has 2i and 2i + 1 of a head instead of i and i + D/2.
        """
        values: ndarray = (self.weight[...].float() + self.more).numpy()
        return self.reordered(values, (self.heads, 2, -1))

    def back(self, values: ndarray) -> ndarray:
        """Return numbers of the file in the order of the checkpoint."""
        return self.reordered(values, (self.heads, -1, 2)) - self.more

    def reordered(self, values: ndarray, rows: tuple[int, ...]) -> ndarray:
        """Return the numbers with the rows of each head in another order."""
        if not self.heads:
            return values
        return values.reshape(*rows, *self.shape[1:]).swapaxes(1, 2).reshape(self.shape)


def tensors_of(source: Source) -> Iterator[Tensor]:
    """Yield the tensors of the file. A `gate_up_proj` stays one: llama.cpp's `ffn_up` of these, with the gate first."""
    gguf = load_library()
    kind, config = gguf.MODEL_ARCH[source.facts.architecture], source.config
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    rotary = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in source.weights.items():
        heads = rotary.get(name.split(".")[-2], 0) if source.facts.interleaves_rotary else 0
        more = int(source.facts.norms_add_one and name.endswith("norm.weight"))
        theirs = name.replace("e_score_correction_bias", "e_score_correction.bias")
        yield Tensor(names.get_name(theirs, try_suffixes=(".weight", ".bias")), weight, name, heads, more)
    if rope_type(config.to_dict()) == "llama3":
        yield Tensor("rope_freqs.weight", llama3_divisors(source))


def llama3_divisors(source: Source) -> Any:
    """Return by what Llama 3.1 divides each rotary frequency, [D/2], from transformers' own frequencies."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    divided, _ = ROPE_INIT_FUNCTIONS["llama3"](source.config, torch.device("cpu"))
    exponents = torch.arange(0, source.head_dim, 2).float() / source.head_dim
    return source.config.rope_parameters["rope_theta"] ** -exponents / divided


def kinds_of(tensors: Sequence[Tensor], precision: GgufPrecision, layers: int) -> dict[str, str]:
    """Return name -> type of the tensors of a file."""
    names = {tensor.name for tensor in tensors}
    head = OUTPUT if OUTPUT in names else EMBEDDING
    return {tensor.name: kind_of(tensor.name, tensor.shape, precision, layers, head) for tensor in tensors}


def encode_tensor(tensor: Tensor, kind: str) -> ndarray:
    """Return the bytes of a tensor, as the file holds them.

    Raises:
        UserError: numbers that have no place in f16.
    """
    import numpy as np

    values = tensor.read()
    if kind == "F16" and (largest := np.abs(values).max()) > np.finfo(np.float16).max:
        raise UserError(f"{tensor.name} has numbers up to {largest:.3g}, and f16 ends at 65504. Use precision bf16.")
    return encode(np.ascontiguousarray(values), kind)


def encode(values: ndarray, kind: str) -> ndarray:
    """Return numbers in fp32 as the bytes of a type."""
    gguf = load_library()
    if kind in FORMATS:
        return quantize_blocks(values, kind)
    encoded: ndarray = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return encoded


def check_tensor(tensor: Tensor, stored: Any, kind: str, output: Path) -> None:
    """Compare a tensor of the file with the checkpoint's.

    Raises:
        UserError: it has another type or shape, or numbers that rounding does not explain.
    """
    import numpy as np

    gguf = load_library()
    where = f"{output}: {tensor.name}"
    shape = tuple(int(length) for length in reversed(stored.shape))
    if (stored.tensor_type.name, shape) != (kind, tensor.shape):
        raise UserError(f"{where} is {stored.tensor_type.name} {shape}, not {kind} {tensor.shape}. Export again.")
    expected = tensor.read()
    rows = max(1, CHUNK // tensor.shape[-1])
    for start in range(0, tensor.shape[0], rows):
        numbers = gguf.quants.dequantize(stored.data[start : start + rows], stored.tensor_type)
        wanted = expected[start : start + rows]
        if not np.all(np.abs(numbers - wanted) <= rounding_of(wanted, kind)):  # not all: also where one is no number
            raise UserError(f"{where} holds other numbers than the checkpoint. Export again.")


def rounding_of(values: ndarray, kind: str) -> Any:
    """Return how far numbers may be off, each or all, by being stored in a type.

    It is half a step of q8_0, which is the largest number of a block / 127, rounded to f16, and a whole one where one
    less is counted on one side of zero. Blocks of 256 numbers have the steps with which most of them are right: the
    largest may be off by more.
    """
    import numpy as np

    if kind == "F32":
        return 0.0
    if kind in ("F16", "BF16"):
        return np.abs(values) * 2.0 ** (-11 if kind == "F16" else -8) + 2.0**-25
    part, share, share_of_block = ERRORS[kind]

    def largest(count: int) -> ndarray:
        found: ndarray = np.abs(values).reshape(*values.shape[:-1], -1, count).max(-1).repeat(count, -1)
        return found

    return largest(part) * (share + 2.0**-10) + largest(BLOCKS[kind]) * share_of_block + 1024 * 2.0**-24

"""The tensors of a GGUF file: ggml's names, the order of rows, precisions, and a comparison with the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.exports.gguf.source import Source, rope_type, shape_of
from glmtune.models.gguf.header import load_library
from glmtune.runtime import UserError

if TYPE_CHECKING:
    import torch
    from numpy import ndarray

ROUTER = ".ffn_gate_inp.weight"
CHUNK = 2**24  # numbers that are compared at a time: 64 MB in fp32


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Attributes:
        name: ggml's.
        weight: the checkpoint's, not read yet.
        heads: of a projection whose rows are reordered; 0 where they stay.
        more: what is added to each number: 1 for norms that are kept less one.
    """

    name: str
    weight: Any
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
        if not self.heads:
            return values
        return values.reshape(self.heads, 2, -1, *self.shape[1:]).swapaxes(1, 2).reshape(self.shape)

    def kind(self, precision: str) -> str:
        """Return its type in a file of some precision, as a member of gguf.GGMLQuantizationType.

        What is no matrix stays in fp32: llama.cpp's kernels add it to numbers in fp32. So does what chooses experts,
        which would choose others.
        """
        if len(self.shape) < 2 or self.name.endswith(ROUTER):
            return "F32"
        return "F16" if precision == "q8_0" and self.shape[-1] % 32 else precision.upper()


def tensors_of(source: Source) -> Iterator[Tensor]:
    """Yield the tensors of the file. A `gate_up_proj` stays one: llama.cpp's `ffn_up` of these, with the gate first."""
    gguf = load_library()
    kind, config = gguf.MODEL_ARCH[source.facts.architecture], source.config
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    rotary = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in source.weights.items():
        heads = rotary.get(name.split(".")[-2], 0) if source.facts.interleaves_rotary else 0
        more = int(source.facts.norms_add_one and name.endswith("norm.weight"))
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        yield Tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight, heads, more)
    if rope_type(config.to_dict()) == "llama3":
        yield Tensor("rope_freqs.weight", llama3_divisors(source))


def llama3_divisors(source: Source) -> Any:
    """Return by what Llama 3.1 divides each rotary frequency, [D/2], from transformers' own frequencies."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    divided, _ = ROPE_INIT_FUNCTIONS["llama3"](source.config, torch.device("cpu"))
    exponents = torch.arange(0, source.head_dim, 2).float() / source.head_dim
    return source.config.rope_parameters["rope_theta"] ** -exponents / divided


def encode_tensor(tensor: Tensor, kind: str) -> ndarray:
    """Return the bytes of a tensor, as the file holds them.

    Raises:
        UserError: numbers that have no place in f16.
    """
    import numpy as np

    gguf = load_library()
    values = tensor.read()
    if kind == "F16" and (largest := np.abs(values).max()) > np.finfo(np.float16).max:
        raise UserError(f"{tensor.name} has numbers up to {largest:.3g}, and f16 ends at 65504. Use precision bf16.")
    encoded: ndarray = gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType[kind])
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
    """Return how far numbers may be off, each or all, by being stored in a type: half a step, and no more.

    A block of q8_0 counts in steps of its largest number / 127; the step itself is rounded to f16.
    """
    import numpy as np

    if kind == "F32":
        return 0.0
    if kind == "Q8_0":
        largest = np.abs(values).reshape(*values.shape[:-1], -1, 32).max(-1).repeat(32, -1)
        return largest * (0.5 / 127 + 2.0**-10) + 127 * 2.0**-24
    return np.abs(values) * 2.0 ** (-11 if kind == "F16" else -8) + 2.0**-25


def round_numbers(model: torch.nn.Module) -> None:
    """Give a model the numbers that a file of q8_0 holds of it."""
    import torch

    quants = load_library().quants
    kind = load_library().GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2 and weight.shape[-1] % 32 == 0:
                values = quants.dequantize(quants.quantize(weight.float().cpu().numpy(), kind), kind)
                weight.copy_(torch.from_numpy(values))
            elif weight.ndim >= 2:
                weight.copy_(weight.half())

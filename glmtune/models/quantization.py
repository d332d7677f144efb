"""Linear layers stored at 8 or 4 bits. How a layer is stored is no method: whatever trains beside it does not notice.

Two forms. Checkpoints of 16 bits are quantized by bitsandbytes while they are read (int8, https://arxiv.org/abs/2208.07339;
nf4 with double quantization, https://arxiv.org/abs/2305.14314). The original packed releases (`chatglm-6b-int8`,
`chatglm-6b-int4`: `quantization_bit` in their config.json) are kept as they are: symmetric, one scale a row, of the
int4 values the first in the high nibble; `PackedLinear` computes with them on every device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from glmtune.models.architecture import CHUNK
from glmtune.runtime import UserError

EMBEDDING_BITS = 8  # of `quantize_embedding`; at 4 bits a row, every token would be heard less clearly


def pack(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Quantize a matrix as the original does, row by row.

    Args:
        weight: (rows, columns), floating point.
        bits: 8 or 4.

    Returns:
        packed: (rows, columns * bits / 8) int8.
        scale: (rows,) fp16. A row of zeros has scale 0.
    """
    largest = 2 ** (bits - 1) - 1
    scale = (weight.abs().amax(dim=1) / largest).half()
    # The quotient is taken in the precision of the weight, and the rare one that leaves the range of a subnormal scale
    # is clamped: the original lets it wrap around.
    quotient = weight / scale.to(weight.dtype)[:, None]
    integers = quotient.round().nan_to_num(0.0).clamp(-largest - 1, largest).to(torch.int8)
    if bits == 8:
        return integers, scale
    return (integers[:, ::2] << 4) | (integers[:, 1::2] & 0x0F), scale


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Turn (rows, columns * bits / 8) int8 into (rows, columns) int8."""
    if bits == 8:
        return packed
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(-2)


def dequantize(packed: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return (rows, columns) in `dtype`. In fp16 the product is taken in fp16, as the original does; else in fp32."""
    precision = torch.float16 if dtype == torch.float16 else torch.float32
    return unpack(packed, bits).to(precision).mul_(scale.to(precision)[:, None]).to(dtype)


class PackedProduct(torch.autograd.Function):
    """x @ W.T with W unpacked a few rows at a time, again in the backward pass: W itself is never there, nor is x kept.

    But for fp16, which it could overflow, the integers are multiplied as they are (bf16 holds them exactly) and the
    scales, one for each output, come after: no number of W is rounded or touched twice.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Map (..., columns) -> (..., rows)."""
        ctx.save_for_backward(packed, scale)
        ctx.bits = bits
        outputs = inputs.new_empty((*inputs.shape[:-1], len(packed)))
        for rows, weight, after in unpacked_rows(packed, scale, bits, inputs.dtype):
            outputs[..., rows] = inputs @ weight.T if after is None else (inputs @ weight.T).mul_(after)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Map (..., rows) -> (..., columns), summed in fp32."""
        packed, scale = ctx.saved_tensors
        columns = packed.shape[1] * 8 // ctx.bits
        total = gradient.new_zeros((*gradient.shape[:-1], columns), dtype=torch.float32)
        for rows, weight, after in unpacked_rows(packed, scale, ctx.bits, gradient.dtype):
            part = gradient[..., rows] if after is None else (gradient[..., rows] * after).to(gradient.dtype)
            total += part @ weight
        return total.to(gradient.dtype), None, None, None


def unpacked_rows(
    packed: Tensor, scale: Tensor, bits: int, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield (rows, their numbers in `dtype`, the scales that are yet to be applied) of a packed matrix."""
    step = max(1, CHUNK * bits // (8 * packed.shape[1]))
    for rows in (slice(start, start + step) for start in range(0, len(packed), step)):
        if dtype == torch.float16:
            yield rows, dequantize(packed[rows], scale[rows], bits, dtype), None
        else:
            yield rows, unpack(packed[rows], bits).to(dtype), scale[rows].float()


def packed_linear(inputs: Tensor, packed: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> Tensor:
    """Compute (..., columns) -> (..., rows), in the precision of autocast where that is on."""
    device = inputs.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
    outputs = PackedProduct.apply(inputs.to(dtype), packed, scale, bits)
    return outputs if bias is None else outputs.add_(bias.to(dtype))


class PackedLayer(nn.Module):
    """What `PackedLinear` and `PackedEmbedding` share: a packed matrix that stays as it is when precisions change.

    Attributes:
        bits: 8 or 4.
        weight: (rows, columns * bits / 8) int8.
        weight_scale: (rows,) fp32; checkpoints hold fp16.
        dtype: the precision that the model computes in.
    """

    weight: Tensor
    weight_scale: Tensor

    def set_storage(self, rows: int, columns: int, bits: int, dtype: torch.dtype | None) -> None:
        """Make empty storage of a (rows, columns) matrix."""
        self.bits = bits
        self.weight = nn.Parameter(torch.empty(rows, columns * bits // 8, dtype=torch.int8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(rows, dtype=torch.float32), requires_grad=False)
        self.dtype = dtype or torch.get_default_dtype()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        scale = self.weight_scale.detach()
        super()._apply(fn, recurse)
        self.weight_scale.data = scale.to(self.weight_scale.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device="cpu")).dtype
        return self


class PackedLinear(PackedLayer, nn.Linear):
    """A frozen linear layer in the original's packed form. Gradients go through it, to what stands before it."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, bits: int = 8, dtype: torch.dtype | None = None
    ):
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.set_storage(out_features, in_features, bits, dtype)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) -> (..., out_features)."""
        return packed_linear(input, self.weight, self.weight_scale, self.bits, self.bias)


class PackedEmbedding(PackedLayer, nn.Embedding):
    """A frozen embedding in the original's packed form."""

    def __init__(self, num_embeddings: int, embedding_dim: int, bits: int = 8, dtype: torch.dtype | None = None):
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, None
        self.set_storage(num_embeddings, embedding_dim, bits, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, T) ids -> (B, T, embedding_dim)."""
        rows = dequantize(self.weight[input.flatten()], self.weight_scale[input.flatten()], self.bits, self.dtype)
        return rows.unflatten(0, input.shape)


def pack_embedding(model: PreTrainedModel, bits: int = EMBEDDING_BITS) -> None:
    """Replace a model's embedding and head by packed ones; tied ones share their storage.

    Raises:
        UserError: they are of a kind of their own.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear:
        raise UserError(
            f"model.quantize_embedding=true: {type(model).__name__} has an embedding or a head of a kind of its own "
            f"({type(embedding).__name__}, {type(head).__name__}). Leave the setting out."
        )
    tied = head.weight is embedding.weight
    dtype = embedding.weight.dtype
    small = PackedEmbedding(embedding.num_embeddings, embedding.embedding_dim, bits, dtype)
    output = PackedLinear(head.in_features, head.out_features, False, bits, dtype)
    output.bias = head.bias
    fill(small, embedding.weight)
    if tied:
        output.weight, output.weight_scale = small.weight, small.weight_scale
    else:
        fill(output, head.weight)
    model.set_input_embeddings(small.requires_grad_(False))
    model.set_output_embeddings(output.requires_grad_(False))


@torch.no_grad()
def fill(layer: PackedLayer, weight: Tensor) -> None:
    """Pack a matrix into a layer, a few rows at a time."""
    step = max(1, CHUNK // weight.shape[1])
    packed, scales = zip(*(pack(rows, layer.bits) for rows in weight.split(step)), strict=True)
    layer.weight = nn.Parameter(torch.cat(packed), requires_grad=False)
    layer.weight_scale = nn.Parameter(torch.cat(scales).float(), requires_grad=False)


def unpack_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the packed layers of a model, also those with updates beside them, by ordinary ones of the same numbers.

    Tied weights stay tied.
    """
    weights: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if not isinstance(layer, PackedLayer):
                continue
            if id(layer.weight) not in weights:
                numbers = dequantize(layer.weight, layer.weight_scale, layer.bits, dtype)
                weights[id(layer.weight)] = nn.Parameter(numbers, requires_grad=False)
            weight = weights[id(layer.weight)]
            plain: nn.Module
            if isinstance(layer, PackedLinear):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                plain.register_parameter("bias", layer.bias)
            else:
                assert isinstance(layer, PackedEmbedding)
                plain = nn.Embedding(layer.num_embeddings, layer.embedding_dim, device="meta")
            plain.register_parameter("weight", weight)
            setattr(module, name, plain)


def bits_config(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return bitsandbytes' settings for 8 or 4 bits, computing in `dtype`.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.bits={bits} needs bitsandbytes, which is not installed: pip install 'glmtune[quantization]'. "
            "Or leave model.bits at 16."
        )
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def check_library_layers(model: nn.Module, path: str) -> None:
    """See whether bitsandbytes' layers hold what it packed; weights of another form it leaves as they are, silently.

    Raises:
        UserError: one holds a plain weight, which it cannot compute with.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("bitsandbytes.") and type(module.weight) is nn.Parameter:
            raise UserError(
                f"model.path: the weights of {path} are not packed ({name}.weight is {module.weight.dtype}), but its "
                "config.json has a quantization_config. Delete that there, and set model.bits instead."
            )


def mend_library_layers(model: nn.Module) -> None:
    """Break two habits of bitsandbytes' layers that training suffers from.

    Those of 4 bits repack their weights for bf16 kernels of some CPUs at the first call in evaluation mode, and from
    then on no gradient passes through them, silently, also in training; and the model answers otherwise than it did
    while it learned. Those of 8 bits keep what they got for the backward pass, which does not need it, out of reach of
    gradient checkpointing, and round it to 8 bits on GPUs.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False
        kind = type(module)  # peft has a wrapper of the same name
        if kind.__name__ == "Linear8bitLt" and kind.__module__.startswith("bitsandbytes."):
            module.__class__ = int8_linear()


@cache
def int8_linear() -> type[nn.Linear]:
    """Return bitsandbytes' layer of 8 bits, computing as `PackedLinear` does: integers are scaled row by row, too."""
    from bitsandbytes.nn import Linear8bitLt

    class Int8Linear(Linear8bitLt):
        weight: Any

        def forward(self, x: Tensor) -> Tensor:
            largest = self.weight.SCB if self.state.SCB is None else self.state.SCB  # of each row
            return packed_linear(x, self.weight.data, largest.to(x.device) / 127, 8, self.bias)

    return Int8Linear


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that a model's parameters stand for, also where two of them share a byte; scales left out."""
    counts = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            halved = weight.dtype == torch.uint8 or (isinstance(module, PackedLayer) and module.bits == 4)
            if name != "weight_scale":
                counts[id(weight)] = weight.numel() * (2 if halved and name == "weight" else 1)
    return sum(counts.values())

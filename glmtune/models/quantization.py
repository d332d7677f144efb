"""Linear layers stored at 8 or 4 bits. How a layer is stored is no method: whatever trains beside it does not notice.

The original packed releases (`chatglm-6b-int8`, `chatglm-6b-int4`: `quantization_bit` in their config.json) keep their
numbers; on CPUs, checkpoints of 16 bits become layers of the same class while they are read (`packed_checkpoints`), and
`PackedLinear` computes with them on every device. What a number of bits means is in `packing`; on GPUs, bitsandbytes
stores checkpoints of 16 bits (`library_layers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glmtune.models.architecture import CHUNK, group_size
from glmtune.models.packing import BLOCK, dequantize, has_blocks, in_blocks, pack, unpack
from glmtune.models.upcasting import computed_in, upcasts
from glmtune.runtime import UserError

if TYPE_CHECKING:  # transformers imports `packed_checkpoints`, which imports this
    from transformers import PreTrainedModel

EMBEDDING_BITS = 8  # of `quantize_embedding`; at 4 bits a row, every token would be heard less clearly
ALIGNED = 16  # bytes: where torch's kernel for 8 bits reads a matrix from, if there is more than a row of inputs
FEW_ROWS = 32  # for which unpacking a matrix takes longer than reading it packed, again for every few of them


class PackedProduct(torch.autograd.Function):
    """x @ W.T with W unpacked a few rows at a time, again in the backward pass: W itself is never there, nor is x kept.

    But for fp16, which it could overflow, the integers of a row are multiplied as they are (bf16 holds them exactly)
    and the scales, one for each output, come after: no number of W is rounded or touched twice.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Map (..., columns) -> (..., rows)."""
        ctx.save_for_backward(packed, scale)
        ctx.bits = bits
        return multiply(inputs, packed, scale, bits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Map (..., rows) -> (..., columns), summed in fp32."""
        packed, scale = ctx.saved_tensors
        columns = packed.shape[1] * 8 // ctx.bits
        total = gradient.new_zeros((*gradient.shape[:-1], columns), dtype=torch.float32)
        dtype = torch.float32 if upcasts(gradient.device, gradient.dtype) else gradient.dtype
        for rows, weight, after in unpacked_rows(packed, scale, ctx.bits, dtype):
            part = gradient[..., rows] if after is None else gradient[..., rows] * after
            total += part.to(dtype) @ weight
        return total.to(gradient.dtype), None, None, None


def multiply(inputs: Tensor, packed: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Map (..., columns) -> (..., rows): few rows as they are packed, by torch's kernels, many as floats."""
    if inputs.numel() <= FEW_ROWS * inputs.shape[-1] and has_kernel(inputs, packed, bits):
        return multiply_packed(inputs, packed, scale, bits)
    outputs = inputs.new_empty((*inputs.shape[:-1], len(packed)))
    if upcasts(inputs.device, inputs.dtype):
        inputs = inputs.float()
    for rows, weight, after in unpacked_rows(packed, scale, bits, inputs.dtype):
        outputs[..., rows] = inputs @ weight.T if after is None else (inputs @ weight.T).mul_(after)
    return outputs


def has_kernel(inputs: Tensor, packed: Tensor, bits: int) -> bool:
    """Return whether torch multiplies by a packed matrix as it is. In other precisions its kernels are slow loops."""
    if inputs.device.type != "cpu" or inputs.dtype != torch.bfloat16 or inputs.shape[-1] % 32 or len(packed) % 16:
        return False
    if bits == 8:  # a matrix that is mapped from a file may begin anywhere, and reading on would end the process
        return packed.data_ptr() % ALIGNED == 0 or inputs.numel() == inputs.shape[-1]
    return packed.dtype == torch.uint8 and has_blocks()


def multiply_packed(inputs: Tensor, packed: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Map (..., columns) -> (..., rows) by the kernels that read a packed matrix once. Scales of rows come after."""
    rows, columns = len(packed), inputs.shape[-1]
    flat = inputs.reshape(-1, columns)
    if bits == 8:
        outputs = torch.ops.aten._weight_int8pack_mm(flat, packed, ones(rows))
    else:
        groups = scale if scale.ndim == 3 else bare_groups(rows, columns)
        outputs = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, packed, columns // len(groups), groups)
    if scale.ndim == 1:
        outputs.mul_(scale)
    return outputs.view(*inputs.shape[:-1], rows)


@cache
def ones(rows: int) -> Tensor:
    """Return (rows,) scales that change nothing."""
    return torch.ones(rows, dtype=torch.bfloat16)


@cache
def bare_groups(rows: int, columns: int) -> Tensor:
    """Return (groups, rows, 2) scales and zeros with which nibbles are the numbers -8 to 7."""
    size = next(size for size in (256, 128, 64, 32) if columns % size == 0)
    return torch.tensor([1.0, 0.0], dtype=torch.bfloat16).repeat(columns // size, rows, 1)


def unpacked_rows(
    packed: Tensor, scale: Tensor, bits: int, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield (rows, their numbers in `dtype`, the scales that are yet to be applied) of a packed matrix."""
    step = max(1, CHUNK * bits // (8 * packed.shape[1]))
    if packed.dtype == torch.uint8:
        step = max(1, step // BLOCK) * BLOCK
    for rows in (slice(start, start + step) for start in range(0, len(packed), step)):
        if scale.ndim == 3:
            yield rows, dequantize(packed[rows], scale[:, rows], bits, dtype), None
        elif dtype == torch.float16:
            yield rows, dequantize(packed[rows], scale[rows], bits, dtype), None
        else:
            yield rows, unpack(packed[rows], bits).to(dtype), scale[rows].float()


def packed_linear(inputs: Tensor, packed: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> Tensor:
    """Compute (..., columns) -> (..., rows), in the precision of autocast where that is on."""
    dtype = computed_in(inputs)
    product = PackedProduct.apply if inputs.requires_grad and torch.is_grad_enabled() else multiply
    outputs = product(inputs.to(dtype), packed, scale, bits)
    if bias is None:
        return outputs
    # What a step of the graph returns may be a view, into which nothing can be written.
    return outputs + bias.to(dtype) if outputs.requires_grad else outputs.add_(bias.to(dtype))


class PackedLayer(nn.Module):
    """What `PackedLinear` and `PackedEmbedding` share: a packed matrix that stays as it is when precisions change.

    Attributes:
        bits: 8 or 4.
        weight: (rows, columns * bits / 8) int8; of 4 bits in blocks, uint8.
        weight_scale: (rows,) fp32, where checkpoints hold fp16; or (groups, rows, 2) bf16.
        dtype: the precision that the model computes in.
    """

    weight: Tensor
    weight_scale: Tensor

    def set_storage(self, rows: int, columns: int, bits: int, dtype: torch.dtype | None, grouped: bool = False) -> None:
        """Make empty storage of a (rows, columns) matrix: by rows, or by groups."""
        self.bits = bits
        packed = torch.empty(rows, columns * bits // 8, dtype=torch.uint8 if grouped else torch.int8)
        scale = torch.empty(rows, dtype=torch.float32)
        if grouped:
            scale = torch.empty(columns // group_size(columns), rows, 2, dtype=torch.bfloat16)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.dtype = dtype or torch.get_default_dtype()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        scale = self.weight_scale.detach()
        super()._apply(fn, recurse)
        self.weight_scale.data = scale.to(self.weight_scale.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device="cpu")).dtype
        return self


class PackedLinear(PackedLayer, nn.Linear):
    """A frozen linear layer of packed numbers. Gradients go through it, to what stands before it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        bits: int = 8,
        dtype: torch.dtype | None = None,
        grouped: bool = False,
    ):
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.set_storage(out_features, in_features, bits, dtype, grouped)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None)

    @property
    def W_q(self) -> Tensor:
        """The packed numbers: what has this name, peft asks for its floats, which DoRA needs."""
        return self.weight

    def dequantize(self) -> Tensor:
        """Return the (out_features, in_features) numbers that the layer stands for."""
        return dequantize(self.weight, self.weight_scale, self.bits, self.dtype)

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


def arrange(model: nn.Module) -> None:
    """Put linear layers of an original release of 4 bits into blocks, where the processor's kernel reads them so."""
    for layer in model.modules():
        if not isinstance(layer, PackedLinear) or layer.bits == 8 or layer.weight.dtype == torch.uint8:
            continue
        head = any(other.weight is layer.weight for other in model.modules() if isinstance(other, PackedEmbedding))
        if not head and layer.in_features % 32 == 0 and layer.out_features % 16 == 0 and has_blocks():
            layer.weight = nn.Parameter(in_blocks(layer.weight), requires_grad=False)


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


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that a model's parameters stand for, also where two of them share a byte; scales left out."""
    counts = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            halved = weight.dtype == torch.uint8 or (isinstance(module, PackedLayer) and module.bits == 4)
            if name != "weight_scale":
                counts[id(weight)] = weight.numel() * (2 if halved and name == "weight" else 1)
    return sum(counts.values())

"""Matrices as whole numbers of 8 or 4 bits: how they are made, and what they stand for. Tensors say their own form.

By rows, int8, one scale a row: the original packed releases of ChatGLM-6B and all matrices of 8 bits. Two values of 4
bits share a byte, the first in the high nibble.

By groups, 4 bits, a scale and a zero for each 32 numbers of a row, (q - 8) * scale + zero: what matrices of 16
bits become. They lie as `torch._weight_int4pack_mm_for_cpu` reads them (uint8): in blocks of 64 rows, column by column,
32 bytes each, with row i of a block in the low nibble of byte i and row i + 32 in its high one. Of the rows that are
left over, neighbours share a byte.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from glmtune.models.architecture import CHUNK, group_size

BLOCK = 64  # rows


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
    integers = quotient.round_().nan_to_num_(0.0).clamp_(-largest - 1, largest).to(torch.int8)
    if bits == 8:
        return integers, scale
    return (integers[:, ::2] << 4) | (integers[:, 1::2] & 0x0F), scale


def pack_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a matrix to 4 bits, group by group between its smallest and its largest number.

    Args:
        weight: (rows, columns), floating point; rows are divisible by 16, columns by 32.

    Returns:
        packed: (rows, columns / 2) uint8, in blocks.
        scale: (groups, rows, 2) bf16: scales and zeros.
    """
    rows, columns = weight.shape
    numbers = weight.float().reshape(rows, -1, group_size(columns))
    low, high = numbers.aminmax(dim=2)
    # Scales are rounded before they are used, so that numbers are the nearest to what is stored.
    scale = ((high - low) / 15).bfloat16().float()
    zero = (low + 8 * scale).bfloat16().float()
    factor = torch.where(scale > 0, 1 / scale, 0.0)
    shifted = torch.addcmul((8 - zero * factor)[:, :, None], numbers, factor[:, :, None])
    integers = shifted.round_().clamp_(0, 15).to(torch.uint8).view(rows, columns)
    return to_blocks(integers), torch.stack((scale, zero), dim=-1).transpose(0, 1).bfloat16().contiguous()


def to_blocks(integers: Tensor) -> Tensor:
    """Turn (rows, columns) uint8 from 0 to 15 into (rows, columns / 2) uint8."""
    rows, columns = integers.shape
    whole = rows - rows % BLOCK
    halves = integers[:whole].view(-1, 2, BLOCK // 2, columns)
    blocks = (halves[:, 0] | (halves[:, 1] << 4)).transpose(1, 2)
    rest = (integers[whole::2] | (integers[whole + 1 :: 2] << 4)).T
    return torch.cat((blocks.reshape(-1), rest.reshape(-1))).view(rows, columns // 2)


def from_blocks(packed: Tensor) -> Tensor:
    """Turn (rows, columns / 2) uint8 into (rows, columns) uint8 from 0 to 15."""
    rows, columns = len(packed), 2 * packed.shape[1]
    whole = rows - rows % BLOCK
    blocks = packed[:whole].view(-1, columns, BLOCK // 2).transpose(1, 2)
    rest = packed[whole:].view(columns, -1).T
    first = torch.stack((blocks & 0x0F, blocks >> 4), dim=1).view(whole, columns)
    return torch.cat((first, torch.stack((rest & 0x0F, rest >> 4), dim=1).view(-1, columns)))


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Turn (rows, columns * bits / 8) into (rows, columns) int8."""
    if packed.dtype == torch.uint8:
        return from_blocks(packed).view(torch.int8) - 8
    if bits == 8:
        return packed
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(-2)


def dequantize(packed: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return (rows, columns) in `dtype`. In fp16 the product is taken in fp16, as the original does; else in fp32."""
    integers = unpack(packed, bits)
    if scale.ndim == 3:
        factor, zero = scale.transpose(0, 1).float().unsqueeze(3).unbind(2)  # (rows, groups, 1) each
        numbers = integers.float().view(*factor.shape[:2], -1).mul_(factor).add_(zero)
        return numbers.view(integers.shape).to(dtype)
    precision = torch.float16 if dtype == torch.float16 else torch.float32
    return integers.to(precision).mul_(scale.to(precision)[:, None]).to(dtype)


@cache
def has_blocks() -> bool:
    """Return whether torch's product of 4 bits reads blocks as they lie here: its form is that of the processor."""
    integers = torch.arange(2 * BLOCK * 32, dtype=torch.int32).view(2 * BLOCK, 32) * 7 % 16
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 2)
    except (AttributeError, NotImplementedError, RuntimeError):  # another torch
        return False
    return torch.equal(packed, to_blocks(integers.to(torch.uint8)))


def in_blocks(packed: Tensor) -> Tensor:
    """Return (rows, columns / 2) int8 of 4 bits, by rows, in blocks: what it stands for stays the same."""
    step = max(BLOCK, CHUNK // (2 * packed.shape[1]) // BLOCK * BLOCK)
    return torch.cat([to_blocks((unpack(rows, 4) + 8).view(torch.uint8)) for rows in packed.split(step)])

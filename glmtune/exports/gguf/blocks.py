"""Blocks of 256 numbers, of 4 and 6 bits, which the gguf package reads and cannot write: llama.cpp's search, in numpy.

The formats are those of ggml-common.h, the search is that of ggml-quants.c (make_qx_quants, make_qkx2_quants:
https://github.com/ggml-org/llama.cpp): of some trial steps the one counts with which a weighted square error is least.

Letters: n blocks, p parts of a block, k numbers of a part. A part has one step; the steps of a block are multiples of
one of the block.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy import ndarray

ZERO = np.float32(1e-15)  # parts without a larger number are zeros
BLOCK = 256  # numbers
AT_ONCE = 2**9  # blocks: what is computed with them stays in a processor's cache


def quantize_blocks(values: ndarray, kind: str) -> ndarray:
    """Return rows of numbers as rows of bytes.

    Args:
        values: (..., m) fp32, m a multiple of 256.
        kind: a key of `FORMATS`.
    """
    part, encode = FORMATS[kind]
    parts = values.reshape(-1, BLOCK // part, part)
    with ThreadPoolExecutor() as pool:
        encoded = pool.map(encode, (parts[start : start + AT_ONCE] for start in range(0, len(parts), AT_ONCE)))
        return np.concatenate(list(encoded)).reshape(*values.shape[:-1], -1)


def encode_q4_k(parts: ndarray) -> ndarray:
    """Return (n, 144) bytes of (n, 8, 32) numbers: step * q - lowest, with q from 0 to 15, both of 6 bits a part."""
    weights = np.sqrt((parts * parts).mean(-1, keepdims=True)) + np.abs(parts)
    steps, lowest = steps_with_lowest(parts, weights)
    (step, steps), (low, lowest) = (in_63rds(values) for values in (steps, lowest))
    scale, offset = (step * steps)[..., None], (low * lowest)[..., None]
    q = np.rint((parts + offset) * inverse(scale)).clip(0, 15).astype(np.uint8)
    numbers = halves(q.reshape(-1, 64)).reshape(len(parts), -1)
    return np.concatenate([as_bytes(step), as_bytes(low), pack_6_bits(steps, lowest), numbers], axis=1)


def encode_q6_k(parts: ndarray) -> ndarray:
    """Return (n, 210) bytes of (n, 16, 16) numbers: step * q, with q from -32 to 31, steps of 8 bits a part."""
    steps = steps_around_zero(parts, 32)
    factor = np.float32(-128) * inverse(at_largest(steps))
    step = in_f16(inverse(factor))
    steps = np.minimum(np.rint(factor * steps), 127)
    q = np.rint(parts * inverse(step * steps)[..., None]).clip(-32, 31)
    codes = (q + 32).astype(np.uint8).reshape(len(parts), 2, 4, 32)  # two halves of four quarters
    low, high = codes & 0xF, codes >> 4
    low = low[:, :, :2] | low[:, :, 2:] << 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    rows = [part.reshape(len(parts), -1) for part in (low, high, steps.astype(np.int8).view(np.uint8))]
    return np.concatenate([*rows, as_bytes(step)], axis=1)


def steps_around_zero(parts: ndarray, count: int) -> ndarray:
    """Return the step of each part, (n, p), of which multiples from -count to count - 1 lie nearest.

    Its sign may be negative. 19 trial steps; a number counts by its square.
    """
    largest = at_largest(parts)
    weights = parts * parts

    def fit(trial: int) -> tuple[ndarray, ndarray]:
        factor = -np.float32(count + 0.1 * trial) * inverse(largest)
        q = np.rint(factor * parts).clip(-count, count - 1)
        weighted = weights * q
        return (weighted * parts).sum(-1), (weighted * q).sum(-1)

    along, size = fit(0)
    scale = along * inverse(size)
    best = scale * along
    for trial in (*range(-9, 0), *range(1, 10)):
        along, size = fit(trial)
        better = along * along > best * size
        scale = np.where(better, along * inverse(size), scale)
        best = np.where(better, scale * along, best)
    return np.where(np.abs(largest[..., 0]) < ZERO, 0, scale)


def steps_with_lowest(parts: ndarray, weights: ndarray) -> tuple[ndarray, ndarray]:
    """Return step and lowest number, as what is subtracted, of each part, (n, p) both: 16 steps from it.

    For each of 21 trial steps the best pair of both is solved for.
    """
    lowest = np.minimum(parts.min(-1), 0)
    spread = parts.max(-1) - lowest
    above_lowest, per_spread = parts - lowest[..., None], inverse(spread)[..., None]
    sum_w, sum_x = weights.sum(-1), (weights * parts).sum(-1)
    scale, offset, least = spread / 15, lowest, np.full_like(spread, np.inf)
    for trial in (None, *range(21)):
        q = np.rint(np.float32(15 if trial is None else 14 + 0.1 * trial) * per_spread * above_lowest).clip(0, 15)
        weighted = weights * q
        new_scale, new_offset = scale, offset
        if trial is not None:
            sum_q, sum_qq, sum_qx = weighted.sum(-1), (weighted * q).sum(-1), (weighted * parts).sum(-1)
            per_divisor = inverse(np.maximum(sum_w * sum_qq - sum_q * sum_q, 0))
            new_offset = (sum_qq * sum_x - sum_q * sum_qx) * per_divisor
            new_scale = np.where(
                new_offset > 0, sum_qx * inverse(sum_qq), (sum_w * sum_qx - sum_x * sum_q) * per_divisor
            )
            new_offset = np.minimum(new_offset, 0)
        apart = new_scale[..., None] * q + new_offset[..., None] - parts
        error = (weights * apart * apart).sum(-1)
        better = error < least
        least, scale = np.where(better, error, least), np.where(better, new_scale, scale)
        offset = np.where(better, new_offset, offset)
    return scale, -offset


def at_largest(values: ndarray) -> ndarray:
    """Return the number of the largest size in the last dimension, with its sign, (..., 1)."""
    return np.take_along_axis(values, np.abs(values).argmax(-1, keepdims=True), axis=-1)


def in_63rds(values: ndarray) -> tuple[ndarray, ndarray]:
    """Return a step of each block, (n, 1), and its numbers in steps, 0 to 63, (n, p)."""
    largest = values.max(-1, keepdims=True)
    counted = np.rint(np.float32(63) * inverse(largest) * values).clip(0, 63)
    return in_f16(largest / 63), counted


def pack_6_bits(steps: ndarray, lowest: ndarray) -> ndarray:
    """Return (n, 12) bytes of two times eight numbers from 0 to 63: four whole, the upper bits of the others on top."""
    both = [values.astype(np.uint8) for values in (steps, lowest)]
    first = [values[:, :4] | values[:, 4:] >> 4 << 6 for values in both]
    return np.concatenate([*first, both[0][:, 4:] & 0xF | both[1][:, 4:] << 4], axis=1)


def halves(codes: ndarray) -> ndarray:
    """Return (n, k / 2) bytes of (n, k) numbers below 16: the second half of them on top of the first."""
    first, second = np.split(codes, 2, axis=1)
    return first | second << 4


def inverse(values: ndarray) -> ndarray:
    """Return 1 / values, of zeros zero."""
    return np.divide(1, values, out=np.zeros_like(values), where=values != 0)


def in_f16(values: ndarray) -> ndarray:
    """Return numbers as f16 has them, in fp32."""
    return values.astype(np.float16).astype(np.float32)


def as_bytes(values: ndarray) -> ndarray:
    """Return (n, 2) bytes of (n, 1) numbers in f16."""
    return values.astype(np.float16).view(np.uint8)


# type -> numbers of a part, and (n, p, k) numbers -> (n, bytes)
FORMATS: dict[str, tuple[int, Callable[[ndarray], ndarray]]] = {"Q4_K": (32, encode_q4_k), "Q6_K": (16, encode_q6_k)}

"""Blocks of 4 and 6 bits: the gguf package reads them as they were meant, and their errors stay within bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from glmtune.exports.gguf.blocks import BLOCK, FORMATS
from glmtune.exports.gguf.tensors import ERRORS, encode, rounding_of

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install 'glmtune[gguf]'")

# Largest error of normal numbers, as a share of them (both root mean square): what llama.cpp's own reach, and no more.
SHARES = {"Q4_K": 0.075, "Q6_K": 0.020}


def there_and_back(values: Any, kind: str) -> Any:
    encoded = encode(values, kind)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert encoded.dtype == np.uint8 and encoded.shape == (*values.shape[:-1], values.shape[-1] // block * size)
    assert kind not in FORMATS or block == BLOCK
    return gguf.quants.dequantize(encoded, gguf.GGMLQuantizationType[kind])


def share(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("kind", FORMATS)
def test_errors_of_normal_numbers(kind: str) -> None:
    """Far from those of chance: an order of bits that is another one shows at once."""
    values = np.random.default_rng(0).standard_normal((3, 8, 512)).astype(np.float32) / 20
    found = there_and_back(values, kind)
    assert share(found, values) < SHARES[kind]
    assert np.all(np.abs(found - values) <= rounding_of(values, kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_zeros_and_what_is_alike(kind: str) -> None:
    values = np.zeros((4, 256), np.float32)
    values[1], values[2, 40], values[3, :7] = 1.0, -3.0, 1e-20
    found = there_and_back(values, kind)
    np.testing.assert_allclose(found, values, atol=0.13)
    assert not found[0].any() and not found[3].any() and np.isfinite(found).all()


@settings(max_examples=40, deadline=None)
@given(
    values=arrays(np.float32, (2, 256), elements=st.floats(-8, 8, width=32)),
    kind=st.sampled_from(sorted(ERRORS)),
)
def test_errors_stay_within_what_is_taken_for_rounding(values: Any, kind: str) -> None:
    found = there_and_back(values, kind)
    assert np.all(np.abs(found - values) <= rounding_of(values, kind))

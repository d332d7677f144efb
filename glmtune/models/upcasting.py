"""Products of 16 bits in fp32, on a processor without units for them: stored as they were, and rounded after.

There torch multiplies matrices of bfloat16 and fp16 by loops: 9 against 75 GFLOP/s in fp32 on a core with AVX2, so that
a step of training takes five times as long (docs/log.md). Weights are turned to fp32 a few rows at a time, again in the
backward pass; neither they nor the inputs are kept in fp32. A few rows of inputs are faster by the loops, which read a
weight once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.models.precision import has_units

UPCAST_CHUNK = 2**21  # numbers of a weight that stand in fp32 at a time, in the cache of the processor: 8 MB
OWN_ROWS = 2  # of inputs, up to which torch's own loop is the faster one
FEW_ROWS = 8  # of inputs, from which on turning the weight to fp32 pays


def upcasts(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether products of a precision are computed in fp32 there."""
    names: dict[torch.dtype, Any] = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
    return device.type == "cpu" and dtype in names and not has_units(names[dtype])


def computed_in(inputs: Tensor) -> torch.dtype:
    """Return the precision of what a layer makes of its inputs: that of autocast where it is on, or their own."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype


class UpcastProduct(torch.autograd.Function):
    """x @ W.T + b in fp32, rounded once. Gradients are sums in fp32 as well."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Map (..., columns) -> (..., rows) in `dtype`."""
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        ctx.input_dtype, ctx.bias_dtype = inputs.dtype, None if bias is None else bias.dtype
        return multiply(inputs, weight, bias, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Map (..., rows) -> (..., columns), with the gradients of what learns."""
        inputs, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias, _ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        wide = inputs.reshape(-1, inputs.shape[-1]).float() if wants_weight else None
        total = flat.new_zeros((len(flat), weight.shape[1]), dtype=torch.float32) if wants_input else None
        to_weight = torch.empty_like(weight) if wants_weight else None
        to_bias = flat.new_empty(len(weight), dtype=ctx.bias_dtype) if wants_bias else None
        with torch.autocast("cpu", enabled=False):
            for rows in blocks(weight):
                part = flat[:, rows].float()
                if total is not None:
                    total.addmm_(part, weight[rows].float())
                if to_weight is not None and wide is not None:
                    to_weight[rows] = part.T @ wide
                if to_bias is not None:
                    to_bias[rows] = part.sum(0)
        to_input = None if total is None else total.to(ctx.input_dtype).view(*gradient.shape[:-1], -1)
        return to_input, to_weight, to_bias, None


def multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Map (..., columns) -> (..., rows) in `dtype`, computed in fp32."""
    with torch.autocast("cpu", enabled=False):
        wide = inputs.float()
        outputs = inputs.new_empty((*inputs.shape[:-1], len(weight)), dtype=dtype)
        for rows in blocks(weight):
            shift = None if bias is None else bias[rows].float()
            outputs[..., rows] = nn.functional.linear(wide, weight[rows].float(), shift)
    return outputs


def blocks(weight: Tensor) -> Iterator[slice]:
    """Yield rows of a weight that are turned to fp32 together."""
    step = max(1, UPCAST_CHUNK // weight.shape[1])
    return (slice(start, start + step) for start in range(0, len(weight), step))


class UpcastLinear(nn.Linear):
    """A linear layer whose products of many rows are computed in fp32, be it of 16 bits or autocast to them."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) -> (..., out_features)."""
        dtype = computed_in(input)
        few = input.numel() < FEW_ROWS * input.shape[-1]
        if few or not upcasts(input.device, dtype):
            return super().forward(input)
        if torch.is_grad_enabled():
            product: Tensor = UpcastProduct.apply(input, self.weight, self.bias, dtype)
            return product
        return multiply(input, self.weight, self.bias, dtype)


class RowLinear(nn.Linear):
    """A linear layer whose products of a row or two of bfloat16 are torch's own, where oneDNN computes those of many.

    oneDNN reads a weight at 6 GB/s for a row, on a core where torch's loop reads 15 (docs/log.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) -> (..., out_features)."""
        few = input.numel() <= OWN_ROWS * input.shape[-1] and input.dtype == self.weight.dtype == torch.bfloat16
        if not few or torch.is_grad_enabled() or torch.compiler.is_compiling() or not torch._C._get_mkldnn_enabled():
            return super().forward(input)
        torch._C._set_mkldnn_enabled(False)
        try:
            return super().forward(input)
        finally:
            torch._C._set_mkldnn_enabled(True)


def suit_products(model: nn.Module, dtype: torch.dtype) -> list[nn.Linear]:
    """Let the linear layers of a model compute as the processor does it best, and return those that did not yet."""
    first = next(model.parameters(), None)
    if first is None or first.device.type != "cpu":
        return []
    kind = UpcastLinear if upcasts(first.device, dtype) else RowLinear
    if kind is RowLinear and dtype != torch.bfloat16:
        return []
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    for layer in layers:
        layer.__class__ = kind
    return layers


@contextmanager
def upcast_while(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let the linear layers of a model compute so meanwhile: those of fp32, too, which autocast brings to 16 bits."""
    layers = suit_products(model, dtype)
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear

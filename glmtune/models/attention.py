"""Attention of 16 bits that learns on a CPU: its gradients are computed in fp32.

torch's kernel multiplies by loops in the backward pass of bfloat16 and fp16, whatever the processor has: 2.6 ms for 8
sequences of 18 tokens and 9 heads of 64, where fp32 takes 0.4. So queries, keys and values are kept as they are, and
the backward pass computes attention once more in fp32, where its gradients come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.models.upcasting import computed_in, upcasts

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Attention(torch.autograd.Function):
    """Attention in a precision of 16 bits, whose gradients are those of fp32."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, attend: Attend, dtype: torch.dtype
    ) -> Tensor:
        """Map (B, H, T, D), (B, G, S, D), (B, G, S, D) -> (B, T, H, D) in `dtype`.

        Args:
            mask: (B, 1, T, S), true where a query sees a key, or added to the scores.
            attend: attention, as the library computes it.
        """
        given = [query, key, value]
        ctx.save_for_backward(*given, mask)
        ctx.attend = attend
        if upcasts(query.device, dtype):
            return in_fp32(attend, [part.float() for part in given], mask).to(dtype)
        return attend(query.to(dtype), key.to(dtype), value.to(dtype), mask)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Map (B, T, H, D) -> the gradients of queries, keys and values."""
        *given, mask = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        with torch.enable_grad():
            wide = [part.detach().float().requires_grad_(want) for part, want in zip(given, wanted, strict=True)]
            outputs = in_fp32(ctx.attend, wide, mask)
        learning = [part for part in wide if part.requires_grad]
        found = iter(torch.autograd.grad(outputs, learning, gradient.float()))
        to_given = [next(found).to(part.dtype) if want else None for part, want in zip(given, wanted, strict=True)]
        return *to_given, None, None, None


def in_fp32(attend: Attend, given: list[Tensor], mask: Tensor | None) -> Tensor:
    """Return attention in fp32."""
    query, key, value = given
    with torch.autocast("cpu", enabled=False):
        return attend(query, key, value, mask.float() if mask is not None and mask.is_floating_point() else mask)


@contextmanager
def precise_attention() -> Iterator[None]:
    """Let models compute attention that learns so meanwhile, where a CPU computes it in 16 bits."""
    compute: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """Compute attention as the library's function of the same arguments."""

        def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            outputs: Tensor = compute(module, query, key, value, mask, **options)[0]
            return outputs

        dtype = computed_in(query)
        learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        odd = options.get("dropout") or any(
            isinstance(part, Tensor) and part.requires_grad for part in (attention_mask, *options.values())
        )
        if not learns or odd or query.device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
            return attend(query, key, value, attention_mask), None
        outputs: Tensor = Attention.apply(query, key, value, attention_mask, attend, dtype)
        return outputs, None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]

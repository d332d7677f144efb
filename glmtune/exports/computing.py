"""A model as it is, computed in another precision than it is stored in: what rounding alone does to its logits.

Weights are cast one by one as they are multiplied, so that no second copy of a model is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# What asks for operands of one precision; the others of torch promote them.
PRODUCTS: set[Callable[..., Any]] = {
    *(functional.linear, functional.bilinear, functional.conv1d, functional.scaled_dot_product_attention),
    *(functional.layer_norm, functional.rms_norm, functional.embedding),
    *(torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm, Tensor.addmm, Tensor.baddbmm),
}


class Computing(TorchFunctionMode):
    """Within it, products are computed in `dtype`, whatever the precision of what is multiplied."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Cast what has a fraction, of the functions that ask for one precision."""
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))

        def cast(value: Any) -> Any:
            return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return func(*tree_map(cast, args), **tree_map(cast, kwargs or {}))

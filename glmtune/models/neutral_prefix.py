"""A prefix that changes next to nothing of what a model says: what P-Tuning v2 starts from.

Random keys draw attention away from the tokens, and random values are nothing that a model has ever seen: the loss of a
trained model multiplies. So the keys are those to which the queries of some examples give a small share of their
attention, found by least squares, and the values are those of tokens (as Li & Liang 2021, section 7.4, start from real
activations, https://arxiv.org/abs/2101.00190).

Letters in shapes: P tokens of the prefix, T tokens of an example, L layers, H key heads, G query heads of each of them,
D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, PreTrainedModel

SHARE = 0.001  # of the attention of a query that goes to the whole prefix
RIDGE = 1e-2  # of the mean square of the queries; keeps keys short where few queries tell
QUERIES = 64  # of an example, evenly over its length


@dataclass
class Layer:
    """What the examples tell of a layer.

    Attributes:
        squares: (H, D, D), the sum of the outer products of the queries.
        products: (H, D), the sum of the queries times the scores that a key of the prefix is to have with them.
        values: each (H, some of T, D), of tokens of the examples.
    """

    squares: Tensor | float = 0.0
    products: Tensor | float = 0.0
    values: list[Tensor] = field(default_factory=list)


class Attending(TorchFunctionMode):
    """Looks at queries, keys and masks wherever attention is computed, whatever the model.

    Args:
        look: is given (H * G, T, D) scaled queries, and (H * G, T) the logarithms of the sums of their attention.
    """

    def __init__(self, look: Callable[[Tensor, Tensor], None]):
        super().__init__()
        self.look = look

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is scaled_dot_product_attention:
            self.look(*attention_sums(*args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))


def attention_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Return some of the scaled queries of the first row, and log sum exp of their scores; arguments as torch's."""
    places = torch.arange(0, query.shape[2], max(1, math.ceil(query.shape[2] / QUERIES)), device=query.device)
    queries = query[0, :, places].float() * (scale or query.shape[-1] ** -0.5)
    keys = key[0].float().repeat_interleave(query.shape[1] // key.shape[1], 0)
    scores = queries @ keys.transpose(1, 2)
    if is_causal:
        scores = scores.masked_fill(torch.arange(key.shape[2], device=query.device) > places[:, None], -torch.inf)
    elif attn_mask is not None:
        seen = attn_mask[0, :, places]
        scores = scores.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else scores + seen
    return queries, scores.logsumexp(-1)


class Watched(DynamicCache):
    """A cache that says which layer is about to attend, and notes as many of its values as are asked for."""

    def __init__(self, layers: dict[int, Layer], count: int):
        super().__init__()
        self.told, self.count, self.latest, self.heads = layers, count, 0, 1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values as they came, and note values of tokens that are drawn at random."""
        self.latest, self.heads = layer_idx, key_states.shape[1]
        drawn = torch.randint(value_states.shape[2], (self.count,)).to(value_states.device)
        self.told.setdefault(layer_idx, Layer()).values.append(value_states[0, :, drawn].float())
        return key_states, value_states


@torch.no_grad()
def neutral_numbers(model: PreTrainedModel, examples: Sequence[Tensor], length: int) -> Tensor | None:
    """Return (P, 2LHD), key and value of each layer side by side, that leave the answers to the examples as they are.

    Args:
        model: in evaluation mode, without a prefix.
        examples: (T,) token ids each.
        length: P.

    Returns:
        None where no attention is seen: the model does not compute it by torch's function.
    """
    layers: dict[int, Layer] = {}
    for example in examples:
        cache = Watched(layers, math.ceil(length / len(examples)))

        def look(queries: Tensor, sums: Tensor, cache: Watched = cache) -> None:
            layer = cache.told[cache.latest]
            queries, sums = (each.unflatten(0, (cache.heads, -1)).flatten(1, 2) for each in (queries, sums))
            layer.squares = layer.squares + queries.transpose(1, 2) @ queries
            wanted = sums + math.log(SHARE / length)
            layer.products = layer.products + (queries * wanted[..., None]).sum(1)

        with Attending(look):
            model.base_model(input_ids=example[None].to(model.device), past_key_values=cache, use_cache=True)
    if not layers or not all(isinstance(layer.squares, Tensor) for layer in layers.values()):
        return None
    return torch.cat([part for index in sorted(layers) for part in of_layer(layers[index], length)], 1)


def of_layer(layer: Layer, length: int) -> tuple[Tensor, Tensor]:
    """Return the keys and the values (P, HD) of a layer: one key for all, and values of tokens."""
    squares, products = layer.squares, layer.products
    assert isinstance(squares, Tensor) and isinstance(products, Tensor)
    size = squares.shape[-1]
    ridge = RIDGE * squares.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(size, device=squares.device)
    key = torch.linalg.solve(squares + ridge, products)  # (H, D)
    values = torch.cat(layer.values, 1)[:, :length]  # (H, P, D)
    return key.flatten().expand(length, -1), values.transpose(0, 1).flatten(1)

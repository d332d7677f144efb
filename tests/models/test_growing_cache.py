"""A growing cache holds what transformers' own holds, whatever is done to it in between."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from glmtune.models.growing_cache import GrowingLayer, make_room

Change = Callable[[DynamicCache], object]


def states(batch: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values (B, 2, T, 4)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, tokens, 4, generator=generator), torch.randn(batch, 2, tokens, 4, generator=generator)


@pytest.mark.parametrize(
    ("change", "batch"),
    [
        (lambda cache: None, 3),
        (lambda cache: cache.crop(-3), 3),
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), 3),
        (lambda cache: cache.batch_repeat_interleave(2), 6),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), 1),
        (lambda cache: cache.reset(), 3),
    ],
    ids=["nothing", "crop", "reorder", "repeat", "select", "reset"],
)
def test_holds_what_the_plain_one_holds(change: Change, batch: int) -> None:
    plain, growing = DynamicCache(), DynamicCache()
    for cache in (plain, growing):
        cache.update(*states(3, 5, 0), 0)
    make_room(growing)
    assert type(growing.layers[0]) is GrowingLayer
    with torch.no_grad():
        for step, tokens in enumerate([1, 1, 40, 1, 1]):
            if step == 3:
                for cache in (plain, growing):
                    change(cache)
            rows = batch if step >= 3 else 3
            expected, found = (cache.update(*states(rows, tokens, step), 0) for cache in (plain, growing))
            for left, right in zip(expected, found, strict=True):
                torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_what_was_handed_out_stays() -> None:
    """Outputs of an earlier call are not written over, unless the cache was cut."""
    cache = DynamicCache()
    cache.update(*states(1, 4, 0), 0)
    make_room(cache)
    with torch.no_grad():
        keys, _ = cache.update(*states(1, 1, 1), 0)
        before = keys.clone()
        cache.update(*states(1, 1, 2), 0)
    torch.testing.assert_close(keys, before)


def test_gradients_pass() -> None:
    """Where gradients are wanted nothing is written in place."""
    cache = DynamicCache()
    cache.update(*states(1, 4, 0), 0)
    make_room(cache)
    new = states(1, 2, 1)[0].requires_grad_()
    keys, _ = cache.update(new, new, 0)
    later, _ = cache.update(*states(1, 1, 2), 0)
    (keys.sum() + later.sum()).backward()
    torch.testing.assert_close(new.grad, torch.full_like(new, 2.0))


def test_offloaded_caches_keep_their_own_way() -> None:
    cache = DynamicCache()
    cache.update(*states(1, 4, 0), 0)
    cache.offloading = True
    make_room(cache)
    assert type(cache.layers[0]) is not GrowingLayer

"""Attention of 16 bits on a CPU: as the library's forwards, the gradients of fp32 backwards."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.models import upcasting
from glmtune.models.attention import precise_attention


class Layer(nn.Module):
    """As much of a layer as the library's function asks for."""

    num_key_value_groups = 3
    is_causal = True


def attend(given: list[Tensor], mask: Tensor | None, **options: Any) -> Tensor:
    outputs: Tensor = ALL_ATTENTION_FUNCTIONS["sdpa"](Layer(), *given, mask, **options)[0]
    return outputs


def draw(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Queries, keys and values in a precision, and the same in fp32."""
    torch.manual_seed(0)
    shapes = (2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)
    exact = [torch.randn(shape).to(dtype).float() for shape in shapes]
    return [part.to(dtype).requires_grad_() for part in exact], [part.requires_grad_() for part in exact]


BOOLEAN = torch.ones(2, 1, 5, 7, dtype=torch.bool).tril(2)
MASKS = {"boolean": BOOLEAN, "added": torch.zeros(2, 1, 5, 7).masked_fill(~BOOLEAN, -torch.inf), "none": None}


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_those_of_fp32_rounded_once(
    dtype: torch.dtype, kind: str, units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upcasting, "has_units", lambda name: units)
    given, exact = draw(dtype)
    mask = MASKS[kind]
    expected = attend(exact, mask, is_causal=False)
    weights = torch.randn_like(expected).to(dtype)
    (expected * weights).sum().backward()
    of_dtype = mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
    with precise_attention():
        outputs = attend(given, of_dtype, is_causal=False)
    (outputs * weights).sum().backward()
    rounding = torch.finfo(dtype).eps
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs.float(), expected, rtol=4 * rounding, atol=4 * rounding)
    for got, wanted in zip(given, exact, strict=True):
        assert got.grad.dtype == dtype
        torch.testing.assert_close(got.grad.float(), wanted.grad, rtol=rounding, atol=rounding)


def test_autocast_decides_the_precision_and_gradients_have_their_own() -> None:
    _, exact = draw(torch.bfloat16)
    with precise_attention(), torch.autocast("cpu", torch.bfloat16):
        outputs = attend(exact, None)
        outputs.float().sum().backward()
    assert outputs.dtype == torch.bfloat16 and {part.grad.dtype for part in exact} == {torch.float32}


def test_keys_and_values_are_kept_as_they_are() -> None:
    """Neither in fp32 nor once for each group of queries."""
    given, _ = draw(torch.bfloat16)
    kept: list[Tensor] = []
    with precise_attention(), torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend(given, MASKS["boolean"])
    assert sum(part.nbytes for part in kept if part.dtype != torch.bool) == sum(part.nbytes for part in given)


def test_what_does_not_learn_or_drops_is_left_to_the_library() -> None:
    given, exact = draw(torch.bfloat16)
    names = set()
    with precise_attention():
        for parts, options in [(given, {"dropout": 0.5}), (exact, {})]:
            outputs = attend(parts, None, **options)
            names.add(type(outputs.grad_fn).__name__)
        with torch.no_grad():
            assert torch.equal(attend(given, None), attend([part.detach() for part in given], None))
    assert "AttentionBackward" not in names


def test_the_library_gets_its_own_back() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(RuntimeError), precise_attention():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
        raise RuntimeError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before

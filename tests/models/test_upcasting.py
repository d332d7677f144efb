"""Products in fp32 of numbers of 16 bits: right to one rounding, forwards and backwards, and used where they pay."""

from typing import Any

import pytest
import torch
from torch import nn

from glmtune.config import ModelSettings
from glmtune.models import loading, upcasting
from glmtune.models.packed_checkpoints import pack_layers
from glmtune.models.quantization import PackedLinear
from glmtune.models.upcasting import RowLinear, UpcastLinear, suit_products, upcast_while


@pytest.fixture(autouse=True)
def without_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """This processor has no units for 16 bits, and weights are turned to fp32 a few rows at a time."""
    monkeypatch.setattr(upcasting, "has_units", lambda name: False)
    monkeypatch.setattr(upcasting, "UPCAST_CHUNK", 100)


def pair(dtype: torch.dtype, bias: bool) -> tuple[nn.Linear, UpcastLinear]:
    """A layer in fp32 of numbers that have 16 bits, and the same in a precision."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 37, bias=bias).to(dtype)
    exact = nn.Linear(24, 37, bias=bias)
    exact.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    assert len(suit_products(nn.Sequential(layer), dtype)) == 1
    return exact, layer  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(40, 24), (3, 5, 24), (2, 24)])
def test_it_is_the_product_in_fp32_rounded_once(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    exact, layer = pair(dtype, bias)
    inputs = torch.randn(shape).to(dtype)
    given = [inputs.clone().requires_grad_(), inputs.float().requires_grad_()]
    outputs, expected = layer(given[0]), exact(given[1])
    weights = torch.randn(expected.shape).to(dtype)
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()
    few = inputs.numel() < upcasting.FEW_ROWS * 24
    rounding = torch.finfo(dtype).eps * (4 if few else 1)
    for got, wanted in [
        (outputs, expected),
        (given[0].grad, given[1].grad),
        *((one.grad, other.grad) for one, other in zip(layer.parameters(), exact.parameters(), strict=True)),
    ]:
        assert got.dtype == dtype and got.shape == wanted.shape
        torch.testing.assert_close(got.float(), wanted, rtol=rounding, atol=rounding)
    with torch.no_grad():
        assert torch.equal(layer(inputs), outputs)


def test_what_is_frozen_gets_no_gradient_and_keeps_no_input() -> None:
    _, layer = pair(torch.bfloat16, bias=True)
    layer.requires_grad_(False)
    inputs = torch.randn(40, 24, dtype=torch.bfloat16, requires_grad=True)
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        outputs = layer(inputs)
    assert [tensor.shape for tensor in kept] == [layer.weight.shape]
    outputs.sum().backward()
    assert inputs.grad is not None and layer.weight.grad is None and layer.bias.grad is None


def test_autocast_decides_the_precision() -> None:
    model = nn.Sequential(nn.Linear(24, 37))
    inputs = torch.randn(40, 24)
    with upcast_while(model, torch.bfloat16):
        assert type(model[0]) is UpcastLinear
        assert model(inputs).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(inputs)
            outputs.sum().backward()
    assert type(model[0]) is nn.Linear and model[0].weight.grad.dtype == torch.float32
    assert outputs.dtype == torch.bfloat16 and torch.equal(outputs, model(inputs).bfloat16())


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", UpcastLinear), ("float32", nn.Linear)])
def test_models_are_loaded_so(dtype: Any, kind: type[nn.Linear], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loading.load_model(ModelSettings(path="nano", dtype=dtype))
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {kind}
    monkeypatch.setattr(upcasting, "has_units", lambda name: True)
    model, _ = loading.load_model(ModelSettings(path="nano", dtype=dtype))
    expected = RowLinear if dtype == "bfloat16" else nn.Linear
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {expected}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_a_row_or_two_are_multiplied_by_torch_itself(
    rows: int, dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And afterwards everything is computed as before, also when it fails."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 37, bias=bias).to(dtype)
    inputs = torch.randn(1, rows, 24).to(dtype)
    expected = nn.functional.linear(inputs.float(), layer.weight.float(), layer.bias.float() if bias else None)
    layer.__class__ = RowLinear
    seen: list[bool] = []
    linear = nn.functional.linear

    def note(*args: Any) -> Any:
        seen.append(torch._C._get_mkldnn_enabled())
        return linear(*args)

    monkeypatch.setattr(nn.functional, "linear", note)
    with torch.no_grad():
        found = layer(inputs)
        with pytest.raises(RuntimeError):
            layer(inputs[..., :5])
    layer(inputs)
    assert seen[0] == (rows > 2 or dtype != torch.bfloat16) and seen[-1] and torch._C._get_mkldnn_enabled()
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_layers_that_compute_otherwise_are_packed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_units in (False, True):
        monkeypatch.setattr(upcasting, "has_units", lambda name, has_units=has_units: has_units)
        model, _ = loading.load_model(ModelSettings(path="nano", dtype="bfloat16"))
        pack_layers(model, 8)
        kinds = {type(layer) for name, layer in model.named_modules() if name.endswith(("dense", "query_key_value"))}
        assert kinds == {PackedLinear}

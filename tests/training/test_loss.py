"""The loss of the targets alone is the loss of all."""

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from glmtune.data.collation import target_columns
from glmtune.training import loss
from glmtune.training.loss import target_loss

LABELS = torch.tensor([[-100, -100, 5, 1, -100, -100], [-100, -100, -100, 3, 2, 0]])


def plain_loss(logits: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), LABELS[:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize("chunk", [2**24, 10, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_equals_the_whole(chunk: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", chunk)
    torch.manual_seed(0)
    logits = (torch.randn(2, 6, 7) * 3).to(dtype).requires_grad_()
    columns = target_columns(LABELS)
    expected = plain_loss(logits)
    expected.backward()
    gradient, logits.grad = logits.grad, None
    found = target_loss(logits[:, columns], LABELS, columns)
    (found * 1.0).backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float())
    torch.testing.assert_close(logits.grad, gradient, rtol=0, atol=tolerance)


def test_small_gradients_survive_in_fp16() -> None:
    """As with a loss that is scaled before anything is rounded to fp16."""
    logits = torch.zeros(1, 2, 40000, dtype=torch.float16).requires_grad_()
    labels = torch.tensor([[-100, 3]])
    (target_loss(logits[:, :1], labels, torch.tensor([0])) * 65536 / 1000).backward()
    assert logits.grad[0, 0, 0] == pytest.approx(65536 / 1000 / 40000, rel=1e-2)


def test_equals_the_loss_of_a_model() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=11, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    ids = torch.randint(0, 11, LABELS.shape)
    expected = model(input_ids=ids, labels=LABELS).loss
    columns = target_columns(LABELS)
    found = target_loss(model(input_ids=ids, logits_to_keep=columns).logits, LABELS, columns) / (LABELS != -100).sum()
    torch.testing.assert_close(found, expected)

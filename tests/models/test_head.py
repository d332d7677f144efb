"""A frozen head is not copied for each row of a batch."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from glmtune.config import ModelSettings
from glmtune.models.loading import load_model


def test_a_frozen_head_is_not_copied(tiny_checkpoint: Path) -> None:
    """It is asked for the last tokens of sequences, which lie apart: one product, not one for each of them."""
    model, _ = load_model(ModelSettings(path=str(tiny_checkpoint)))
    model.requires_grad_(False)
    states = torch.randn(3, 4, model.config.hidden_size)[:, -1:]
    with profile(activities=[ProfilerActivity.CPU]) as found, torch.inference_mode():
        model.get_output_embeddings()(states)
    products = {event.key for event in found.key_averages()}
    assert "aten::mm" in products and "aten::bmm" not in products

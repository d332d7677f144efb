"""Whether packing changes a loss: some models and methods let neighbours in a row see each other."""

from __future__ import annotations

from typing import Any

import torch

from glmtune.data import EncodedDataset
from glmtune.data.collation import Collator
from glmtune.runtime import UserError

EXAMPLES = 4
TOLERANCE = 2e-2  # of a loss computed in 16 bits; a hundredth of it in fp32


@torch.no_grad()
def check_packing(trainer: Any, dataset: EncodedDataset) -> None:
    """See on the first examples that a row of several has the loss of a row for each.

    Raises:
        UserError: it has another.
    """
    encodings = [dataset[index] for index in range(min(EXAMPLES, len(dataset)))]
    model, pad_token_id = trainer.model, trainer.data_collator.pad_token_id
    in_one_row = Collator(pad_token_id, packed=True, room=sum(len(one["input_ids"]) for one in encodings))
    model.eval()
    alone, packed = (loss_of(trainer, collate(encodings)) for collate in (Collator(pad_token_id), in_one_row))
    model.train()
    tolerance = TOLERANCE if trainer.args.bf16 or trainer.args.fp16 else TOLERANCE / 100
    if not abs(packed - alone) <= tolerance * abs(alone):
        raise UserError(
            f"data.packing=true: with this model and method, packed examples see one another (loss {packed:.4f} "
            f"instead of {alone:.4f} on the first {len(encodings)}). Set data.packing=false; batches hold examples of "
            "similar length in any case."
        )


def loss_of(trainer: Any, batch: dict[str, torch.Tensor]) -> float:
    """Return the loss of a batch; nan where the model does not take its `position_ids`."""
    try:
        on_device = {name: tensor.to(trainer.args.device) for name, tensor in batch.items()}
        return trainer.compute_loss(trainer.model, on_device).item()
    except (ValueError, TypeError):
        return float("nan")

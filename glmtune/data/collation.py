"""Encodings to batches. Padding is all that happens here: masks and positions are the model's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glmtune.data.encoding import IGNORED, Encoding


@dataclass(frozen=True)
class Collator:
    """Pads a list of encodings to their longest.

    Attributes:
        pad_token_id: fills `input_ids`; `attention_mask` is 0 and `labels` are -100 there.
    """

    pad_token_id: int

    def __call__(self, encodings: list[Encoding]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels`, all (B, T), padded on the right; `record` (B,), `columns` (K,).

        The columns with targets are found here: on a GPU, looking for them would make it wait.
        """
        length = max(len(encoding["input_ids"]) for encoding in encodings)

        def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

        rows = [encoding["input_ids"] for encoding in encodings]
        labels = padded([encoding["labels"] for encoding in encodings], IGNORED)
        return {
            "input_ids": padded(rows, self.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
            "labels": labels,
            "record": torch.tensor([encoding["record"] for encoding in encodings]),
            "columns": target_columns(labels),
        }


def target_columns(labels: torch.Tensor) -> torch.Tensor:
    """(K,) the columns of a batch from which a target is predicted in some row.

    Args:
        labels: (B, T), unshifted, -100 where nothing is learned. Column t predicts the label in column t + 1.
    """
    return labels[:, 1:].ne(IGNORED).any(dim=0).nonzero().squeeze(1)

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
        """`input_ids`, `attention_mask`, `labels`, all (B, T), padded on the right; `record` (B,)."""
        length = max(len(encoding["input_ids"]) for encoding in encodings)

        def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

        rows = [encoding["input_ids"] for encoding in encodings]
        return {
            "input_ids": padded(rows, self.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
            "labels": padded([encoding["labels"] for encoding in encodings], IGNORED),
            "record": torch.tensor([encoding["record"] for encoding in encodings]),
        }

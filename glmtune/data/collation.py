"""Encodings to batches: padded, or packed. Masks and positions are the model's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glmtune.data.encoding import IGNORED, Encoding


@dataclass(frozen=True)
class Collator:
    """Lays a list of encodings out as a batch: one in each row, or packed, several in a row.

    Packing changes no result: a sequence sees nothing of its neighbours, and the loss is a mean over the targets. It
    saves the padding where lengths differ.

    Attributes:
        pad_token_id: fills `input_ids`; `attention_mask` is 0 and `labels` are -100 there.
        packed: put several encodings in a row.
        room: length of such a row in tokens; the longest encoding, if that is more.
        idle: what stands in an empty batch, so that a process without examples takes part in a pass; none of it is
            learned.
    """

    pad_token_id: int
    packed: bool = False
    room: int = 0
    idle: Encoding | None = None

    def __call__(self, encodings: list[Encoding]) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels`, both (B, T), padded on the right; `record` (N,), `logits_to_keep` (K,).

        With an example in each row `attention_mask` (B, T); packed, in its place, `position_ids` (B, T), which count
        from 0 in each sequence: by these models tell sequences apart. The columns with targets are found here: on a
        GPU, looking for them would make it wait.
        """
        if not encodings and self.idle is not None:
            encodings = [{**self.idle, "labels": [IGNORED] * len(self.idle["labels"])}]
        batch = self.in_packs(encodings) if self.packed else self.in_rows(encodings)
        records = torch.tensor([encoding["record"] for encoding in encodings])
        return {**batch, "record": records, "logits_to_keep": target_columns(batch["labels"])}

    def in_rows(self, encodings: list[Encoding]) -> dict[str, torch.Tensor]:
        """Put an encoding in each row."""
        rows = [encoding["input_ids"] for encoding in encodings]
        return {
            "input_ids": padded(rows, self.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
            "labels": padded([encoding["labels"] for encoding in encodings], IGNORED),
        }

    def in_packs(self, encodings: list[Encoding]) -> dict[str, torch.Tensor]:
        """As many in a row as it has room for."""
        packs = pack([len(encoding["input_ids"]) for encoding in encodings], self.room)
        width = max(sum(len(encodings[index]["input_ids"]) for index in row) for row in packs)
        ids, labels, places = [], [], []
        for row in packs:
            chosen = [encodings[index] for index in row]
            ids.append([token for encoding in chosen for token in encoding["input_ids"]])
            # What a sequence begins with is not to be predicted from the end of the one before.
            labels.append([label for encoding in chosen for label in (IGNORED, *encoding["labels"][1:])])
            places.append([place for encoding in chosen for place in range(len(encoding["input_ids"]))])
            places[-1] += range(width - len(places[-1]))  # padding is a sequence of its own
        return {
            "input_ids": padded(ids, self.pad_token_id),
            "labels": padded(labels, IGNORED),
            "position_ids": torch.tensor(places),
        }


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """(B, T) rows, filled up on the right to the length of the longest."""
    length = max(map(len, rows))
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])


def pack(lengths: list[int], capacity: int = 0) -> list[list[int]]:
    """Indices of what stands in each row: the longest first, each in the first row that has room for it.

    The best known simple rule (first fit decreasing); a row has at least the length of the longest item.
    """
    rows: list[list[int]] = []
    capacity, room = max(capacity, *lengths), list[int]()
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((row for row, left in enumerate(room) if left >= lengths[index]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(capacity)
        rows[place].append(index)
        room[place] -= lengths[index]
    return rows


def target_columns(labels: torch.Tensor) -> torch.Tensor:
    """(K,) the columns of a batch from which a target is predicted in some row.

    Args:
        labels: (B, T), unshifted, -100 where nothing is learned. Column t predicts the label in column t + 1.
    """
    return labels[:, 1:].ne(IGNORED).any(dim=0).nonzero().squeeze(1)

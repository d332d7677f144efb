from __future__ import annotations

import copy

import pytest
import torch

from glmtune.data.collation import Collator, target_columns
from glmtune.data.encoding import IGNORED, Encoding

ROWS: list[Encoding] = [
    {"input_ids": [5, 6, 7, 2], "labels": [IGNORED, IGNORED, 7, 2], "record": 4},
    {"input_ids": [8, 2], "labels": [IGNORED, 2], "record": 0},
    {"input_ids": [9, 3, 2], "labels": [IGNORED, 3, 2], "record": -1},
]


def test_padding() -> None:
    batch = Collator(3)(ROWS)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "record", "logits_to_keep"}
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [8, 2, 3, 3], [9, 3, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    x = IGNORED
    assert batch["labels"].tolist() == [[x, x, 7, 2], [x, 2, x, x], [x, 3, 2, x]]
    assert batch["record"].tolist() == [4, 0, -1]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_the_end_token_is_learned_even_where_it_is_the_padding() -> None:
    batch = Collator(2)(ROWS)
    assert (batch["labels"] == 2).sum(-1).tolist() == [1, 1, 1]
    assert batch["attention_mask"].sum(-1).tolist() == [4, 2, 3]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_do_not_depend_on_their_batch(count: int) -> None:
    batch = Collator(0)(ROWS[:count])
    for i, row in enumerate(ROWS[:count]):
        kept = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][kept].tolist() == row["input_ids"]
        assert batch["labels"][i][kept].tolist() == row["labels"]
        assert set(batch["labels"][i][~kept].tolist()) <= {IGNORED}
    assert batch["input_ids"].shape == (count, 4)


def test_encodings_stay_as_they_are() -> None:
    before = copy.deepcopy(ROWS)
    Collator(0)(ROWS)
    assert before == ROWS


def test_columns_before_targets() -> None:
    labels = torch.tensor([[-100, -100, 5, 1, -100, -100], [-100, -100, -100, 3, 2, 0]])
    assert target_columns(labels).tolist() == [1, 2, 3, 4]
    assert target_columns(torch.full((2, 3), -100)).tolist() == []

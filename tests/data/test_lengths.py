"""How long examples are: of records all, of draws the first, of a mixture those of its sources."""

from typing import Any

import pytest

from glmtune.data import EncodedDataset, EncodedDraws, lengths
from glmtune.data.encoding import IGNORED, Encoding
from glmtune.data.lengths import Lengths, longest_of
from glmtune.data.mixture import Mixture


class Table(EncodedDataset):
    """Examples of these numbers of tokens of the prompt and the target."""

    def __init__(self, *sizes: tuple[int, int]):
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Encoding:
        prompt, target = self.sizes[index]
        return {"input_ids": [1] * (prompt + target), "labels": [IGNORED] * prompt + [1] * target, "record": index}


class Draws(Table, EncodedDraws):
    """The same, drawn."""


def test_all_records_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "CHECKED_DRAWS", 2)
    sizes: list[Any] = [(3, 2), (1, 4), (9, 1)]
    assert longest_of(Table(*sizes)) == Lengths(10, 4)
    assert longest_of(Draws(*sizes)) == Lengths(5, 4)


def test_a_mixture_is_as_long_as_its_sources() -> None:
    assert longest_of(Mixture([Table((3, 2)), Table((1, 7))], [0.5], 4, 0)) == Lengths(8, 7)

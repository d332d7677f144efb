"""How long the examples of a data set are, and how much of them is learned."""

from __future__ import annotations

from typing import NamedTuple

from glmtune.data import EncodedDataset, EncodedDraws
from glmtune.data.encoding import IGNORED
from glmtune.data.mixture import Mixture

# Examples whose lengths are looked at, where a task draws without end.
CHECKED_DRAWS = 1000


class Lengths(NamedTuple):
    """Tokens of the longest example, and of the longest target."""

    example: int
    target: int


def longest_of(dataset: EncodedDataset) -> Lengths:
    """Return the lengths of the longest example and target of a data set; of draws, the first are looked at.

    Raises:
        UserError: one is too long.
    """
    if isinstance(dataset, Mixture):
        return Lengths(*map(max, zip(*map(longest_of, dataset.sources), strict=True)))
    length = target_length = 1
    for index in range(min(len(dataset), CHECKED_DRAWS) if isinstance(dataset, EncodedDraws) else len(dataset)):
        for labels in (encoding["labels"] for encoding in dataset.encodings(index)):
            length = max(length, len(labels))
            target_length = max(target_length, len(labels) - labels.count(IGNORED))
    return Lengths(length, target_length)

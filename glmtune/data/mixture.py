"""What a training learns from: the task's own examples, and shares of other records mixed in."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from glmtune.config import DataSettings, Recipe
from glmtune.data import DrawnExamples, EncodedDataset, EncodedDraws, examples_of
from glmtune.data.encoding import Encoder, Encoding
from glmtune.data.table import encode_records
from glmtune.tasks import Example, Task
from glmtune.tasks.instructions import read_examples, without

FOREIGN = -1  # the number of a record that is not the task's own


class Mixture(EncodedDataset):
    """Examples of several sources in fixed shares, for all steps of a training.

    Each source is gone through again and again, in another order each time, so that of two of its examples none is seen
    twice more often than the other.

    Args:
        sources: the task's own first.
        shares: of all but the first; it gets the rest.
        size: examples in all.
        seed: of the orders.
    """

    def __init__(self, sources: Sequence[EncodedDataset], shares: Sequence[float], size: int, seed: int):
        counts = [round(size * share) for share in shares]
        self.sources = sources
        self.remarks = [remark for source in sources for remark in source.remarks]
        self.places = [
            (number, place)
            for number, (source, count) in enumerate(zip(sources, [size - sum(counts), *counts], strict=True))
            for place in islice(passes(len(source), f"{seed} {number}"), count)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Encoding:
        number, place = self.places[index]
        encoding = self.sources[number][place]
        return {**encoding, "record": FOREIGN} if number else encoding

    def length(self, index: int) -> int:
        """Tokens of an example."""
        number, place = self.places[index]
        return self.sources[number].length(place)


def passes(count: int, seed: str) -> Iterator[int]:
    """The numbers below `count`, in another order in each pass, without end."""
    number = 0
    while True:
        yield from random.Random(f"{seed} {number}").sample(range(count), count)
        number += 1


def training_set(recipe: Recipe, task: Task, encoder: Encoder, size: int, judged: Sequence[Example]) -> EncodedDataset:
    """What a recipe says is learned. Records are encoded now.

    Args:
        recipe: `data`, `seed`.
        task: whose examples these are.
        encoder: how they are encoded.
        size: examples in all, where they are drawn or mixed.
        judged: what the model will be asked; none of that is learned from a mixture.

    Raises:
        UserError: a file that cannot be read, or examples that are too long.
    """
    settings, mixture = recipe.data, recipe.data.mixture
    shares = [source.share for source in mixture]
    own_size = size - sum(round(size * share) for share in shares)
    own = encoded(examples_of(task, "train", own_size, recipe.seed), encoder, settings, "The examples")
    if not mixture:
        return own
    others = []
    for source in mixture:
        how = settings.model_copy(update={"columns": source.columns})
        others.append(encoded(without(read_examples(source.file, how), judged), encoder, settings, source.file))
    return Mixture([own, *others], shares, size, recipe.seed)


def encoded(examples: Sequence[Example], encoder: Encoder, settings: DataSettings, name: str) -> EncodedDataset:
    """Records as a table; what a task draws without end when it is asked for."""
    if isinstance(examples, DrawnExamples):
        return EncodedDraws(examples, encoder, settings.too_long)
    return encode_records(examples, encoder, settings, name)

"""What a training learns from: the task's own examples, and shares of other records mixed in."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

from glmtune.config import ENDLESS_STEPS, DataSettings, Recipe
from glmtune.data import DrawnExamples, EncodedDataset, EncodedDraws
from glmtune.data.acceptance import accepted
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import Encoding
from glmtune.data.table import encode_records
from glmtune.examples import Example, Source
from glmtune.records import read_mixture
from glmtune.records.leaks import normal_text, without_leaks
from glmtune.runtime import UserError
from glmtune.tasks import Task


class Mixture(EncodedDataset):
    """Examples of several sources in fixed shares, for all steps of a training.

    Of two examples of one source, none is seen twice more often than the other.

    Args:
        sources: the task's own first.
        shares: of all but the first; it gets the rest.
        size: examples in all.
        seed: of the orders.
    """

    def __init__(self, sources: Sequence[EncodedDataset], shares: Sequence[float], size: int, seed: int):
        counts = [int(size * share) for share in shares]
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
        return {**self.sources[number][place], "record": index}

    def length(self, index: int) -> int:
        """Return how many tokens an example has."""
        number, place = self.places[index]
        return self.sources[number].length(place)

    def source(self, index: int) -> Source | None:
        """Return where the record of an example stands; None for what was drawn."""
        number, place = self.places[index]
        return self.sources[number].source(place)


def passes(count: int, seed: str, first: int = 0) -> Iterator[int]:
    """Yield the numbers below `count`, in another order in each pass, without end.

    Args:
        count: how many numbers a pass has.
        seed: of the orders.
        first: how many are passed over.
    """
    number, place = divmod(first, count)
    while True:
        yield from order_of_pass(count, seed, number)[place:]
        number, place = number + 1, 0


@lru_cache(maxsize=2)
def order_of_pass(count: int, seed: str, number: int) -> list[int]:
    """Return the numbers below `count` in the order of a pass; kept for who asks for it step by step."""
    return random.Random(f"{seed} {number}").sample(range(count), count)


def training_set(
    recipe: Recipe,
    task: Task,
    encoder: Encoder,
    general: Sequence[Example] = (),
    mixed: Sequence[Sequence[Example]] | None = None,
) -> tuple[EncodedDataset, int]:
    """Return what a recipe says is learned, and in how many steps. Records are encoded now.

    Args:
        recipe: `data`, `training`, `seed`.
        task: whose examples these are; what it holds out is not learned from a mixture.
        encoder: how they are encoded.
        general: questions by which forgetting is measured; these are not learned either.
        mixed: the records of each source of `data.mixture`; default: they are read.

    Raises:
        UserError: a file that cannot be read, or examples that are too long.
    """
    settings, training = recipe.data, recipe.training
    shares = [source.share for source in settings.mixture]
    records = task.records("train")
    if records is None:
        steps = training.steps or ENDLESS_STEPS
        size = steps * training.examples_per_step
        size -= sum(int(size * share) for share in shares)
        drawn = DrawnExamples(task, size, recipe.seed, first=settings.first_draw)
        own = encoded(drawn, encoder, settings, "The examples")
    else:
        own = encoded(records, encoder, settings, "The examples")
        steps = training.steps or count_steps(recipe, len(own))
    if not settings.mixture:
        return own, steps
    probed = {normal_text(example.prompt) for example in general}
    others = []
    for source, records in zip(settings.mixture, read_mixture(settings) if mixed is None else mixed, strict=True):
        found = without_leaks(records, lambda prompt: task.holds_out(prompt) or normal_text(prompt) in probed)
        if not found:
            raise UserError(f"data.mixture: {source.file}: all that it has is asked, too; nothing is left to learn.")
        others.append(encoded(found, encoder, settings, source.file))
    return Mixture([own, *others], shares, steps * training.examples_per_step, recipe.seed), steps


def count_steps(recipe: Recipe, records: int) -> int:
    """Optimizer steps that the epochs over some records take, the examples of other sources between them included."""
    own_share = 1 - sum(source.share for source in recipe.data.mixture)
    return max(1, math.ceil(recipe.training.epochs * records / own_share / recipe.training.examples_per_step))


def encoded(examples: Sequence[Example], encoder: Encoder, settings: DataSettings, name: str) -> EncodedDataset:
    """Records as a table; what a task draws without end when it is asked for.

    Raises:
        UserError: records are too long; or a rule for these is set where there are none.
    """
    if not isinstance(examples, DrawnExamples):
        if settings.on_error == "skip":  # else all that is wrong is told when they are encoded
            examples = accepted(examples, encoder.tokenizer, settings)
        return encode_records(examples, encoder, settings, name)
    if settings.too_long != "stop":
        raise UserError(
            f"data.too_long={settings.too_long}: is for records, and this task draws its examples. Let it draw shorter "
            "ones, e.g. with task.maximum."
        )
    return EncodedDraws(examples, encoder)

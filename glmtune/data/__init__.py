"""Examples to tensors: drawing or listing examples, encoding, and the order in which they are seen."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

from torch.utils.data import Dataset, Sampler

from glmtune.data.encoder import Encoder
from glmtune.data.encoding import Encoding
from glmtune.examples import Example, Source, Split, name_sources
from glmtune.runtime import UserError
from glmtune.tasks import Task

# Examples that are sorted by length together: enough for batches of equal length, few enough to stay random.
BATCHES_PER_POOL = 50


class DrawnExamples(Sequence[Example]):
    """`size` examples that a task draws. Each depends on the seed and its index alone, so any can be drawn again.

    Args:
        task, size, seed, split: of which so many are drawn.
        first: how many others come before them.
        posed: as the whole of each is asked, rather than as it is learned.
    """

    def __init__(
        self, task: Task, size: int, seed: int, split: Split = "train", first: int = 0, posed: bool = False
    ) -> None:
        self.task, self.size, self.seed, self.split, self.first = task, size, seed, split, first
        self.posed = posed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        index = self.first + range(self.size)[index]
        draw = self.task.pose if self.posed else self.task.sample
        return draw(random.Random(f"{self.seed} {self.split} {index}"), self.split)


def examples_of(task: Task, split: Split, size: int, seed: int) -> Sequence[Example]:
    """Return the task's records of a split, or `size` examples drawn from it."""
    records = task.records(split)
    return DrawnExamples(task, size, seed, split) if records is None else records


def check_question(example: Example, name: str) -> None:
    """See whether an example is a question in text, with its answer.

    Args:
        example: to learn, or to ask.
        name: what an error calls it.

    Raises:
        UserError: it is plain text, or has images.
    """
    if example.text is not None:
        raise UserError(
            f"{name}: 'text' is plain text, without a question and its answer. objective.name=pretrain learns it; or "
            "name the fields of both: data.columns.prompt=FIELD data.columns.target=FIELD"
        )
    if example.rejected is not None and not example.target and not example.tool_calls:
        raise UserError(
            f"{name}: 'label' says that this answer is bad, and no better one is known. objective.name=dpo with "
            "objective.loss=kto learns from such records; or leave them out."
        )
    if example.images:
        raise UserError(f"{name}: 'images' are files that models of text cannot read. Leave such records out.")


def encode(encoder: Encoder, example: Example, index: int) -> Encoding:
    """Return the whole of an example, however long it is.

    Raises:
        UserError: it is no question with an answer in text, or the template does not take it; says which record it is.
    """
    name = str(example.source or f"example {index + 1}")
    check_question(example, name)
    try:
        return encoder(example, index)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


class EncodedDataset(Dataset[Encoding]):
    """Examples as `input_ids`, `labels` and `record`, which is their index in this data set.

    Attributes:
        remarks: what its user should know of it.
    """

    remarks: Sequence[str] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Encoding: ...

    def length(self, index: int) -> int:
        """Return how many tokens an example has."""
        return len(self[index]["input_ids"])

    def encodings(self, index: int) -> list[Encoding]:
        """Return all that is computed of an example: itself, where it is compared with nothing."""
        return [self[index]]

    def source(self, index: int) -> Source | None:
        """Return where the record of an example stands; None for what was drawn."""
        return None

    def name(self, indices: Iterable[int]) -> str:
        """Return what messages call some examples: the lines of their records, and the numbers of those drawn."""
        sources = {index: self.source(index) for index in sorted(indices)}
        drawn = [str(index + 1) for index, source in sources.items() if source is None]
        records = name_sources(source for source in sources.values() if source is not None)
        draws = f"example{'s' * (len(drawn) > 1)} {', '.join(drawn)} of those drawn" if drawn else ""
        return " and ".join(filter(None, (records, draws)))


class EncodedDraws(EncodedDataset):
    """Examples that are encoded when they are asked for."""

    def __init__(self, examples: Sequence[Example], encoder: Encoder):
        self.examples, self.encoder = examples, encoder
        self.encode = lru_cache(maxsize=20_000)(self._encode)  # the sampler asks for lengths just before the loader

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Encoding:
        return self.encode(index)

    def _encode(self, index: int) -> Encoding:
        example = self.examples[index]
        encoding = encode(self.encoder, example, index)
        if not self.encoder.fits(encoding):
            raise UserError(
                f"An example {self.encoder.too_long(encoding)}: {str(example.prompt)[:60]!r}... Let the task draw "
                "shorter ones, or raise data.max_length if the model can take more."
            )
        return encoding


class LengthGroupedSampler(Sampler[int]):
    """A random order in which neighbours have similar lengths, so that batches carry little padding.

    The order depends on the seed and the epoch alone, which makes a resumed run see what it would have seen. It is
    simply random where nothing is to be `grouped`.
    """

    def __init__(self, dataset: EncodedDataset, batch_size: int, seed: int, grouped: bool = True):
        self.dataset, self.batch_size, self.seed, self.grouped, self.epoch = dataset, batch_size, seed, grouped, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        order = list(range(len(self.dataset)))
        rng.shuffle(order)
        if not self.grouped:
            yield from order
            return
        pool_size = self.batch_size * BATCHES_PER_POOL
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=self.dataset.length)
            batches = [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
            # A last batch that is short stays last: elsewhere it would shift the bounds of all that follow.
            rest = batches.pop() if len(batches[-1]) < self.batch_size else []
            rng.shuffle(batches)
            yield from (index for batch in [*batches, rest] for index in batch)


class StepBatches(Sampler[list[int]]):
    """The micro-batches of optimizer steps, dealt to the processes: one for each in turn, over and over.

    A step is of the same examples however many processes there are. Where the last one has fewer than there are
    processes, some get an empty micro-batch, so that all make the same number of passes.

    Args:
        order: of the examples.
        step: examples of a step.
        batch_size: the most in a micro-batch of a process.
        processes: how many there are.
    """

    def __init__(self, order: LengthGroupedSampler, step: int, batch_size: int, processes: int = 1):
        self.order, self.step, self.batch_size_each, self.processes = order, step, batch_size, processes

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.step)
        return self.processes * (whole * self._rounds(self.step) + self._rounds(rest))

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.order)
        while step := list(islice(indices, self.step)):
            at_once = self.batch_size_each * self.processes
            for start in range(0, len(step), at_once):
                together = step[start : start + at_once]
                # Neighbours are of similar length: dealt in turn, all processes have as much to do.
                yield from (together[number :: self.processes] for number in range(self.processes))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.order.set_epoch(epoch)

    def _rounds(self, examples: int) -> int:
        return -(-examples // (self.batch_size_each * self.processes))

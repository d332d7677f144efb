"""Answers that are compared: two to one prompt, of which one is better, or single ones that are good or bad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from glmtune.config import DataSettings
from glmtune.data import EncodedDataset
from glmtune.data.acceptance import refusal_of, without_faulty
from glmtune.data.collation import Collator
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import Encoding
from glmtune.data.table import encode_records
from glmtune.examples import Example, Source
from glmtune.records import Fault
from glmtune.runtime import UserError

EQUAL = "'chosen' and 'rejected' are the same answer, which teaches no preference. Leave the record out"


@dataclass(frozen=True)
class Comparison:
    """What is learned from at once.

    Attributes:
        answer: an answer to its prompt.
        other: of a pair, the worse answer to that prompt; of single ones, that prompt with the answer to another, by
            which is measured how far the model has gone from where it began.
        is_good: the answer is one to be given; of a pair it is.
    """

    answer: Example
    other: Example
    is_good: bool = True


class ComparedEncoding(Encoding):
    """The encoding of an answer, with the one that it is compared with beside it."""

    other: Encoding
    is_good: bool


def pairs_of(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, settings: DataSettings, name: str
) -> list[Comparison]:
    """Return records with two answers as comparisons.

    Args:
        examples: records.
        tokenizer: with the template, which must take them.
        settings: `on_error`: faulty records stop, or are left out.
        name: what errors call the records.

    Raises:
        UserError: a record has no better or no worse answer, or both are the same; with file and line.
    """
    if examples and not any(example.rejected for example in examples):
        raise UserError(
            f"{name} have no 'rejected' answers. Pairs have 'prompt', 'chosen' and 'rejected'; `glmtune pairs` makes "
            "such a file of a model's own answers. Single answers with a 'label', true or false, are learned by "
            "objective.loss=kto, which needs some of either kind."
        )

    def fault_of(example: Example) -> Fault | None:
        message = None
        if not example.rejected:
            message = "'rejected' is missing: there is no worse answer to compare with"
        elif not example.target and not example.tool_calls:
            message = "a single answer with a 'label', which objective.loss=kto learns from, and no pair"
        elif is_equal(example):
            message = EQUAL
        return refusal_of(tokenizer, good(example)) if message is None else as_fault(example, message)

    kept = without_faulty(examples, [fault_of(example) for example in examples], settings, "that are no pairs")
    return [Comparison(good(example), bad(example)) for example in kept]


def singles_of(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, settings: DataSettings, name: str
) -> list[Comparison]:
    """Return all answers of records by themselves, those of pairs, too, as comparisons.

    Args:
        examples: records with a good answer, a bad one, or both.
        tokenizer, settings, name: as `pairs_of` takes them.

    Raises:
        UserError: all answers are good, or all bad, or a record is faulty; with file and line.
    """
    equal = [as_fault(example, EQUAL) if is_equal(example) else None for example in examples]
    examples = without_faulty(examples, equal, settings, "that are no pairs")
    rows = [good(example) for example in examples if has_good(example)]
    count = len(rows)
    rows += [bad(example) for example in examples if example.rejected]
    if examples and not 0 < count < len(rows):
        kind = "good" if count else "bad"
        raise UserError(
            f"{name} are all {kind} answers. objective.loss=kto learns from good ones and bad ones: records with "
            "'prompt', 'completion' and a 'label' that is true or false, or pairs with 'chosen' and 'rejected'."
        )
    is_good = {id(row): place < count for place, row in enumerate(rows)}
    kept = without_faulty(
        rows, [refusal_of(tokenizer, row) for row in rows], settings, "that the chat template does not take"
    )
    return [
        Comparison(row, replace(other, prompt=row.prompt, tools=row.tools, source=row.source), is_good[id(row)])
        for row, other in zip(kept, [*kept[1:], *kept[:1]], strict=True)
    ]


def has_good(example: Example) -> bool:
    """Return whether a record has an answer that is to be given."""
    return bool(example.target or example.tool_calls)


def is_equal(example: Example) -> bool:
    """Return whether the two answers of a pair are the same."""
    worse = example.rejected
    return worse is not None and not example.tool_calls and example.target.split() == worse.split()


def of_both_kinds(examples: Sequence[Example], most: int) -> list[Example]:
    """Return up to `most` records, the first ones with a good answer and the first with a bad one alone.

    Half of them are of a kind, where there are so many: files are often sorted by their labels.
    """
    kinds: dict[bool, list[Example]] = {True: [], False: []}
    for example in examples:
        kinds[has_good(example)].append(example)
    few = min(len(kinds[False]), max(most // 2, most - len(kinds[True])))
    return [*kinds[True][: most - few], *kinds[False][:few]]


def good(example: Example) -> Example:
    """Return a record with its better answer alone; of a conversation, the last one."""
    return replace(example, rejected=None, train_on_all_turns=False)


def bad(example: Example) -> Example:
    """Return a record with its worse answer alone."""
    other = {"target": example.rejected or "", "tool_calls": (), "reasoning_content": ""}
    return replace(good(example), **other)  # type: ignore[arg-type]


def as_fault(example: Example, message: str) -> Fault:
    """Return what is wrong with a record as the fault of its line.

    Raises:
        UserError: it comes from no file.
    """
    if example.source is None:
        raise UserError(message)
    return Fault(example.source.file, example.source.line, "rejected", message, example.prompt)


class EncodedComparisons(EncodedDataset):
    """Comparisons as a table; each item is a `ComparedEncoding`.

    With `data.too_long=drop`, those are left out of which an answer is too long.

    Args:
        comparisons: what is compared.
        encoder, settings, name: as `encode_records` takes them.

    Raises:
        UserError: answers are too long, or none is left.
    """

    def __init__(self, comparisons: Sequence[Comparison], encoder: Encoder, settings: DataSettings, name: str):
        self.comparisons, count = comparisons, len(comparisons)
        answers = [comparison.answer for comparison in comparisons]
        self.table = encode_records([*answers, *(one.other for one in comparisons)], encoder, settings, name)
        rows = {int(record): row for row, record in enumerate(r for part in self.table.parts for r in part.records)}
        whole = [number for number in range(count) if number in rows and number + count in rows]
        if not whole:
            raise UserError(f"{name}: none of {count:,} has answers of at most {encoder.max_length} tokens only.")
        self.places = [(number, rows[number], rows[number + count]) for number in whole]
        if left := count - len(whole):
            self.remarks = [
                f"Of {count:,} comparisons, {left:,} are left out, as an answer and its prompt have more than "
                f"{encoder.max_length} tokens."
            ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> ComparedEncoding:
        _, row, other = self.places[index]
        return {**self.table[row], "record": index, "other": self.table[other], "is_good": self.is_good(index)}

    def is_good(self, index: int) -> bool:
        """Return whether the answer is one to be given."""
        return self.comparisons[self.places[index][0]].is_good

    def encodings(self, index: int) -> list[Encoding]:
        """Return both answers."""
        return [self.table[row] for row in self.places[index][1:]]

    def length(self, index: int) -> int:
        """Return how many tokens the longer one has."""
        return max(self.table.length(row) for row in self.places[index][1:])

    def source(self, index: int) -> Source | None:
        """Return where the record stands; None for what was not read from a file."""
        return self.comparisons[self.places[index][0]].answer.source


class ComparingCollator(Collator):
    """Lays N comparisons out as a batch of 2 N rows: first all answers, then what each is compared with."""

    def __call__(self, encodings: list[ComparedEncoding]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """As `Collator` does, with `record` and `is_good`, both (N,)."""
        batch = super().__call__([*encodings, *(encoding["other"] for encoding in encodings)])
        return {
            **batch,
            "record": batch["record"][: len(encodings)],
            "is_good": torch.tensor([encoding["is_good"] for encoding in encodings]),
        }


def batches_of(dataset: EncodedDataset, indices: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield some indices in batches, neighbours of similar length."""
    order = sorted(indices, key=dataset.length)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]

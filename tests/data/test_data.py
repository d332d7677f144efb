from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.data import DrawnExamples, EncodedDraws, LengthGroupedSampler, StepBatches, examples_of
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import encode_example
from glmtune.examples import Example, Split
from glmtune.messages import ToolCall
from glmtune.runtime import UserError
from glmtune.scoring import Score
from glmtune.tasks import Task
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings


def arithmetic(**values: Any) -> Arithmetic:
    return Arithmetic(ArithmeticSettings(name="arithmetic", **values))


class Listed(Task):
    """A task that has records."""

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        return rng.choice(self.records(split))

    def records(self, split: Split) -> list[Example]:
        return [Example(f"{split} {i}", str(i)) for i in range(3)]

    def score(self, example: Example, completion: str, calls: Sequence[ToolCall] = ()) -> Score:
        return Score("wrong")


class Lengths:
    """Stands for an encoded dataset with rows of given lengths."""

    def __init__(self, lengths: list[int]):
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def length(self, index: int) -> int:
        return self.lengths[index]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_drawn_examples_are_reproducible(split: Any) -> None:
    first, again = (DrawnExamples(arithmetic(), 50, 1, split) for _ in range(2))
    backwards = [again[i] for i in reversed(range(50))][::-1]
    assert list(first) == list(again) == backwards == list(first)
    assert len(first) == 50
    assert len({example.target for example in first}) > 45


def test_drawn_examples_depend_on_seed_and_split_alone() -> None:
    task = arithmetic()
    assert list(DrawnExamples(task, 20, 1)) == list(DrawnExamples(task, 50, 1))[:20]
    assert list(DrawnExamples(task, 20, 1)) != list(DrawnExamples(task, 20, 2))
    assert not set(map(repr, DrawnExamples(task, 50, 1))) & set(map(repr, DrawnExamples(task, 50, 1, "held_out")))


def test_judging_does_not_change_what_is_drawn_next() -> None:
    train, held_out = DrawnExamples(arithmetic(), 10, 1), DrawnExamples(arithmetic(), 10, 1, "held_out")
    alone = list(train)
    random.seed(0)
    assert [(train[i], held_out[i])[0] for i in range(10)] == alone


def test_drawn_examples_are_a_sequence() -> None:
    drawn = DrawnExamples(arithmetic(), 10, 1)
    assert drawn[2:5] == [drawn[2], drawn[3], drawn[4]] and drawn[-2:] == [drawn[8], drawn[9]]
    assert drawn[20:] == [] and drawn[::-1] == list(reversed(drawn))
    assert drawn[-1] == drawn[9] and drawn[3] in drawn
    for index in (10, -11):
        with pytest.raises(IndexError):
            drawn[index]


def test_drawn_examples_are_the_same_on_every_machine() -> None:
    prompts = [example.prompt for example in DrawnExamples(arithmetic(), 4, 42)]
    assert prompts == ["38.49/72.99=", "75.15/32.5=", "13+80.22=", "87+55="]


def test_examples_of_a_task() -> None:
    drawn = examples_of(arithmetic(), "held_out", 5, 3)
    assert list(drawn) == list(DrawnExamples(arithmetic(), 5, 3, "held_out"))
    listed = examples_of(Listed(arithmetic().settings), "held_out", 1, 3)
    assert [example.target for example in listed] == ["0", "1", "2"]  # all that there are


def test_encoded_dataset(chatglm: Any) -> None:
    examples = DrawnExamples(arithmetic(), 6, 1)
    dataset = EncodedDraws(examples, Encoder(chatglm))
    assert len(dataset) == 6
    for i, example in enumerate(examples):
        assert dataset[i] == encode_example(chatglm, example.prompt, example.target, record=i)
    assert dataset[2] is dataset[2]  # encoded once
    with pytest.raises(UserError, match=r"data\.max_length"):
        EncodedDraws(examples, Encoder(chatglm, 8))[0]


def order(lengths: list[int], batch_size: int = 4, seed: int = 1, epoch: int = 0) -> list[int]:
    sampler = LengthGroupedSampler(Lengths(lengths), batch_size, seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(lengths)
    first = list(sampler)
    assert list(sampler) == first
    return first


@pytest.mark.parametrize("size", [0, 1, 4, 7, 200, 203, 1001])
def test_the_order_is_a_permutation(size: int) -> None:
    lengths = random.Random(0).choices(range(1, 60), k=size)
    assert sorted(order(lengths)) == list(range(size))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = random.Random(0).choices(range(1, 60), k=500)
    assert order(lengths) == order(lengths)
    assert order(lengths, epoch=3) == order(lengths, epoch=3)
    assert len({tuple(order(lengths, seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def padding(indices: list[int], lengths: list[int], batch_size: int) -> int:
    """Padding tokens of all batches."""
    batches = [[lengths[i] for i in indices[j : j + batch_size]] for j in range(0, len(indices), batch_size)]
    return sum(max(batch) * len(batch) - sum(batch) for batch in batches)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [2000, 2001, 250])
def test_batches_carry_little_padding(size: int, seed: int) -> None:
    lengths = random.Random(0).choices(range(5, 60), k=size)
    at_random = random.Random(1).sample(range(size), size)
    assert padding(order(lengths, 8, seed), lengths, 8) < 0.1 * padding(at_random, lengths, 8)


def test_batches_come_in_random_order() -> None:
    """Neither the shortest first nor the longest, and not the same in each epoch."""
    lengths = [5 + i // 8 for i in range(800)]
    firsts = [[lengths[i] for i in order(lengths, 8, epoch=epoch)[:400:8]] for epoch in (0, 1)]
    for batches in firsts:  # those of the first pool
        rises = sum(one <= two for one, two in pairwise(batches))
        assert 15 < rises < 35
    assert firsts[0] != firsts[1]


def test_other_rows_meet_in_each_epoch() -> None:
    """Where there are more rows of a length than a batch takes."""
    lengths = [5] * 64
    met = [{frozenset(order(lengths, 8, epoch=e)[j : j + 8]) for j in range(0, 64, 8)} for e in (0, 1)]
    assert not met[0] & met[1]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 5),
    count=st.integers(1, 5),
    epoch=st.integers(0, 2),
)
def test_steps_are_of_the_same_examples(
    lengths: list[int], batch_size: int, accumulation: int, count: int, epoch: int
) -> None:
    step = batch_size * accumulation

    def batches(processes: int) -> list[list[int]]:
        order: Any = LengthGroupedSampler(Lengths(lengths), step, seed=3)  # type: ignore[arg-type]
        made = StepBatches(order, step, batch_size, processes)
        made.set_epoch(epoch)
        listed = list(made)
        assert len(made) == len(listed)
        return listed

    alone, dealt = batches(1), batches(count)
    assert all(0 < len(one) <= batch_size for one in alone) and all(len(one) <= batch_size for one in dealt)
    assert len(dealt) % count == 0
    rounds = math.ceil(accumulation / count) * count  # micro-batches of a step, of all processes

    def steps(batches: list[list[int]], size: int) -> list[list[int]]:
        return [sorted(chain(*batches[start : start + size])) for start in range(0, len(batches), size)]

    assert steps(dealt, rounds) == steps(alone, accumulation)

"""Your own records, in whatever format they are: Alpaca, ShareGPT, messages, GSM8K, ...; JSON, JSONL, CSV, Parquet."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

from pydantic import Field, field_validator

from glmtune.arithmetic.characters import normalize_problem
from glmtune.arithmetic.problems import Problem
from glmtune.config import DataSettings, NamedSettings, findable
from glmtune.examples import Example, Split, split_of
from glmtune.messages import Prompt
from glmtune.records import Record, read_all
from glmtune.records.cleaning import duplicates, near_duplicates, normal_text, plain_text
from glmtune.records.formats import prompt_of
from glmtune.runtime import UserError
from glmtune.scoring import METRICS, MetricName, Score, describe_metrics
from glmtune.tasks import Task

# What may stand around an expression that is a problem by itself.
_AROUND = re.compile(
    r"计算题?|口算|算一?算|列式|简便运算|初等数学|数学题?|请问?|等于|得数?|多少|是|结果|答案|几|求|题|下面?|的|一下"
    r"|\b(?:what|is|whats|calculate|compute|solve|evaluate|equals?|the|result|value|of|find|please|how|much)\b"
    r"|[\s=?:：？，,。.!！'’]",
    re.IGNORECASE,
)


class InstructionsSettings(NamedSettings):
    """Where the records are."""

    file: str = Field(
        description="JSONL, JSON, CSV, TSV or Parquet file, a folder of them, or OWNER/NAME@CONFIG:SPLIT of the hub; "
        "the format is told by the fields: prompt and target, instruction, input and output, messages, ..."
    )
    held_out_file: str | None = Field(None, description="records to judge by; default: a share of `file`")
    metric: MetricName = Field("auto", description=f"how answers are compared with targets; {describe_metrics()}")
    held_out: float = Field(0.05, gt=0, lt=1, description="share of `file` kept out of training, chosen by hash")

    @field_validator("file", "held_out_file")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        """The recipe of a run names the file so that it is found from any folder."""
        return findable(value) if value else value


class Instructions(Task):
    """Records from a file. Which of them are held out depends on their prompts alone, so adding records moves none."""

    Settings = InstructionsSettings
    settings: InstructionsSettings

    @cached_property
    def splits(self) -> dict[Split, list[Example]]:
        """All records by split.

        Raises:
            UserError: an unreadable file, a record without the fields, or a split without records.
        """
        examples = read_examples(self.settings.file, self.data)
        splits: dict[Split, list[Example]]
        if self.settings.held_out_file:
            splits = {"train": [], "held_out": read_examples(self.settings.held_out_file, self.data)}
            splits["train"] = without(examples, judge_of(splits["held_out"]))
            if examples and not splits["train"]:
                raise UserError(
                    f"task.held_out_file: {self.settings.held_out_file} asks all that {self.settings.file} has; "
                    "nothing is left to learn. Leave it out, and a share of the file is held out."
                )
        else:
            splits = {"train": [], "held_out": []}
            for example in examples:
                splits[self.split(example.prompt)].append(example)
            if not all(isinstance(example.prompt, str) for example in examples):  # bare ones have one form, one split
                splits["train"] = without(splits["train"], judge_of(splits["held_out"]))
        for split, found in splits.items():
            if not found:
                raise UserError(
                    f"task.file: {self.settings.file} leaves no record for the {split} split ({len(examples)} in all). "
                    "Add records, try task.held_out=0.3, or name a task.held_out_file."
                )
        return splits

    def split(self, prompt: Prompt) -> Split:
        """The split of a prompt, where a share of the file is held out."""
        return split_of(problem_of(prompt), self.settings.held_out)

    @cached_property
    def is_judged(self) -> Callable[[Prompt], bool]:
        """Tells the problems that are held out."""
        return judge_of(self.splits["held_out"])

    def holds_out(self, prompt: Prompt) -> bool:
        """Whether it is one of the held-out problems."""
        return self.is_judged(prompt)

    def records(self, split: Split) -> Sequence[Example]:
        """The records of a split, in the file's order."""
        return self.splits[split]

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """One record of the split."""
        return rng.choice(self.splits[split])

    def score(self, example: Example, completion: str) -> Score:
        """By `task.metric`; of texts: `equal` but for runs of blanks, and `unparseable` if there is none."""
        return METRICS[self.settings.metric](example.target, completion)


def read_examples(file: str, data: DataSettings | None = None) -> list[Example]:
    """Records of a file as examples; a group of `facts` in a record is kept, other fields are not.

    Args:
        file: path, or name of the hub.
        data: how it is read: `columns`, `encoding`, `turns`, `on_error`, `deduplicate`.

    Raises:
        UserError: with file and line number.
    """
    own = data or DataSettings()
    records = read_all(file, own.columns, own.encoding, "each" if own.turns == "each" else "last", own.on_error)
    again = {place for place, _ in repeated(records, own.deduplicate)}
    return [example_from(record, own.turns == "all") for place, record in enumerate(records) if place not in again]


def without(examples: Sequence[Example], is_judged: Callable[[Prompt], bool]) -> list[Example]:
    """What may be learned of some examples: nothing that the model is judged by. Says what is left out.

    Of a conversation whose earlier questions are among that, only the last answer is learned.
    """

    def asks_that(prompt: Prompt) -> bool:
        return any(map(is_judged, forms_of(prompt)))

    kept = []
    for example in examples:
        if asks_that(example.prompt):
            continue
        earlier = earlier_questions(example.prompt) if example.train_on_all_turns else []
        kept.append(replace(example, train_on_all_turns=False) if any(map(asks_that, earlier)) else example)
    if len(kept) < len(examples):
        warnings.warn(
            f"{len(examples) - len(kept)} of {len(examples)} records are left out of training: the model is judged by "
            "the same problems.",
            stacklevel=2,
        )
    return kept


def forms_of(prompt: Prompt) -> list[Prompt]:
    """A prompt as it is, and a single question without what a system message says before it."""
    asked = [] if isinstance(prompt, str) else [turn["content"] for turn in prompt if turn["role"] == "user"]
    return [prompt, *(asked if len(asked) == 1 else [])]


def judge_of(held_out: Sequence[Example]) -> Callable[[Prompt], bool]:
    """Tells whether a prompt asks what one of these examples asks."""
    judged = {problem_of(form) for example in held_out for form in forms_of(example.prompt)}
    return lambda prompt: problem_of(prompt) in judged


def earlier_questions(prompt: Prompt) -> list[Prompt]:
    """What was asked before each answer in a conversation."""
    turns = [] if isinstance(prompt, str) else prompt
    return [prompt_of(turns[:place]) for place, turn in enumerate(turns) if turn["role"] == "assistant"]


def repeated(records: Sequence[Record], deduplicate: Literal["none", "exact", "near"]) -> list[tuple[int, int]]:
    """(place, an earlier place) of records that say the same, or nearly so."""
    if deduplicate == "none":
        return []
    if deduplicate == "exact":
        return duplicates((normal_text(record.prompt), normal_text(record.target)) for record in records)
    return near_duplicates([f"{plain_text(record.prompt)}\n{record.target}" for record in records])


def problem_of(prompt: Prompt) -> str:
    """What a prompt asks, in a form that is equal for two ways to write it; which split it falls into depends on this.

    A prompt that is an arithmetic expression, and no more than a few words around it, is told by its normal form.
    """
    asked = plain_text(prompt)
    if len(asked) < 200:
        text = normalize_problem(asked)
        problem = Problem.parse(text)
        if problem is not None:
            found = re.search(r"[\s,]*".join(map(re.escape, problem.text)), text)
            around = (text[: found.start()], text[found.end() :]) if found else (text,)
            if not any(_AROUND.sub("", part) for part in around):
                return f"{problem.normal_form}="  # as most write it: such prompts are split as they always were
    return normal_text(prompt)


def example_from(record: Record, train_on_all_turns: bool = False) -> Example:
    """A record as an example; conversations are prompts of several messages."""
    several = train_on_all_turns and bool(earlier_questions(record.prompt))
    return Example(record.prompt, record.target, record.facts, several)

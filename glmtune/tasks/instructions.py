"""Your own records, in whatever format they are: Alpaca, ShareGPT, messages, GSM8K, ...; JSON, JSONL, CSV, Parquet."""

from __future__ import annotations

import codecs
import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from glmtune.answers import equation, exact, numeric
from glmtune.config import NamedSettings
from glmtune.records import OnError, Prompt, Record, Turns, read_all
from glmtune.records.cleaning import duplicates, near_duplicates, normal_text, plain_text
from glmtune.records.formats import OUR_NAMES, records_of
from glmtune.registry import suggest
from glmtune.runtime import UserError
from glmtune.tasks import Example, Score, Split, Task, split_of
from glmtune.tasks.arithmetic import Problem, plain

Deduplicate = Literal["none", "exact", "near"]

# What may stand around an expression that is a problem by itself.
_AROUND = re.compile(
    r"计算题?|口算|算一?算|列式|简便运算|初等数学|数学题?|请问?|等于|得数?|多少|是|结果|答案|几|求|题|下面?|的|一下"
    r"|\b(?:what|is|whats|calculate|compute|solve|evaluate|equals?|the|result|value|of|find|please|how|much)\b"
    r"|[\s=?:：？，,。.!！'’]",
    re.IGNORECASE,
)


JUDGES = {"exact": exact, "numeric": numeric, "equation": equation}


class InstructionsSettings(NamedSettings):
    """Where the records are."""

    file: str = Field(
        description="JSONL, JSON, CSV, TSV or Parquet file, a folder of them, or OWNER/NAME@CONFIG:SPLIT of the hub; "
        "the format is told by the fields: prompt and target, instruction, input and output, messages, ..."
    )
    held_out_file: str | None = Field(None, description="records to judge by; default: a share of `file`")
    metric: Literal["exact", "numeric", "equation"] = Field(
        "exact",
        description="an answer is right if it is the same text, ends with the same number, or is an equation x=... of "
        "the same value",
    )
    held_out: float = Field(0.05, gt=0, lt=1, description="share of `file` kept out of training, chosen by hash")
    columns: dict[str, str] | None = Field(
        None, description="what prompt, target, history and system are called in the file; default: a known format"
    )
    on_error: OnError = Field(
        "stop", description="at faulty records: stop and tell all of them, or skip them into FILE.skipped.jsonl"
    )
    deduplicate: Deduplicate = Field(
        "none",
        description="leave out records that were there before: exact (but for blanks and case), or near (ROUGE-L of "
        "prompt and target at least 0.7; more than 1000 records need datasketch)",
    )
    turns: Turns = Field(
        "last", description="of a conversation, learn the last answer, or each, as an example of its own"
    )
    encoding: str = Field("utf-8", description="of text files, e.g. gb18030 for GBK")

    @field_validator("file", "held_out_file")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        """The recipe of a run names the file so that it is found from any folder."""
        return str(Path(value).resolve()) if value and Path(value).exists() else value

    @field_validator("columns")
    @classmethod
    def _ours(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for name in value or {}:
            if name not in OUR_NAMES:
                raise ValueError(f"no such name: '{name}'.{suggest(name, list(OUR_NAMES))} Write it as OURS: YOURS")
        return value

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError("no such encoding; try utf-8, gb18030, big5 or utf-16") from None


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
        examples = self.read(self.settings.file)
        if self.settings.held_out_file:
            splits: dict[Split, list[Example]] = {"train": examples, "held_out": self.read(self.settings.held_out_file)}
        else:
            splits = {"train": [], "held_out": []}
            for example in examples:
                splits[split_of(problem_of(example.prompt), self.settings.held_out)].append(example)
        for split, found in splits.items():
            if not found:
                raise UserError(
                    f"task.file: {self.settings.file} leaves no record for the {split} split ({len(examples)} in all). "
                    "Add records, try task.held_out=0.3, or name a task.held_out_file."
                )
        return splits

    def read(self, file: str) -> list[Example]:
        """The records of a file, as the settings say."""
        own = self.settings
        return read_examples(file, own.columns, own.encoding, own.turns, own.on_error, own.deduplicate)

    def records(self, split: Split) -> Sequence[Example]:
        """The records of a split, in the file's order."""
        return self.splits[split]

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """One record of the split."""
        return rng.choice(self.splits[split])

    def score(self, example: Example, completion: str) -> Score:
        """By `task.metric`; of texts: `equal` but for runs of blanks, and `unparseable` if there is none."""
        return Score(*JUDGES[self.settings.metric](example.target, completion))


def read_examples(
    file: str,
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
    turns: Turns = "last",
    on_error: OnError = "stop",
    deduplicate: Deduplicate = "none",
) -> list[Example]:
    """Records of a file as examples; a group of `facts` in a record is kept, other fields are not.

    Args:
        file, columns, encoding, turns, on_error: as `glmtune.records.read_all` takes them.
        deduplicate: leave out records that were there before.

    Raises:
        UserError: with file and line number.
    """
    records = read_all(file, columns, encoding, turns, on_error)
    again = {place for place, _ in repeated(records, deduplicate)}
    return [example_from(record) for place, record in enumerate(records) if place not in again]


def repeated(records: Sequence[Record], deduplicate: Deduplicate) -> list[tuple[int, int]]:
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
    if isinstance(prompt, str) and len(prompt) < 200:
        text = plain(prompt)
        problem = Problem.parse(text)
        if problem is not None:
            found = re.search(r"[\s,]*".join(map(re.escape, problem.text)), text)
            around = (text[: found.start()], text[found.end() :]) if found else (text,)
            if not any(_AROUND.sub("", part) for part in around):
                return f"{problem.normal_form}="  # as most write it: such prompts are split as they always were
    return normal_text(prompt)


def example_from(record: Record) -> Example:
    """A record as an example; conversations are prompts of several messages."""
    return Example(record.prompt, record.target, record.facts)


def example_of(record: dict[str, Any]) -> Example:
    """One record as an example.

    Raises:
        ValueError: fields are missing or not texts.
    """
    return example_from(records_of(record)[0])

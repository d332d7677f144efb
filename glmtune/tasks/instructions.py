"""Your own records, in whatever format they are: Alpaca, ShareGPT, messages, GSM8K, ...; JSON, JSONL, CSV, Parquet."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property

from pydantic import Field, field_validator

from glmtune.config import NamedSettings, findable
from glmtune.examples import Example, Split, split_of
from glmtune.messages import Prompt, ToolCall
from glmtune.records import read_examples
from glmtune.records.files import assign_splits
from glmtune.records.leaks import judge_of, problem_of, without_leaks
from glmtune.records.shares import explain_empty, explain_uneven
from glmtune.runtime import UserError
from glmtune.scoring import METRICS, MetricName, Score, describe_metrics
from glmtune.tasks import Task

LEAVE_OUT = "Leave it out, and a share of the file is held out."


class InstructionsSettings(NamedSettings):
    """Where the records are."""

    file: str = Field(
        description="JSONL, JSON, CSV, TSV, Parquet, Arrow or TXT file, a folder of them, FOLDER@CONFIG:SPLIT for a "
        "part of it, or OWNER/NAME@CONFIG:SPLIT of the hub; the format is told by the fields: prompt and target, "
        "instruction, input and output, messages, ..."
    )
    held_out_file: str | None = Field(
        None, description="records to judge by; default: the validation or test split of a folder, else a share of it"
    )
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
        file, held_out_file = assign_splits(self.settings.file, self.settings.held_out_file)
        examples = read_examples(file, self.data)
        splits: dict[Split, list[Example]]
        if held_out_file:
            splits = {"train": [], "held_out": read_examples(held_out_file, self.data)}
            splits["train"] = without_leaks(examples, judge_of(splits["held_out"]))
            if examples and not splits["train"]:
                parts = len({problem_of(example.question) for example in examples}) > 1
                raise UserError(
                    f"task.held_out_file: {held_out_file} asks all that {file} has; nothing is left to learn. "
                    f"{LEAVE_OUT if parts else 'Name records that ask something else.'}"
                )
        else:
            splits = {"train": [], "held_out": []}
            for example in examples:
                splits[self.split(example.question)].append(example)
            if not all(isinstance(example.question, str) for example in examples):  # bare ones have one form, one split
                splits["train"] = without_leaks(splits["train"], judge_of(splits["held_out"]))
        problems = [problem_of(example.question) for example in examples]
        counts = {name: len(found) for name, found in splits.items()}
        if (said := explain_empty(problems, counts, self.settings.held_out)) is not None:
            raise UserError(f"task.file: {self.settings.file}: {said}")
        uneven = explain_uneven(problems, counts, self.settings.held_out)
        if uneven is not None and not held_out_file:
            warnings.warn(uneven, stacklevel=2)
        return splits

    def split(self, prompt: Prompt) -> Split:
        """Return the split of a prompt, where a share of the file is held out."""
        return split_of(problem_of(prompt), self.settings.held_out)

    @cached_property
    def is_judged(self) -> Callable[[Prompt], bool]:
        """Tells the problems that are held out."""
        return judge_of(self.splits["held_out"])

    def holds_out(self, prompt: Prompt) -> bool:
        """Whether it is one of the held-out problems."""
        return self.is_judged(prompt)

    def records(self, split: Split) -> Sequence[Example]:
        """Return the records of a split, in the file's order."""
        return self.splits[split]

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """Return one record of the split."""
        return rng.choice(self.splits[split])

    def score(self, example: Example, completion: str, calls: Sequence[ToolCall] = ()) -> Score:
        """Compare by `task.metric`, or the calls with those of the record.

        Of texts: `equal` but for runs of blanks, and `unparseable` if there is none.
        """
        if example.tool_calls:
            wanted, given = ([call["function"] for call in some] for some in (example.tool_calls, calls))
            return Score("exact" if given == wanted else "wrong", json.dumps(given, ensure_ascii=False))
        return METRICS[self.settings.metric](example.target, completion)

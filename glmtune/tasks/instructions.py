"""Your own records: a JSONL file with `prompt` and `target`, or Alpaca's `instruction`, `input` and `output`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from glmtune.config import NamedSettings
from glmtune.runtime import UserError, read_json_lines
from glmtune.tasks import Example, Score, Split, Task, split_of


class InstructionsSettings(NamedSettings):
    """Where the records are."""

    file: str = Field(description="JSONL file, one record a line: prompt and target, or instruction, input and output")
    held_out_file: str | None = Field(None, description="records to judge by; default: a share of `file`")
    held_out: float = Field(0.05, gt=0, lt=1, description="share of `file` kept out of training, chosen by hash")

    @field_validator("file", "held_out_file")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        """The recipe of a run names the file so that it is found from any folder."""
        return str(Path(value).resolve()) if value and Path(value).exists() else value


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
        examples = read_examples(self.settings.file)
        if self.settings.held_out_file:
            splits: dict[Split, list[Example]] = {
                "train": examples,
                "held_out": read_examples(self.settings.held_out_file),
            }
        else:
            splits = {"train": [], "held_out": []}
            for example in examples:
                splits[split_of(example.prompt, self.settings.held_out)].append(example)
        for split, found in splits.items():
            if not found:
                raise UserError(
                    f"task.file: {self.settings.file} leaves no record for the {split} split ({len(examples)} in all). "
                    "Add records, try task.held_out=0.3, or name a task.held_out_file."
                )
        return splits

    def records(self, split: Split) -> Sequence[Example]:
        """The records of a split, in the file's order."""
        return self.splits[split]

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """One record of the split."""
        return rng.choice(self.splits[split])

    def score(self, example: Example, completion: str) -> Score:
        """`exact`: the same text; `equal`: the same but for runs of blanks; else `wrong`, or `unparseable` if empty."""
        answer = completion.strip()
        if answer == example.target.strip():
            return Score("exact", answer)
        same = answer.split() == example.target.split()
        return Score("equal" if same else "wrong" if answer else "unparseable", answer)


def read_examples(file: str) -> list[Example]:
    """Records of a JSONL file as examples; a group of `facts` in a record is kept, other fields are not.

    Raises:
        UserError: with file and line number.
    """
    examples = []
    for number, record in read_json_lines(file):
        try:
            examples.append(example_of(record))
        except ValueError as error:
            raise UserError(f"{file}, line {number}: {error}") from None
    if not examples:
        raise UserError(f"{file}: no records")
    return examples


def example_of(record: dict[str, Any]) -> Example:
    """One record as an example.

    Raises:
        ValueError: fields are missing or not texts.
    """
    asked, answered = ("instruction", "output") if "instruction" in record else ("prompt", "target")
    for key in (asked, answered):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise ValueError(
                f"'{key}' is missing, empty or not a text; the record has {', '.join(record) or 'nothing'}"
            )
    prompt, facts = record[asked], record.get("facts", {})
    if asked == "instruction" and record.get("input"):
        prompt += f"\n{record['input']}"
    return Example(prompt, record[answered], facts if isinstance(facts, dict) else {})

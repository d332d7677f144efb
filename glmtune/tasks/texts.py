"""Plain texts, to go on learning a language or a field from: records with a `text`, or text files."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from pydantic import Field, field_validator

from glmtune.config import NamedSettings, findable
from glmtune.examples import Example, Source, Split, split_of
from glmtune.records.faults import Fault, explain
from glmtune.records.fields import FieldError, text_of
from glmtune.records.files import rows
from glmtune.runtime import UserError
from glmtune.scoring import Score
from glmtune.tasks import Task

DOCUMENTS = (".txt", ".md")  # a text each


class TextsSettings(NamedSettings):
    """Where the texts are."""

    file: str = Field(
        description="JSONL, JSON, CSV or Parquet file whose records have a text, OWNER/NAME of the hub, a .txt or .md "
        "file, which is one text, or a folder of such files"
    )
    field: str = Field("text", description="what the text is called in records")
    held_out: float = Field(0.05, gt=0, lt=1, description="share of the texts kept out of training, chosen by hash")

    @field_validator("file")
    @classmethod
    def _from_anywhere(cls, value: str) -> str:
        return findable(value)


class Texts(Task):
    """Texts from files. Which of them are held out depends on the text alone."""

    Settings = TextsSettings
    settings: TextsSettings

    @cached_property
    def splits(self) -> dict[Split, list[Example]]:
        """All texts by split.

        Raises:
            UserError: an unreadable file, a record without a text, or a split without texts.
        """
        splits: dict[Split, list[Example]] = {"train": [], "held_out": []}
        for example in read_texts(self.settings.file, self.settings.field, self.data.encoding):
            splits[split_of(str(example.text), self.settings.held_out)].append(example)
        for split, examples in splits.items():
            if not examples:
                raise UserError(
                    f"task.file: {self.settings.file} leaves no text for the {split} split "
                    f"({sum(map(len, splits.values()))} in all). Add texts, or try task.held_out=0.3."
                )
        return splits

    def records(self, split: Split) -> Sequence[Example]:
        """Return the texts of a split, in the file's order."""
        return self.splits[split]

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """Return one text of the split."""
        return rng.choice(self.splits[split])

    def score(self, example: Example, completion: str) -> Score:
        """Refuse: texts ask nothing.

        Raises:
            UserError: always.
        """
        raise UserError(
            "task.name=texts asks nothing that an answer could be compared with. Learn from it with "
            "objective.name=pretrain; to ask the model something, name a file with --data."
        )


def read_texts(file: str, field: str, encoding: str) -> list[Example]:
    """Return an example for each text of a file or folder.

    Raises:
        UserError: faults of all records, told together.
    """
    path = Path(file)
    documents = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    documents = [document for document in documents if document.suffix.lower() in DOCUMENTS]
    entries = list(read_documents(documents, encoding) if documents else read_records(file, field, encoding))
    faults = [entry for entry in entries if isinstance(entry, Fault)]
    if faults:
        raise UserError(explain(faults))
    return [entry for entry in entries if isinstance(entry, Example)]


def read_documents(documents: Sequence[Path], encoding: str) -> Iterator[Example | Fault]:
    """Yield each file as one text."""
    for document in documents:
        try:
            text = document.read_text(encoding=encoding).strip()
        except (OSError, UnicodeDecodeError) as error:
            yield Fault(str(document), None, None, f"cannot be read as {encoding}: {error}", ends_file=True)
            continue
        if text:
            yield Example("", "", text=text, source=Source(str(document), 1))


def read_records(file: str, field: str, encoding: str) -> Iterator[Example | Fault]:
    """Yield the text of each record."""
    for entry in rows(file, encoding):
        if isinstance(entry, Fault):
            yield entry
            continue
        try:
            yield Example("", "", text=text_of(entry.row, field), source=Source(entry.file, entry.line))
        except FieldError as error:
            yield Fault(entry.file, entry.line, error.field, str(error), entry.row)

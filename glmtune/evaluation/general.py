"""General questions, by which it is told whether a model has forgotten what it knew."""

from __future__ import annotations

from pathlib import Path

from glmtune.config import DataSettings
from glmtune.examples import Example
from glmtune.records import read_examples
from glmtune.runtime import read_json_lines

GENERAL = Path(__file__).with_name("general.jsonl")  # written for this project: half English, half Chinese


def read_general(file: str | None = None) -> list[Example]:
    """Return the general questions: the user's own file, or the built-in ones.

    Raises:
        UserError: no such file, or a faulty record, with file and line number.
    """
    if file is not None:
        return read_examples(file, DataSettings(turns="last"))
    return [
        Example(record["prompt"], record["target"], {"group": record["group"], "language": record["language"]})
        for _, record in read_json_lines(GENERAL)
    ]

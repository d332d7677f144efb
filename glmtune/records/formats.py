"""The table of formats that records come in, recognised by their fields: a new format is one row of `FORMATS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from glmtune.config import FIELDS
from glmtune.examples import Example, Source
from glmtune.records.conversations import tools_of, with_history
from glmtune.records.fields import FieldError, Row, answer_in_field, kind_of, list_of, names_of, text_of
from glmtune.records.readers import (
    Reader,
    alpaca,
    ape210k,
    belle_eval,
    belle_seed,
    completion,
    conversation,
    gsm8k,
    images_of,
    label_of,
    labelled,
    math23k,
    pair,
    plain_text,
    preference,
    prompt_target,
)

LOOKED_AT = 50  # rows by which a file's format is told


@dataclass(frozen=True)
class Format:
    """How a row becomes examples.

    Attributes:
        name: of the format.
        needs: fields without which a row is not of this format.
        read: the examples of a row; raises `FieldError`.
        fits: whether the values look like it, where the fields alone do not tell.
        sign: a field that marks the format even where others are missing.
    """

    name: str
    needs: tuple[str, ...]
    read: Reader
    fits: Callable[[Row], bool] = lambda row: True
    sign: str = ""

    def claims(self, row: Row) -> bool:
        """Return whether a row has all fields that the format needs."""
        return all(name in row for name in self.needs)


def _says(name: str, pattern: str) -> Callable[[Row], bool]:
    """Whether a text field matches."""
    return lambda row: isinstance(row[name], str) and re.search(pattern, row[name], re.IGNORECASE) is not None


def lmflow(row: Row) -> list[Example]:
    """Read a whole data set of LMFlow: its instances are records of the format that their fields tell."""
    instances = list_of(row, "instances")
    if not instances:
        raise FieldError("instances", "'instances' is missing or has no entries")
    own, examples = recognise(instance for instance in instances[:LOOKED_AT] if isinstance(instance, dict)), []
    for number, instance in enumerate(instances, start=1):
        if not isinstance(instance, dict):
            raise FieldError("instances", f"'instances', entry {number}: {kind_of(instance)}, not an object")
        try:
            examples += examples_of(instance, own)
        except FieldError as error:
            raise FieldError(error.field, f"'instances', entry {number}: {error}") from None
    return examples


def _is_label(name: str) -> Callable[[Row], bool]:
    """Whether a field says of an answer that it is good or bad."""
    return lambda row: label_of(row[name]) is not None


# What is told by more fields stands before what is told by fewer.
FORMATS = [
    Format("preference", ("prompt", "chosen", "rejected"), preference(prompt_target, "target")),
    Format("alpaca_preference", ("instruction", "chosen", "rejected"), preference(alpaca, "output")),
    Format("sharegpt_preference", ("conversations", "chosen", "rejected"), preference(conversation("conversations"))),
    Format("question_preference", ("question", "chosen", "rejected"), preference(pair("question", "target"), "target")),
    Format("implicit_preference", ("chosen", "rejected"), preference(prompt_target, "target"), sign="rejected"),
    Format("labelled", ("prompt", "completion", "label"), labelled(completion, "label"), _is_label("label")),
    Format("labelled_messages", ("messages", "label"), labelled(conversation("messages"), "label"), _is_label("label")),
    Format(
        "labelled_sharegpt",
        ("conversations", "kto_tag"),
        labelled(conversation("conversations"), "kto_tag"),
        _is_label("kto_tag"),
    ),
    Format("messages", ("messages",), conversation("messages"), sign="messages"),
    Format("sharegpt", ("conversations",), conversation("conversations", odd=True), sign="conversations"),
    Format("lmflow", ("type", "instances"), lmflow),
    Format("belle_seed", ("instruction", "instances"), belle_seed, sign="instances"),
    Format("alpaca", ("instruction", "output"), alpaca, sign="instruction"),
    Format("math23k", ("original_text", "equation"), math23k, sign="original_text"),
    Format("prompt_target", ("prompt", "target"), prompt_target),
    Format("chatglm_history", ("prompt", "response", "history"), pair("prompt", "response")),
    Format("prompt_response", ("prompt", "response"), pair("prompt", "response")),
    Format("prompt_completion", ("prompt", "completion"), pair("prompt", "completion")),
    Format("adgen", ("content", "summary"), pair("content", "summary"), sign="summary"),
    Format("gsm8k", ("question", "answer"), gsm8k, _says("answer", "####")),
    Format("ape210k", ("question", "answer"), ape210k, _says("answer", r"^\s*x\s*=")),
    Format("question_answer", ("question", "answer"), pair("question", "answer")),
    Format("belle_eval", ("question", "std_answer"), belle_eval, sign="std_answer"),
    Format("query_response", ("query", "response"), pair("query", "response"), sign="query"),
    Format("context_target", ("context", "target"), pair("context", "target"), sign="context"),
    Format("input_output", ("input", "output"), pair("input", "output")),
    Format("text", ("text",), plain_text),
]
# Fields that readers look at where a row has them.
OPTIONAL = (
    "system",
    "history",
    "tools",
    "functions",
    "tool_calls",
    "facts",
    "images",
    "image",
    "input",
    "class",
    "ans",
)
_OWN = next(known for known in FORMATS if known.name == "prompt_target")


# Which format a row is of


def fields_read(columns: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return all fields that anything is read from; other columns of a table need not be.

    Args:
        columns: as `mapped_format` takes them.
    """
    return frozenset([*OPTIONAL, *(columns or {}).values(), *(name for known in FORMATS for name in known.needs)])


def mapped_format(columns: Mapping[str, str]) -> Format:
    """Return a format by the names that the user gives: ours to the file's.

    Args:
        columns: of `prompt`, `target`, `history` and `system`; those that are not named are called so in the file, too.
    """
    names = {name: columns.get(name, name) for name in FIELDS}

    def read(row: Row) -> list[Example]:
        for name, column in columns.items():
            if column not in row:
                close = get_close_matches(column, [str(key) for key in row], n=1, cutoff=0.4)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                has = f"the record has {names_of(row)}"
                raise FieldError(column, f"data.columns.{name}: no field '{column}'; {has}.{hint}")
        prompt, target = text_of(row, names["prompt"]), answer_in_field(row, names["target"])
        return [with_history(row, prompt, target, names["history"], names["system"])]

    return Format("columns", (), read)


def matching_format(row: Row) -> Format | None:
    """Return the first format that a row has all fields of, and the looks."""
    return next((known for known in FORMATS if known.claims(row) and known.fits(row)), None)


def recognise(rows: Iterable[Row]) -> Format | None:
    """Return the format that most of some rows have."""
    found = [known for known in map(matching_format, rows) if known is not None]
    return max(FORMATS, key=found.count) if found else None


def format_of(row: Row, own: Format | None = None) -> Format:
    """Return the format to read a row by: the file's own if it has the fields, else the one that it has the fields of.

    Args:
        row: of the file.
        own: what the first rows of the file have.
    """
    if own is not None and own.claims(row):
        return own
    marked = (known for known in FORMATS if known.sign and known.sign in row)
    partly = own if own is not None and any(name in row for name in own.needs) else next(marked, None)
    return matching_format(row) or partly or own or _OWN


def examples_of(row: Row, own: Format | None = None, file: str = "", line: int = 0) -> list[Example]:
    """Return the examples of a row, with their source.

    Args:
        row, own: as `format_of` takes them.
        file, line: where the row stands.

    Raises:
        FieldError: a field cannot be used.
    """
    known = format_of(row, own)
    try:
        found = known.read(row)
    except FieldError as error:
        if known is _OWN and own is None and not any(name in row for name in _OWN.needs):
            remedy = "No known format has these fields. Map yours: data.columns.prompt=FIELD data.columns.target=FIELD"
            raise FieldError(error.field, f"{error}. {remedy}") from None
        raise
    source, images, tools = Source(file, line, known.name), images_of(row), tools_of(row)
    return [
        replace(example, source=source, images=(*images, *example.images), tools=tools or example.tools)
        for example in found
    ]

"""Files of records to examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, groupby, islice
from typing import Literal

from glmtune.config import DataSettings
from glmtune.examples import Example
from glmtune.records.cleaning import repetitions
from glmtune.records.conversations import each_answer, earlier_questions
from glmtune.records.faults import Fault, explain, until_many, write_skipped
from glmtune.records.fields import FieldError
from glmtune.records.files import Line, rows
from glmtune.records.formats import LOOKED_AT, Format, examples_of, fields_read, mapped_format, recognise
from glmtune.records.turns import join_turns
from glmtune.runtime import UserError

OnError = Literal["stop", "skip"]
Turns = Literal["last", "each", "all"]


def read(
    source: str,
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
    turns: Turns = "last",
    joins_turns: bool = False,
) -> Iterator[Example | Fault]:
    """Yield the examples of a file, a folder or a data set of the hub, as they come; or what is wrong with them.

    Args:
        source: a path, or `OWNER/NAME@CONFIG:SPLIT` of the hub.
        columns: `prompt`, `target`, `history` and `system` to the names they have there; default: told by the fields.
        encoding: of text files.
        turns: learn the `last` answer of a conversation; `all` of them in one pass; or `each`, as examples of their
            own.
        joins_turns: turns of one role in a row are one; else they are faults.

    Raises:
        UserError: there is nothing to read, or a library is missing.
    """
    is_read = fields_read(columns).__contains__
    for _, entries in groupby(rows(source, encoding, is_read), key=lambda entry: entry.file):
        first = list(islice(entries, LOOKED_AT))
        own = mapped_format(columns) if columns else recognise(entry.row for entry in first if isinstance(entry, Line))
        for entry in chain(first, entries):
            yield from [entry] if isinstance(entry, Fault) else read_row(entry, own, turns, joins_turns)


def read_row(line: Line, own: Format | None, turns: Turns, joins_turns: bool = False) -> list[Example | Fault]:
    """Return the examples of a row, or its fault."""
    try:
        row = join_turns(line.row) if joins_turns else line.row
        examples = examples_of(row, own, line.file, line.line)
    except FieldError as error:
        return [Fault(line.file, line.line, error.field, str(error), line.row)]
    if turns == "each":
        return [one for example in examples for one in each_answer(example)]
    if turns == "all":
        return [replace(example, train_on_all_turns=bool(earlier_questions(example.prompt))) for example in examples]
    return [*examples]


def read_all(
    source: str,
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
    turns: Turns = "last",
    on_error: OnError = "stop",
    joins_turns: bool = False,
) -> list[Example]:
    """Return all that `read` yields.

    Args:
        source, columns, encoding, turns, joins_turns: as `read` takes them.
        on_error: `stop` at faults; `skip` writes the faulty ones to `SOURCE.skipped.jsonl`.

    Raises:
        UserError: faults, told together; with `skip`, those of whole files; or no records are left.
    """
    examples: list[Example] = []
    faults: list[Fault] = []
    entries = read(source, columns, encoding, turns, joins_turns)
    for entry in until_many(entries) if on_error == "stop" else entries:
        (faults if isinstance(entry, Fault) else examples).append(entry)  # type: ignore[arg-type]
    fatal = [fault for fault in faults if on_error == "stop" or not fault.is_of_one_record]
    if fatal:
        raise UserError(explain(fatal))
    if faults:
        place = write_skipped(source, faults)
        if not examples:
            raise UserError(f"{source}: no records are left; all {len(faults)} are faulty, see {place}")
    return examples


def read_examples(file: str, data: DataSettings | None = None) -> list[Example]:
    """Return the examples of a file as a recipe says; a group of `facts` in a record is kept, other fields are not.

    Args:
        file: path, or name of the hub.
        data: how it is read: `columns`, `encoding`, `turns`, `join_turns`, `on_error`, `deduplicate`.

    Raises:
        UserError: with file and line number.
    """
    own = data or DataSettings()
    examples = read_all(file, own.columns, own.encoding, own.turns, own.on_error, own.join_turns)
    again = {place for place, _ in repetitions(examples, own.deduplicate)}
    return [example for place, example in enumerate(examples) if place not in again]


def read_mixture(data: DataSettings) -> list[list[Example]]:
    """Return the examples of each source of `data.mixture`.

    Raises:
        UserError: with file and line number.
    """
    return [
        read_examples(source.file, data.model_copy(update={"columns": source.columns, "encoding": source.encoding}))
        for source in data.mixture
    ]

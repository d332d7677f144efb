"""Records that people bring: read from whatever file they are in, whatever their fields are called.

`read` gives a `Record` (prompt, target, facts, where it stands) for each thing to learn, or a `Fault` in its place.
Nothing is registered: the format is told by the fields (`formats.FORMATS`), or the fields are named (`columns`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Literal, NamedTuple

from glmtune.messages import Prompt
from glmtune.records.files import SKIPPED, Fault, Line, rows
from glmtune.records.formats import (
    LOOKED_AT,
    FieldError,
    Format,
    Record,
    Row,
    each_answer,
    mapped,
    question_of,
    recognise,
    records_of,
)
from glmtune.runtime import UserError, replacing

__all__ = [
    "Fault",
    "Question",
    "Record",
    "Row",
    "Turns",
    "explain",
    "read",
    "read_all",
    "read_questions",
]

OnError = Literal["stop", "skip"]
Turns = Literal["last", "each"]
SHOWN = 20  # faults that are told one by one


def read(
    source: str,
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
    turns: Turns = "last",
) -> Iterator[Record | Fault]:
    """The records of a file, a folder or a data set of the hub, as they come; or what is wrong with them.

    Args:
        source: a path, or `OWNER/NAME@CONFIG:SPLIT` of the hub.
        columns: `prompt`, `target`, `history` and `system` to the names they have there; default: told by the fields.
        encoding: of text files.
        turns: learn the `last` answer of a conversation, or `each`, as records of their own.

    Raises:
        UserError: there is nothing to read, or a library is missing.
    """
    for _, entries in groupby(rows(source, encoding), key=lambda entry: entry.file):
        first = list(islice(entries, LOOKED_AT))
        own = mapped(columns) if columns else recognise(entry.row for entry in first if isinstance(entry, Line))
        for entry in chain(first, entries):
            yield from [entry] if isinstance(entry, Fault) else made(entry, own, turns)


def made(entry: Line, own: Format | None, turns: Turns) -> list[Record | Fault]:
    """The records of a row, or its fault."""
    try:
        found = [replace(record, file=entry.file, line=entry.line) for record in records_of(entry.row, own)]
    except FieldError as error:
        return [Fault(entry.file, entry.line, error.field, str(error), entry.row)]
    return [each for record in found for each in (each_answer(record) if turns == "each" else [record])]


def read_all(
    source: str,
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
    turns: Turns = "last",
    on_error: OnError = "stop",
) -> list[Record]:
    """All records of `read`.

    Args:
        on_error: `stop` at faults; `skip` writes the faulty ones to `SOURCE.skipped.jsonl`.

    Raises:
        UserError: faults, all told together; with `skip`, those of whole files; or no records are left.
    """
    records: list[Record] = []
    faults: list[Fault] = []
    for entry in read(source, columns, encoding, turns):
        (faults if isinstance(entry, Fault) else records).append(entry)  # type: ignore[arg-type]
    fatal = [fault for fault in faults if on_error == "stop" or not fault.is_of_one_record]
    if fatal:
        raise UserError(explain(fatal))
    if faults:
        place = write_skipped(source, faults)
        if not records:
            raise UserError(f"{source}: no records are left; all {len(faults)} are faulty, see {place}")
    return records


class Question(NamedTuple):
    """A row of a file, what it asks, and where it stands."""

    row: Row
    prompt: Prompt
    file: str
    line: int


def read_questions(
    source: str, columns: Mapping[str, str] | None = None, encoding: str = "utf-8"
) -> Iterator[Question | Fault]:
    """The rows of a file, a folder or a data set of the hub, with what each asks; answers are not needed.

    Args:
        source, columns, encoding: as `read` takes them.

    Raises:
        UserError: there is nothing to read, or a library is missing.
    """
    for entry in rows(source, encoding):
        if isinstance(entry, Fault):
            yield entry
            continue
        try:
            yield Question(entry.row, question_of(entry.row, columns), entry.file, entry.line)
        except FieldError as error:
            yield Fault(entry.file, entry.line, error.field, str(error), entry.row)


def explain(faults: Sequence[Fault], otherwise: str = "leave what is faulty out with data.on_error=skip") -> str:
    """Faults as a message: the first ones, how many there are, and what can be done other than mending them.

    Where every fault is one of a whole file, there is nothing else.
    """
    remedy = f", or {otherwise}" if any(fault.is_of_one_record for fault in faults) else ""
    if len(faults) == 1:
        return f"{faults[0]}\nMend it{remedy}." if remedy else str(faults[0])
    files = len({fault.file for fault in faults})
    place = faults[0].file if files == 1 else f"{files} files"
    lines = [f"{place}: {len(faults)} faults:", *(f"  {fault}" for fault in faults[:SHOWN])]
    if len(faults) > SHOWN:
        lines.append(f"  ... and {len(faults) - SHOWN} more. `glmtune inspect` writes all of them to a report.")
    lines.append(f"Mend them{remedy}.")
    return "\n".join(lines)


def write_skipped(source: str, faults: Iterable[Fault]) -> Path:
    """Write what was left out, with the reasons, beside what it was left out of."""
    path = Path(source)
    place = path.with_name(path.name + SKIPPED) if path.exists() else Path(source.replace("/", "-") + SKIPPED)
    with replacing(place) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for fault in faults:
            entry = {**fault.as_dict(), "record": fault.record}
            file.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
    return place

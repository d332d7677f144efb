"""Rows of files, one at a time: JSON, JSONL, CSV, Parquet, plain text, folders of them, and data sets of the hub.

What is wrong with a row or a file is given as a `Fault` in its place, so that all of it can be told together.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from glmtune.records.faults import SKIPPED, Fault, Unreadable
from glmtune.records.fields import Row, kind_of
from glmtune.records.streams import read_json, read_json_lines
from glmtune.records.tables import read_csv, read_hub, read_parquet
from glmtune.records.text import check_head, read_text
from glmtune.registry import suggest
from glmtune.runtime import UserError

Reader: TypeAlias = Callable[[Path, str], Iterator[tuple[int, Any]]]

# The one table of suffixes: of a path and an encoding, (line, value or fault) of each record.
READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
_OBJECTS = re.compile(rb"\s*(?:\[\s*)?\{\s*[\"}]")  # how JSON objects begin, or a list of them
_HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?")


class Line(NamedTuple):
    """A row and where it stands."""

    file: str
    line: int
    row: Row


def rows(source: str, encoding: str = "utf-8") -> Iterator[Line | Fault]:
    """Yield every row of a file, a folder or a data set of the hub, or what is wrong with it.

    Args:
        source: a path, or `OWNER/NAME`, `OWNER/NAME@CONFIG:SPLIT`.
        encoding: of text files; `utf-8` takes files with a byte order mark, too.

    Raises:
        UserError: there is nothing of that name, or a library is missing that reads it.
    """
    path = Path(source)
    if path.is_dir():
        for file in list_files(path):
            yield from rows_of(file, encoding)
    elif path.is_file():
        yield from rows_of(path, encoding)
    elif (named := _HUB.fullmatch(source)) and Path(named["name"]).suffix not in READERS and not path.parent.is_dir():
        name, config, split = named["name"], named["config"], named["split"] or "train"
        label = f"{name}{f'@{config}' if config else ''}:{split}"
        yield from as_lines(label, read_hub(name, config, split, label))
    else:
        around = path.parent if path.parent.is_dir() else Path(".")
        beside = sorted(entry.name for entry in around.iterdir() if entry.suffix in READERS)
        raise UserError(f"{source}: no such file.{suggest(path.name, beside)}")


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold records, in order; what an earlier run skipped is left out.

    Beside other files of records, those of plain text are notes, not records.

    Raises:
        UserError: there are none.
    """
    found = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and file.suffix.lower() in READERS
        and not file.name.endswith(SKIPPED)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    found = [file for file in found if file.suffix.lower() != ".txt"] or found
    if not found:
        raise UserError(f"{folder}: a folder without files of records. Read are {', '.join(READERS)}.")
    return found


def rows_of(path: Path, encoding: str) -> Iterator[Line | Fault]:
    """Yield the rows of one file; what ends the reading is the last fault."""
    try:
        yield from as_lines(str(path), reader_of(path)(path, encoding))
    except Unreadable as error:
        yield Fault(str(path), error.line, None, str(error), ends_file=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def as_lines(file: str, values: Iterable[tuple[int, Any]]) -> Iterator[Line | Fault]:
    """Yield rows from what a reader gives; values that are no rows are faults, and so is a file without any."""
    some = False
    for line, value in values:
        some = True
        if isinstance(value, Fault):
            yield value
        elif isinstance(value, dict):
            yield Line(file, line, value)
        else:
            yield Fault(file, line, None, f"{kind_of(value)}, not a JSON object {{...}}", value)
    if not some:
        yield Fault(file, None, None, "no records", ends_file=True)


def reader_of(path: Path) -> Reader:
    """Return the reader by a file's suffix; without a known one, or of `.txt`, by how the file begins.

    Raises:
        Unreadable: neither tells.
    """
    suffix = path.suffix.lower()
    if suffix in READERS and suffix != ".txt":
        return READERS[suffix]
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(codecs.BOM_UTF8)
    if suffix == ".txt" and not _OBJECTS.match(head):
        return read_text
    check_head(head)
    if not head.strip() or head.lstrip()[:1] in (b"{", b"["):
        return read_json if head.lstrip()[:1] == b"[" else read_json_lines
    raise Unreadable(f"'{path.suffix}' files are not read.{suggest(path.suffix, list(READERS))}")

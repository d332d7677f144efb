"""Rows of files, one at a time: JSON, JSONL, CSV, Parquet, Arrow, plain text, folders of them, data sets of the hub.

What is wrong with a row or a file is given as a `Fault` in its place, so that all of it can be told together.
"""

from __future__ import annotations

import codecs
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from glmtune.config import parts_of
from glmtune.files import check_folder
from glmtune.network import is_hub_name, near_paths
from glmtune.records import arrow
from glmtune.records.faults import SKIPPED, Fault, Unreadable
from glmtune.records.fields import MOST_LEVELS, Row, clean_name, is_deep, kind_of
from glmtune.records.folders import JUDGED, TRAIN, choose, is_metadata, splits_of, tell
from glmtune.records.streams import read_json, read_json_lines
from glmtune.records.tables import read_csv, read_hub
from glmtune.records.text import check_head, head_of, read_text
from glmtune.registry import suggest
from glmtune.runtime import UserError

Reader: TypeAlias = Callable[[Path, str], Iterator[tuple[int, Any]]]

# Of text files by their suffix: of a path and an encoding, (line, value or fault) of each record.
READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_text,
}
SUFFIXES = (*READERS, *arrow.SUFFIXES)  # of all files that are read
_PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")  # gzip is unpacked, of the others it is told how
_OBJECTS = re.compile(rb"\s*(?:\[\s*)?\{\s*[\"}]")  # how JSON objects begin, or a list of them
_HUB = re.compile(r"(?P<name>[^@:]+)(?:@(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?")


class Line(NamedTuple):
    """A row and where it stands.

    Attributes:
        file, line: rows of tables without lines are counted from 1.
        row: what formats look at.
        given: the row as it was given.
    """

    file: str
    line: int
    row: Row
    given: Row


def rows(source: str, encoding: str = "utf-8", is_read: Callable[[str], bool] | None = None) -> Iterator[Line | Fault]:
    """Yield every row of a file, a folder or a data set of the hub, or what is wrong with it.

    Args:
        source: a path, or `OWNER/NAME`, `OWNER/NAME@CONFIG:SPLIT`.
        encoding: of text files; `utf-8` takes files with a byte order mark, too.
        is_read: tells by its name whether a column of a table is read; default: all are.

    Raises:
        UserError: there is nothing of that name, or a library is missing that reads it.
    """
    path = Path(source)
    if (files := files_of(source)) is not None:
        for file in files:
            yield from rows_of(file, encoding, is_read)
    elif (named := _HUB.fullmatch(source)) and is_hub_name(named["name"]):
        name, config, split = named["name"], named["config"], named["split"] or "train"
        label = f"{name}{f'@{config}' if config else ''}:{split}"
        yield from as_lines(label, read_hub(name, config, split, label), is_table=True)
    else:
        around = path.parent if path.parent.is_dir() else Path(".")
        beside = {str(entry) for entry in around.iterdir() if entry.suffix in SUFFIXES}
        raise UserError(f"{source}: no such file.{suggest(source, sorted(beside | set(near_paths(source))))}")


def files_of(source: str) -> list[Path] | None:
    """Return the files that a path names: itself, all of a folder, or of one split where it has some.

    Args:
        source: a file, `FOLDER`, of which the training split is meant, or `FOLDER@CONFIG:SPLIT`.

    Returns:
        None where there is nothing of that name.

    Raises:
        UserError: a folder without records, or without such a split.
    """
    folder, _, split = parts_of(source)
    if not Path(folder).is_dir():
        return [Path(source)] if Path(source).is_file() else None
    splits = splits_in(source)
    if split is None and len(splits) > 1 and TRAIN in splits:
        others = [name for name in splits if name != TRAIN]
        warnings.warn(
            f"{folder}: of its splits, {tell(splits, [TRAIN])} is read, and not {tell(splits, others)}. Name another: "
            f"{folder}:{others[0]}",
            stacklevel=2,
        )
    return choose(Path(folder), splits, split) if splits or split else list_files(Path(folder))


def splits_in(source: str) -> dict[str, list[Path]]:
    """Return the files of each split of a folder; nothing where it has none, or for what is no folder."""
    folder, config, _ = parts_of(source)
    return splits_of(Path(folder), list_files(Path(folder)), config) if Path(folder).is_dir() else {}


def assign_splits(source: str, held_out: str | None) -> tuple[str, str | None]:
    """Return what is learned of a source, and what it is judged by, which is told where a folder decides it.

    Args:
        source: of what is learned.
        held_out: what the user names to judge by; None: a split of the folder, if it has one.
    """
    folder, config, split = parts_of(source)
    splits = splits_in(source) if split is None else {}
    judged = next((name for name in JUDGED if name in splits), None)
    if TRAIN not in splits or judged is None:
        return source, held_out
    place = f"{folder}{f'@{config}' if config else ''}"
    others = [name for name in splits if name not in (TRAIN, judged)]
    by = f"{tell(splits, [judged])} is held out" if held_out is None else f"{held_out} is held out"
    rest = f", {tell(splits, others)} not read" if others and held_out is None else ""
    warnings.warn(f"{place}: {tell(splits, [TRAIN])} is learned, {by}{rest}.", stacklevel=2)
    return f"{place}:{TRAIN}", held_out or f"{place}:{judged}"


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold records, in order; what an earlier run skipped is left out.

    Beside other files of records, those of plain text are notes, not records.

    Raises:
        UserError: there are none, or a link in it leads out of it.
    """
    check_folder(folder, hidden=False)
    found = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and suffix_of(file) in SUFFIXES
        and not file.name.endswith(SKIPPED)
        and not is_metadata(file)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    found = [file for file in found if suffix_of(file) != ".txt"] or found
    if not found:
        raise UserError(f"{folder}: a folder without files of records. Read are {', '.join(SUFFIXES)}.")
    return found


def rows_of(path: Path, encoding: str, is_read: Callable[[str], bool] | None = None) -> Iterator[Line | Fault]:
    """Yield the rows of one file; what ends the reading is the last fault."""
    try:
        if suffix_of(path) in arrow.SUFFIXES:
            yield from as_lines(str(path), arrow.read_table(path, is_read), is_table=True)
        else:
            yield from as_lines(str(path), reader_of(path)(path, encoding))
    except Unreadable as error:
        yield Fault(str(path), error.line, None, str(error), ends_file=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def as_lines(file: str, values: Iterable[tuple[int, Any]], is_table: bool = False) -> Iterator[Line | Fault]:
    """Yield rows from what a reader gives; values that are no rows are faults, and so is a file without any.

    Args:
        file: that they are of.
        values: (line, value or fault) of each record.
        is_table: rows have fields only because others have them; these are null.
    """
    some = False
    for line, value in values:
        some = True
        if isinstance(value, Fault):
            yield value
        elif isinstance(value, dict) and is_deep(value):
            yield Fault(file, line, None, f"nested more than {MOST_LEVELS} levels deep: flatten it.")
        elif isinstance(value, dict):
            yield Line(file, line, tidy(without_nulls(value) if is_table else value), value)
        else:
            yield Fault(file, line, None, f"{kind_of(value)}, not a JSON object {{...}}", value)
    if not some:
        yield Fault(file, None, None, "no records", ends_file=True)


def tidy(row: Row) -> Row:
    """Return a row by the names that its fields seem to have."""
    if all(name == clean_name(name) for name in row):
        return row
    return {name if clean_name(name) in row else clean_name(name): value for name, value in row.items()}


def without_nulls(value: Any) -> Any:
    """Return a value of a table without the fields that it has only because other rows have them."""
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


def suffix_of(path: Path) -> str:
    """Return the suffix that tells how a file is read, whatever packs it."""
    return Path(path.stem if path.suffix.lower() in _PACKED else path.name).suffix.lower()


def reader_of(path: Path) -> Reader:
    """Return the reader by a file's suffix; without a known one, or of `.txt`, by how the file begins.

    Raises:
        Unreadable: neither tells.
    """
    suffix = suffix_of(path)
    if suffix in READERS and suffix != ".txt":
        return READERS[suffix]
    head = head_of(path).removeprefix(codecs.BOM_UTF8)
    if suffix == ".txt" and not _OBJECTS.match(head):
        return read_text
    check_head(head)
    if not head.strip() or head.lstrip()[:1] in (b"{", b"["):
        return read_json if head.lstrip()[:1] == b"[" else read_json_lines
    raise Unreadable(f"'{suffix}' files are not read.{suggest(suffix, list(SUFFIXES))}")

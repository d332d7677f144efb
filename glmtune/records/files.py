"""Rows of files, one at a time: JSON, JSONL, CSV, Parquet, folders of them, and data sets of the hub.

What is wrong with a row or a file is given as a `Fault` in its place, so that all of it can be told together.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from glmtune.records.formats import MOST_CHARACTERS, Row, kind_of
from glmtune.registry import suggest
from glmtune.runtime import UserError

SKIPPED = ".skipped.jsonl"
_CHUNK = 1 << 16  # characters
_ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is no text, as Python keeps it
_HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?")
_HUGE = f"a record of more than {MOST_CHARACTERS:,} characters, more than any model takes. Split it."
_NUL = "holds NUL bytes: not a text file, or a damaged one. Write it again as UTF-8."
_PACKED = {
    b"PK\x03\x04": "a zip or Excel file. Save it as CSV.",
    b"\x1f\x8b": "packed with gzip. Unpack it with gunzip.",
    b"(\xb5/\xfd": "packed with zstd. Unpack it with unzstd.",
    b"PAR1": "a Parquet file. Name it .parquet.",
}


class Line(NamedTuple):
    """A row and where it stands."""

    file: str
    line: int
    row: Row


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where.

    Attributes:
        file: that it is in.
        line: from 1; None where the whole file is meant.
        field: of the record; None where it is no record.
        message: what, and what to do.
        record: the row, or the text, as it stands.
        ends_file: nothing that follows in the file is read.
    """

    file: str
    line: int | None
    field: str | None
    message: str
    record: Any = dataclasses.field(default=None, repr=False, compare=False)
    ends_file: bool = False

    @property
    def is_of_one_record(self) -> bool:
        """Whether the others in the file can be read all the same."""
        return self.line is not None and not self.ends_file

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """As a report has it."""
        return {"file": self.file, "line": self.line, "field": self.field, "message": self.message}


class Unreadable(Exception):
    """A file, or the rest of it, cannot be read.

    Attributes:
        line: where it was noticed, if in a line.
    """

    def __init__(self, message: str, line: int | None = None):
        self.line = line
        super().__init__(message)


def rows(source: str, encoding: str = "utf-8") -> Iterator[Line | Fault]:
    """Every row of a file, a folder or a data set of the hub, or what is wrong with it.

    Args:
        source: a path, or `OWNER/NAME`, `OWNER/NAME@CONFIG:SPLIT`.
        encoding: of text files; `utf-8` takes files with a byte order mark, too.

    Raises:
        UserError: there is nothing of that name, or a library is missing that reads it.
    """
    path = Path(source)
    if path.is_dir():
        for file in files_of(path):
            yield from rows_of(file, encoding)
    elif path.is_file():
        yield from rows_of(path, encoding)
    elif (found := _HUB.fullmatch(source)) and Path(found["name"]).suffix not in READERS and not path.parent.is_dir():
        yield from of_hub(found["name"], found["config"], found["split"] or "train")
    else:
        around = path.parent if path.parent.is_dir() else Path(".")
        beside = sorted(entry.name for entry in around.iterdir() if entry.suffix in READERS)
        raise UserError(f"{source}: no such file.{suggest(path.name, beside)}")


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that hold records, in order; what an earlier run skipped is left out.

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
    if not found:
        raise UserError(f"{folder}: a folder without files of records. Read are {', '.join(READERS)}.")
    return found


def rows_of(path: Path, encoding: str) -> Iterator[Line | Fault]:
    """The rows of one file; what ends the reading is the last fault."""
    some = False
    try:
        for line, row in reader_of(path)(path, encoding):
            some = True
            if isinstance(row, Fault):
                yield row
            elif isinstance(row, dict):
                yield Line(str(path), line, row)
            else:
                text = f"{kind_of(row)}, not a JSON object {{...}}"
                yield Fault(str(path), line, None, text, row)
        if not some:
            yield Fault(str(path), None, None, "no records", ends_file=True)
    except Unreadable as error:
        yield Fault(str(path), error.line, None, str(error), ends_file=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def reader_of(path: Path) -> Callable[[Path, str], Iterator[tuple[int, Any]]]:
    """The reader by a file's suffix; without a known one, by how it begins.

    Raises:
        Unreadable: neither tells.
    """
    if path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()]
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(codecs.BOM_UTF8)
    check_head(head)
    if not head.strip() or head.lstrip()[:1] in (b"{", b"["):
        return json_file if head.lstrip()[:1] == b"[" else json_lines
    raise Unreadable(f"'{path.suffix}' files are not read.{suggest(path.suffix, list(READERS))}")


# Text


@contextmanager
def opened(path: Path, encoding: str, newline: str = "\n") -> Iterator[TextIO]:
    """A text file. Bytes that are no text are kept, for `check_text` to find.

    Raises:
        Unreadable: packed, or in an encoding that its first bytes tell.
    """
    with path.open("rb") as binary:
        check_head(binary.read(4096), encoding)
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    with path.open(encoding=encoding, errors="surrogateescape", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise Unreadable(f"not {encoding} text: {error}. Set data.encoding to what it is.") from None


def check_head(head: bytes, encoding: str = "utf-8") -> None:
    """What the first bytes of a file tell.

    Raises:
        Unreadable: it is no text, or in another encoding.
    """
    for sign, what in _PACKED.items():
        if head.startswith(sign):
            raise Unreadable(what)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and "16" not in encoding:
        raise Unreadable("UTF-16 text. Set data.encoding=utf-16, or convert it: iconv -f UTF-16 -t UTF-8")


def check_text(text: str, line: int, encoding: str) -> None:
    """Whether a text was read in the right encoding; Chinese files are often GBK.

    Raises:
        Unreadable: it was not, with what it may be.
    """
    found = _ESCAPED.search(text)
    if found is None:
        return
    called = encoding.upper()
    if codecs.lookup(encoding).name == "utf-8":
        line += text.count("\n", 0, found.start())
        start = text.rfind("\n", 0, found.start()) + 1
        raw = text[start:].partition("\n")[0].encode("utf-8", "surrogateescape")
        sample = as_gbk(raw)
        if sample:
            raise Unreadable(
                f"not UTF-8 text, but GBK would read it: {sample.strip()[:60]!r}. If that is right, set "
                "data.encoding=gb18030, or convert it: iconv -f GB18030 -t UTF-8",
                line,
            )
        called = "UTF-8 text, nor GBK"
    byte = ord(found[0]) - 0xDC00
    raise Unreadable(f"not {called}: byte 0x{byte:02x}. Set data.encoding to what it is, or convert it.", line)


def as_gbk(raw: bytes) -> str:
    """What GBK reads, or nothing if it cannot; the end may be cut within a character."""
    for end in range(len(raw), max(len(raw) - 4, 0), -1):
        try:
            return raw[:end].decode("gb18030")
        except UnicodeDecodeError:
            continue
    return ""


# JSON


class Twice(ValueError):
    """An object has a field twice."""


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        Twice: a field stands in it twice, of which one would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise Twice(f"the field '{name}' stands in it twice. Delete or rename one.")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=distinct)


def json_lines(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """One JSON object a line."""
    with opened(path, encoding) as file:
        number, blank = 0, []
        while text := file.readline(MOST_CHARACTERS + 1):
            number += 1
            if not text.strip():
                blank.append(number)
                continue
            yield from _blanks(path, blank)
            blank = []
            huge = len(text) > MOST_CHARACTERS and not text.endswith("\n")
            while huge and (rest := file.readline(MOST_CHARACTERS)) and not rest.endswith("\n"):
                pass
            check_text(text, number, encoding)
            yield number, Fault(str(path), number, None, _HUGE) if huge else parsed(path, number, text)
        if number and number == len(blank):
            yield from _blanks(path, blank)


def _blanks(path: Path, numbers: list[int]) -> Iterator[tuple[int, Fault]]:
    """Faults of empty lines; those at the end of a file are none."""
    for number in numbers:
        message = "empty; every line must be one JSON object. Delete the line."
        yield number, Fault(str(path), number, None, message)


def parsed(path: Path, number: int, text: str) -> Any:
    """The value of a line, or its fault."""
    if "\0" in text:
        return Fault(str(path), number, None, _NUL, text)
    try:
        return _DECODER.decode(text)
    except Twice as error:
        return Fault(str(path), number, None, str(error), text)
    except (ValueError, RecursionError) as error:  # not JSON, a number of 4300 digits, nested too deeply
        hint = " A list over several lines? Name the file .json." if number == 1 and text.startswith("[") else ""
        return Fault(str(path), number, None, f"not JSON: {error}. One JSON object a line.{hint}", text)


def json_file(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """A list of objects; or, as many files called .json have it, one object after another."""
    with opened(path, encoding) as file:
        first = file.readline(MOST_CHARACTERS).strip()
        while first == "" and (text := file.readline(MOST_CHARACTERS)):
            first = text.strip()
    if first.startswith("{") and first.endswith("}") and not isinstance(parsed(path, 1, first), Fault):
        yield from json_lines(path, encoding)
        return
    with opened(path, encoding) as file:
        yield from JsonStream(path, file, encoding)


class JsonStream:
    """The values of a JSON file, each read when it is asked for: of its list, or one after another."""

    def __init__(self, path: Path, file: TextIO, encoding: str):
        self.path, self.file, self.encoding = path, file, encoding
        self.buffer, self.place, self.line, self.ended = "", 0, 1, False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        listed = self.peek() == "["
        self.advance(self.place + listed)
        while sign := self.peek():
            if sign == "]" and listed:
                self.advance(self.place + 1)
                if self.peek():
                    raise Unreadable("more text stands behind the end of the list. Delete it.", self.line)
                return
            yield self.value()
        if listed:
            raise Unreadable("the list does not end with ]: the file is cut off. Copy or write it again.", self.line)

    def more(self) -> None:
        """Read on, twice as much as there is, so that long values are not tried too often."""
        text = self.file.read(max(_CHUNK, len(self.buffer) - self.place))
        check_text(text, self.line + self.buffer.count("\n", self.place), self.encoding)
        if "\0" in text:
            raise Unreadable(
                _NUL, self.line + self.buffer.count("\n", self.place) + text.partition("\0")[0].count("\n")
            )
        self.ended = not text
        self.buffer, self.place = self.buffer[self.place :] + text, 0

    def advance(self, place: int) -> None:
        """Go on to a place in the buffer."""
        self.line += self.buffer.count("\n", self.place, place)
        self.place = place

    def peek(self) -> str:
        """The next character that is no blank or comma; nothing at the end."""
        while True:
            rest = re.compile(r"[\s,]*").match(self.buffer, self.place)
            self.advance(rest.end() if rest else self.place)
            if self.place < len(self.buffer) or self.ended:
                return self.buffer[self.place : self.place + 1]
            self.more()

    def value(self) -> tuple[int, Any]:
        """The next value and its line.

        Raises:
            Unreadable: no JSON, of which the rest cannot be told apart.
        """
        while True:
            line = self.line
            try:
                value, end = self.decoded()
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or len(self.buffer) - error.pos < _CHUNK // 2
                if self.ended or not cut:
                    where = line + self.buffer.count("\n", self.place, error.pos)
                    raise Unreadable(f"not JSON: {error.msg}. What follows is not read.", where) from None
                value, end = None, len(self.buffer)
            except (ValueError, RecursionError) as error:
                raise Unreadable(f"not JSON: {error}. What follows is not read.", line) from None
            if end < len(self.buffer) or self.ended:
                self.advance(end)
                return line, value
            if end - self.place > MOST_CHARACTERS:
                raise Unreadable(f"{_HUGE} What follows is not read.", line)
            self.more()

    def decoded(self) -> tuple[Any, int]:
        """The value that begins here, or the fault of one with a field twice, and the place of its end."""
        try:
            value, end = _DECODER.raw_decode(self.buffer, self.place)
        except Twice as error:
            value, end = json.JSONDecoder().raw_decode(self.buffer, self.place)
            value = Fault(str(self.path), self.line, None, str(error), value)
        return value, end


# Tables


def table(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """CSV and TSV with a row of names; separated by what separates the names."""
    csv.field_size_limit(MOST_CHARACTERS)
    with opened(path, encoding, newline="") as file:
        head = file.readline(MOST_CHARACTERS)
        check_text(head, 1, encoding)
        if not head.strip():
            return
        file.seek(0)
        delimiter = max(",\t;", key=head.count)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] = []
        line = 1
        try:
            for cells in reader:
                check_text(delimiter.join(cells), line, encoding)
                if not names:
                    names = [name.strip() for name in cells]
                    if len(set(names)) < len(names):
                        raise Unreadable("two columns have the same name. Rename one.", 1)
                elif cells:
                    yield line, cells_of(path, line, names, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            message = f"not CSV: {error}. Is a quotation mark missing? What follows is not read."
            raise Unreadable(message, line) from None


def cells_of(path: Path, line: int, names: list[str], cells: list[str]) -> Any:
    """The cells of a row by name, or its fault."""
    if len(cells) == len(names):
        return dict(zip(names, cells, strict=True))
    message = f"{len(cells)} cells for {len(names)} columns ({', '.join(names)}). Put texts in quotation marks."
    return Fault(str(path), line, None, message, cells)


def parquet(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """Parquet, a batch at a time."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: Parquet is read by pyarrow: pip install 'glmtune[data]'") from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, without_nothing(row)
    except ArrowException as error:
        raise Unreadable(f"not a readable Parquet file: {error}. Copy or download it again.") from None


def without_nothing(value: Any) -> Any:
    """A value of a table without the fields that it has only because others have them."""
    if isinstance(value, dict):
        return {key: without_nothing(entry) for key, entry in value.items() if entry is not None}
    return [without_nothing(entry) for entry in value] if isinstance(value, list) else value


def of_hub(name: str, config: str | None, split: str) -> Iterator[Line | Fault]:
    """A data set of the hub, row by row as it comes.

    Raises:
        UserError: the library is missing, or the hub does not give it.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"{name}: data sets of the hub are read by datasets: pip install 'glmtune[data]'") from None
    label = f"{name}{f'@{config}' if config else ''}:{split}"
    number = 0
    try:
        for number, row in enumerate(load_dataset(name, config, split=split, streaming=True), start=1):
            yield Line(label, number, without_nothing(row))
    except Exception as error:  # the library documents no classes of errors
        reason = str(error).partition("\n")[0][:300] or type(error).__name__
        raise UserError(
            f"{name}: there is no such file here, and the hub gives no data set {label}: {reason}. "
            "Write it as OWNER/NAME, or OWNER/NAME@CONFIG:SPLIT."
        ) from error
    if not number:
        yield Fault(label, None, None, "no records")


READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, Any]]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_file,
    ".csv": table,
    ".tsv": table,
    ".parquet": parquet,
}

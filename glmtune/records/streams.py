"""JSON files, one value at a time. What is wrong with one is told in its place, with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from glmtune.records.faults import Fault, Unreadable
from glmtune.records.fields import MOST_CHARACTERS, WrittenFloat, repeated
from glmtune.records.text import HUGE, check_text, open_text
from glmtune.runtime import json_fault

_CHUNK = 1 << 16  # characters
_MOST_BLANK = 10_000  # lines in a row
_NUL = "holds NUL bytes: not a text file, or a damaged one. Write it again as UTF-8."


class RepeatedField(ValueError):
    """An object has a field twice."""


def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON.

    Raises:
        RepeatedField: a field stands in it twice, of which one would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        name = repeated([name for name, _ in pairs])
        raise RepeatedField(f"the field '{name}' stands in it twice. Delete or rename one.")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=as_object, parse_float=WrittenFloat)


def read_json_lines(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of a file with one JSON object a line."""
    with open_text(path, encoding) as file:
        number, blank = 0, []
        while text := file.readline(MOST_CHARACTERS + 1):
            number += 1
            if not text.strip():
                blank.append(number)
                if len(blank) > _MOST_BLANK:  # of which gzip packs a billion in a megabyte
                    raise Unreadable(f"more than {_MOST_BLANK:,} empty lines in a row. Delete them.", blank[0])
                continue
            yield from _blanks(path, blank)
            blank = []
            huge = len(text) > MOST_CHARACTERS and not text.endswith("\n")
            while huge and (rest := file.readline(MOST_CHARACTERS)) and not rest.endswith("\n"):
                pass
            check_text(text, number, encoding)
            yield number, Fault(str(path), number, None, HUGE) if huge else parse_line(path, number, text)
        if number and number == len(blank):
            yield from _blanks(path, blank)


def _blanks(path: Path, numbers: list[int]) -> Iterator[tuple[int, Fault]]:
    """Faults of empty lines; those at the end of a file are none."""
    for number in numbers:
        message = "empty; every line must be one JSON object. Delete the line."
        yield number, Fault(str(path), number, None, message)


def parse_line(path: Path, number: int, text: str) -> Any:
    """Return the value of a line, or its fault."""
    if "\0" in text:
        return Fault(str(path), number, None, _NUL, text)
    try:
        return _DECODER.decode(text.rstrip("\r\n"))
    except RepeatedField as error:
        return Fault(str(path), number, None, str(error), text)
    except (ValueError, RecursionError) as error:  # not JSON, a number of 4300 digits, nested too deeply
        hint = " A list over several lines? Name the file .json." if number == 1 and text.startswith("[") else ""
        return Fault(str(path), number, None, f"not JSON: {json_fault(error)}. One JSON object a line.{hint}", text)


def read_json(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of a list of objects; or, as many files called .json have it, of one object after another."""
    with open_text(path, encoding) as file:
        first = file.readline(MOST_CHARACTERS).strip()
        while first == "" and (text := file.readline(MOST_CHARACTERS)):
            first = text.strip()
    if first.startswith("{") and first.endswith("}") and not isinstance(parse_line(path, 1, first), Fault):
        yield from read_json_lines(path, encoding)
        return
    with open_text(path, encoding) as file:
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
        """Return the next character that is no blank or comma; nothing at the end."""
        while True:
            rest = re.compile(r"[\s,]*").match(self.buffer, self.place)
            self.advance(rest.end() if rest else self.place)
            if self.place < len(self.buffer) or self.ended:
                return self.buffer[self.place : self.place + 1]
            self.more()

    def value(self) -> tuple[int, Any]:
        """Return the line of the next value, and the value.

        Raises:
            Unreadable: no JSON, of which the rest cannot be told apart.
        """
        while True:
            line = self.line
            try:
                value, end = self.decode()
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
                raise Unreadable(f"{HUGE} What follows is not read.", line)
            self.more()

    def decode(self) -> tuple[Any, int]:
        """Return the value that begins here, or the fault of one with a field twice, and the place of its end."""
        try:
            value, end = _DECODER.raw_decode(self.buffer, self.place)
        except RepeatedField as error:
            value, end = json.JSONDecoder(parse_float=WrittenFloat).raw_decode(self.buffer, self.place)
            value = Fault(str(self.path), self.line, None, str(error), value)
        return value, end

"""Fields of a row: the values that may be used, and what is said of the others."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, NoReturn, TypeAlias

Row: TypeAlias = dict[str, Any]

MOST_LEVELS = 100  # of lists and objects in a record; what reads and writes them goes down by calls
MOST_CHARACTERS = 2_000_000  # of one record; the longest contexts of today hold about a million tokens
_SURROGATE = re.compile("[\ud800-\udfff]")
_RAW = re.compile("[\udc80-\udcff]")  # a byte that is no text, as Python keeps it
_KINDS = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


class Unread:
    """A value of a table that no format looks at: of such columns, rows have the names alone."""

    def __repr__(self) -> str:
        return "not read"


UNREAD = Unread()


class FieldError(ValueError):
    """A field of a row cannot be used.

    Attributes:
        field: its name.
    """

    def __init__(self, name: str, message: str):
        self.field = name
        super().__init__(message)


def clean_name(name: str) -> str:
    """Return the name of a field without the blanks and byte order marks around it, which nobody sees."""
    return name.strip("\ufeff \t\r\n")


def repeated(names: Sequence[str]) -> str | None:
    """Return the first name that stands twice among some."""
    return next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None


class WrittenFloat(float):
    """A number of a file, with its digits as they stand there.

    Attributes:
        written: the digits.
    """

    def __new__(cls, written: str) -> WrittenFloat:
        number = super().__new__(cls, written)
        number.written = written
        return number

    written: str


def is_deep(value: Any) -> bool:
    """Return whether lists and objects are nested in a value more deeply than `MOST_LEVELS`."""
    level = [value]
    for _ in range(MOST_LEVELS):
        groups = (one.values() if isinstance(one, Mapping) else one for one in level if isinstance(one, Mapping | list))
        level = [inner for group in groups for inner in group]
    return any(isinstance(one, Mapping | list) for one in level)


def kind_of(value: Any) -> str:
    """Return what JSON calls a value, with its article."""
    kind = float if isinstance(value, WrittenFloat) else type(value)
    return _KINDS.get(kind, f"a {kind.__name__}")


def as_text(value: Any) -> Any:
    """Return a number or truth value as it was written, exactly; everything else, and what is no number, as it is."""
    if isinstance(value, WrittenFloat):
        return value.written
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        return str(value) if math.isfinite(value) else value
    return value


def sound(name: str, text: str) -> str:
    """Return the text of a field, if it can be tokenized.

    Raises:
        FieldError: NUL, half a character, bytes that are no text, or more than any model can take.
    """
    if len(text) > MOST_CHARACTERS:
        raise FieldError(name, f"'{name}' has {len(text):,} characters, more than any model takes. Split it.")
    if "\0" in text:
        raise FieldError(name, f"'{name}' holds a NUL character. Delete it, or write the file again.")
    if raw := _RAW.search(text):
        what = f"byte 0x{ord(raw[0]) - 0xDC00:02x} behind {text[: raw.start()][-20:]!r}"
        raise FieldError(name, f"'{name}' is not UTF-8 text: {what}. Write the file again from its source.")
    if _SURROGATE.search(text):
        raise FieldError(name, f"'{name}' holds half of a character (a lone \\ud800 escape). Write the file again.")
    return text


def answer_in_field(row: Row, name: str) -> str:
    """Return a field that must be an answer: a text, or a number or truth value as it was written.

    Raises:
        FieldError: it is neither; a field of nearly the same name is offered.
    """
    return text_of({**row, name: as_text(row[name])} if name in row else row, name)


def text_of(row: Row, name: str) -> str:
    """Return a field that must be a text with something in it.

    Raises:
        FieldError: it is not; a field of nearly the same name is offered.
    """
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        return sound(name, value)
    message = f"'{name}' is missing, empty or not a text"
    if value is not None and not isinstance(value, str):
        message += f" but {kind_of(value)}"
    refuse(row, name, message)


def refuse(row: Row, name: str, message: str) -> NoReturn:
    """Raise a `FieldError` that tells what the row has, and what of it may have been meant."""
    message += f"; the record has {names_of(row)}"
    close = [] if name in row else get_close_matches(name, [str(key) for key in row], n=1, cutoff=0.6)
    if close:
        message += f". Did you mean '{close[0]}'? Rename it to '{name}', or map it with data.columns"
    raise FieldError(name, message)


def names_of(row: Row) -> str:
    """Return the names of a row's fields, as messages list them."""
    return ", ".join(map(str, row)) or "nothing"


def optional_text(row: Row, name: str) -> str:
    """Return a field that may be missing or empty.

    Raises:
        FieldError: it is something else than a text.
    """
    value = row.get(name)
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise FieldError(name, f"'{name}' is {kind_of(value)}, not a text")
    return sound(name, value)


def list_of(row: Row, name: str) -> list[Any]:
    """Return a field that is a list, or JSON of one, as tables have it; a missing one is an empty list.

    Raises:
        FieldError: it is neither.
    """
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise FieldError(name, f"'{name}' is a text and not JSON of a list") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise FieldError(name, f"'{name}' is {kind_of(value)}, not a list")
    return value


def facts_of(row: Row, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the group of `facts` that a row has, and what its format tells."""
    own = row.get("facts")
    return {**(more or {}), **(own if isinstance(own, dict) else {})}

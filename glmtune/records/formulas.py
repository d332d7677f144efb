"""Texts that a spreadsheet takes for formulas, and runs: `=1+1`, `@SUM(A1)`, but not `-12`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.records.fields import Row

# By how a cell begins: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)*(e[+-]?[0-9]+)?\s*%?", re.IGNORECASE)
_SHOWN = 40  # characters


@dataclass(frozen=True)
class Formulas:
    """Cells of a table that a spreadsheet would run.

    Attributes:
        count: how many there are.
        first: where the first stands, and what it is.
    """

    count: int = 0
    first: str = ""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Formulas:
        """Return those of records and of the names of their columns."""
        found = list(places_of(rows))
        return cls(len(found), next(iter(found), ""))

    def __str__(self) -> str:
        begin = "cell begins as a formula" if self.count == 1 else "cells begin as formulas"
        return f"{self.count:,} {begin} ({self.first})"


def places_of(rows: Sequence[Row]) -> Iterator[str]:
    """Yield where each formula stands, and what it is."""
    for name in dict.fromkeys(name for row in rows for name in row):
        if is_formula(name):
            yield f"the name of a column: {name[:_SHOWN]!r}"
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            if is_formula(value):
                yield f"record {number}, {name[:_SHOWN]!r}: {value[:_SHOWN]!r}"


def is_formula(value: Any) -> bool:
    """Return whether a spreadsheet would take a value for a formula."""
    return (
        isinstance(value, str)
        and len(value) > 1
        and _FORMULA.match(value) is not None
        and _NUMBER.fullmatch(value.strip()) is None
    )

"""Rows of predictions to files: JSON lines as they come, tables of CSV or Parquet at the end."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmtune.records.formats import Row
from glmtune.runtime import UserError

TABLES = (".csv", ".parquet")


def write_table(rows: Sequence[Row], file: Path, suffix: str) -> None:
    """Write records as CSV or Parquet. Columns are all fields in the order in which they come; in CSV, lists are JSON.

    In Parquet, values are JSON where they are of several kinds, or of one that it has no form for.

    Raises:
        UserError: the library for Parquet is missing.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    if suffix == ".parquet":
        pyarrow, parquet = load_arrow()
        parquet.write_table(pyarrow.table({name: as_column(values) for name, values in columns.items()}), file)
        return
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(zip(*(map(as_cell, values) for values in columns.values()), strict=True))


def as_column(values: Sequence[Any]) -> Any:
    """Return one column of a Parquet file."""
    pyarrow, parquet = load_arrow()
    try:
        found = pyarrow.array(values)
        parquet.write_table(pyarrow.table({"": found}), pyarrow.BufferOutputStream())
        return found
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        cells = [None if value is None else as_cell(value) for value in values]
        return pyarrow.array([cell and cell.encode("utf-8", "backslashreplace").decode() for cell in cells])


def as_cell(value: Any) -> str:
    """Return a value as a text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def load_arrow() -> tuple[Any, Any]:
    """Return pyarrow, and its part for Parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("--output: Parquet is written by pyarrow: pip install 'glmtune[data]'") from None
    return pyarrow, parquet

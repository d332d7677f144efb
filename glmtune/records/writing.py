"""Rows of predictions to files: JSON lines as they come, all else at the end.

The suffix of a file says what is written: another one would be a name for what is not in it, and is refused.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context
from functools import partial
from pathlib import Path
from typing import Any

from glmtune.records import arrow
from glmtune.records.fields import Row, WrittenFloat
from glmtune.records.files import files_of, suffix_of
from glmtune.records.formulas import Formulas, is_formula
from glmtune.runtime import UserError
from glmtune.terminal import to_json

LINES = (".jsonl", ".ndjson", "")  # that can grow; without a suffix it may be a device
WRITTEN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *arrow.SUFFIXES)
_SEPARATORS = ",\t;"
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


def strict(value: Any) -> Any:
    """Return a value without the numbers that JSON does not have, which become the texts that protobuf has for them."""
    if isinstance(value, float) and not isinstance(value, WrittenFloat) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: strict(entry) for name, entry in value.items()}
    return [strict(entry) for entry in value] if isinstance(value, list) else value


def as_json(value: Any) -> Any:
    """Return a value in the form that JSON has for it; a text where it has none. Numbers stay as they were written."""
    if isinstance(value, dict):
        return {str(name): as_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def as_line(value: Any) -> str:
    """Return a value, such as a record, as a line of strict JSON; a number of a file with the digits that it had there.

    Lists and objects are taken apart here because `json` writes every float anew, whatever its class.
    """
    if isinstance(value, WrittenFloat):
        return value.written
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_json(name)}: {as_line(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_line, value)) + "]"
    return to_json(strict(value))


def write_rows(rows: Iterable[Row], file: Path, suffix: str, safe_cells: bool = False) -> Formulas:
    """Write records as what a suffix says. Columns are all fields in the order in which they come.

    In CSV and TSV, lists and objects are JSON. So they are in Parquet and Arrow where a column holds values of several
    kinds, or of one that these have no form for; a column is of texts where a number has more digits than they keep.

    Args:
        rows: the records.
        file: to write.
        suffix: what it is.
        safe_cells: in CSV and TSV, put a quotation mark (') before a text that a spreadsheet would run as a formula.

    Returns:
        The cells of CSV or TSV that a spreadsheet would run, or would have.

    Raises:
        UserError: the library for Parquet is missing.
    """
    rows = list(rows)
    if suffix == ".json":
        file.write_text("[\n" + ",\n".join(map(as_line, rows)) + "\n]\n", encoding="utf-8")
        return Formulas()
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    if suffix in arrow.SUFFIXES:
        pyarrow, _ = load_arrow()
        write_arrow(pyarrow.table({name: as_column(values) for name, values in columns.items()}), file, suffix)
        return Formulas()
    cell = as_safe_cell if safe_cells else as_cell
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = partial(csv.writer, stream, delimiter="\t" if suffix == ".tsv" else ",")
        odd = any(sign in name for name in columns for sign in _SEPARATORS)  # by these names, they are told apart again
        writer(quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL).writerow(map(cell, columns))
        writer().writerows(zip(*(map(cell, values) for values in columns.values()), strict=True))
    return Formulas.of(rows)


def as_column(values: Sequence[Any]) -> Any:
    """Return one column of a table: of texts where no type of its own holds all that was written."""
    pyarrow, parquet = load_arrow()
    try:
        if is_rounded(values):
            raise OverflowError("as pyarrow does where an integer has too many digits")
        found = pyarrow.array(values)
        parquet.write_table(pyarrow.table({"": found}), pyarrow.BufferOutputStream())
        return found
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        cells = [None if value is None else as_cell(value) for value in values]
        return pyarrow.array([cell and cell.encode("utf-8", "backslashreplace").decode() for cell in cells])


def is_rounded(value: Any) -> bool:
    """Return whether a number in a value has more digits in its file than a float of 64 bits keeps."""
    if isinstance(value, WrittenFloat):
        return _EXACT.create_decimal(value.written) != _EXACT.create_decimal(float.__repr__(value))
    if isinstance(value, dict):
        return any(map(is_rounded, value.values()))
    return isinstance(value, list) and any(map(is_rounded, value))


def as_cell(value: Any) -> str:
    """Return a value as a text."""
    if value is None:
        return ""
    value = strict(value)
    return value if isinstance(value, str) else as_line(value)


def as_safe_cell(value: Any) -> str:
    """Return a value as a text that a spreadsheet does not run."""
    return f"'{as_cell(value)}" if is_formula(value) else as_cell(value)


# Tables keep their own columns


def read_given(source: str, suffix: str) -> Any:
    """Return the table that a file or a folder of tables holds, with the types and metadata that it has.

    Args:
        source: of the records.
        suffix: of the file that is to be written.

    Returns:
        None where these are no tables, or none is to be written.

    Raises:
        UserError: they are of types that do not go together, or that the file has no form for.
    """
    files = files_of(source) if suffix in arrow.SUFFIXES else None
    if not files or any(suffix_of(file) not in arrow.SUFFIXES for file in files):
        return None
    pyarrow, _ = load_arrow()
    try:
        table = pyarrow.concat_tables(map(arrow.read_whole, files), promote_options="permissive")
        write_arrow(table, pyarrow.MockOutputStream(), suffix)
    except (pyarrow.ArrowException, arrow.Unreadable) as error:
        told = str(error).partition("\n")[0]
        raise UserError(
            f"--output: a '{suffix}' file cannot hold what {source} holds: {told}. Name it .jsonl."
        ) from None
    return table


def write_beside(table: Any, added: Sequence[Row], file: Path, suffix: str) -> None:
    """Write a table again, with columns behind its own."""
    pyarrow, _ = load_arrow()
    for name in dict.fromkeys(name for row in added for name in row):
        column = as_column([row.get(name) for row in added])
        table = table.append_column(name, column.cast(pyarrow.string()) if column.type == pyarrow.null() else column)
    write_arrow(table, file, suffix)


def write_arrow(table: Any, to: Any, suffix: str) -> None:
    """Write a table as Parquet, or as an Arrow file."""
    pyarrow, parquet = load_arrow()
    if suffix == ".parquet":
        parquet.write_table(table, to)
        return
    with pyarrow.ipc.new_file(to if isinstance(to, pyarrow.NativeFile) else str(to), table.schema) as writer:
        writer.write_table(table)


def load_arrow() -> tuple[Any, Any]:
    """Return pyarrow, and its part for Parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("--output: Parquet and Arrow are written by pyarrow: pip install 'glmtune[data]'") from None
    return pyarrow, parquet

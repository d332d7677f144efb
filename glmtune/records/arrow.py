"""Tables of Parquet and Arrow, and what their values are in JSON.

Values are given as protobuf's mapping to JSON has them (https://protobuf.dev/programming-guides/json/): timestamps as
RFC 3339 in UTC, durations in seconds, bytes in base64. Decimals are texts of their scale; maps are lists of pairs, as
their keys need not be texts. Every value of a leaf has such a form, also times that no calendar holds, times of zones
that nobody knows, and texts that are not UTF-8, whose bytes come as halves of characters (`surrogateescape`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glmtune.records.faults import Unreadable
from glmtune.records.fields import UNREAD, Row, clean_name, repeated
from glmtune.runtime import UserError

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".arrow", ".feather")
_ROWS = 100  # that are read at a time
_MOST_BYTES = 2**28  # of these
_MOST_PACKED = 1000
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of a second


class Table(NamedTuple):
    """An open file.

    Attributes:
        schema: of all its columns.
        batches: gives rows, some at a time, of the columns at some places; of all for None.
    """

    schema: pyarrow.Schema
    batches: Callable[[list[int] | None], Iterator[pyarrow.RecordBatch]]


@contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """Open a Parquet file, or one of Arrow's: a file (Feather is one), or a stream, as `datasets` saves them.

    Raises:
        UserError: pyarrow is missing.
        Unreadable: the file is damaged, also where that is found later on.
    """
    try:
        import pyarrow
    except ImportError:
        name = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
        raise UserError(f"{path}: {name} is read by pyarrow: pip install 'glmtune[data]'") from None
    try:
        with _open_parquet(path) if path.suffix.lower() == ".parquet" else _open_arrow(path) as table:
            yield table
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of the file
            raise
        kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
        reason = str(error).partition("\n")[0]
        raise Unreadable(f"not a readable {kind} file: {reason}. Copy or download it again.") from None


@contextmanager
def _open_parquet(path: Path) -> Iterator[Table]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        _check_packing(file.metadata)
        names = file.schema_arrow.names

        def batches(places: list[int] | None) -> Iterator[pyarrow.RecordBatch]:
            # A name with a dot may bring the field of a struct with it, and is not asked for by itself.
            few = None if places is None or any("." in name for name in names) else [names[place] for place in places]
            for batch in file.iter_batches(_ROWS, columns=few):
                _check_size(batch)
                yield batch if places is None or few is not None else batch.select(places)

        yield Table(file.schema_arrow, batches)


def _check_packing(metadata: Any) -> None:
    """See whether a Parquet file is not made to fill the memory: by zstd, a kilobyte may hold gigabytes.

    Raises:
        Unreadable: a part of it is packed more than `_MOST_PACKED` times smaller.
    """
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            whole, packed = column.total_uncompressed_size, column.total_compressed_size
            if whole > _MOST_BYTES and whole > _MOST_PACKED * packed:
                raise Unreadable(f"{packed:,} bytes in it hold {whole:,}, which no texts do. Write it again unpacked.")


def _check_size(batch: pyarrow.RecordBatch) -> None:
    """See whether some rows are not more than any model takes.

    Raises:
        Unreadable: they are.
    """
    if batch.nbytes > _MOST_BYTES:
        raise Unreadable(f"{len(batch)} rows of it hold {batch.nbytes:,} bytes, more than any model takes. Split them.")


@contextmanager
def _open_arrow(path: Path) -> Iterator[Table]:
    from pyarrow import ArrowInvalid, ipc, memory_map

    with memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"

        def reader(places: list[int] | None = None) -> Any:
            source.seek(0)
            options = ipc.IpcReadOptions(included_fields=places)
            return ipc.open_file(source, options=options) if is_file else ipc.open_stream(source, options=options)

        def batches(places: list[int] | None) -> Iterator[pyarrow.RecordBatch]:
            opened = reader(places)
            for batch in map(opened.get_batch, range(opened.num_record_batches)) if is_file else opened:
                for column in batch.columns:
                    try:
                        column.validate(full=True)  # what reads such files trusts their offsets
                    except ArrowInvalid as error:
                        if "UTF8" not in str(error):  # which is told with its row
                            raise
                yield from (batch.slice(start, _ROWS) for start in range(0, len(batch), _ROWS))

        yield Table(reader().schema, batches)


def read_table(path: Path, is_read: Callable[[str], bool] | None = None) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a table, counted from 1; values are those of JSON, or numbers that JSON does not have.

    Args:
        path: the file.
        is_read: tells by its name whether a column is; of the others the rows have the names alone.

    Raises:
        UserError: pyarrow is missing.
        Unreadable: a damaged file, or one with the same column twice.
    """
    read = 0
    with open_table(path) as table:
        names = table.schema.names
        if (twice := repeated([clean_name(name) for name in names])) is not None:
            raise Unreadable(f"two columns are called '{twice}'. Rename one.")
        places = [place for place, name in enumerate(names) if is_read is None or is_read(clean_name(name))]
        for batch in table.batches((places or [0]) if len(places) < len(names) else None):
            columns: list[list[Any]] = [[UNREAD] * len(batch)] * len(names)
            for place, column in zip(places, batch.columns, strict=False):
                try:
                    columns[place] = values_of(column)
                except ValueError as error:
                    raise Unreadable(f"the column '{names[place]}': {error}", read + 1) from None
            for number, cells in enumerate(zip(*columns, strict=True), start=read + 1):
                yield number, dict(zip(names, cells, strict=True))
            read += len(batch)


def read_whole(path: Path) -> pyarrow.Table:
    """Return all of a table, as it is.

    Raises:
        UserError: pyarrow is missing.
        Unreadable: the file is damaged.
    """
    with open_table(path) as table:
        import pyarrow

        return pyarrow.Table.from_batches(table.batches(None), table.schema)


def values_of(array: Any) -> list[Any]:
    """Return the values of an Arrow array in JSON; floats that are no numbers stay floats.

    Raises:
        ValueError: a struct has a field twice.
    """
    import pyarrow

    kinds, kind = pyarrow.types, array.type
    if isinstance(kind, pyarrow.UuidType):
        return [value and str(value) for value in array.to_pylist()]
    if isinstance(kind, pyarrow.BaseExtensionType):
        return values_of(array.storage)
    if kinds.is_dictionary(kind):
        values = values_of(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if kinds.is_struct(kind):
        return _structs(array)
    if kinds.is_map(kind):
        pairs = [list(pair) for pair in zip(values_of(array.keys), values_of(array.items), strict=True)]
        bounds = pairwise(array.offsets.to_pylist())
        return [pairs[a:b] if valid else None for (a, b), valid in zip(bounds, _valid(array), strict=True)]
    if _is_list(kind):
        items, sizes = values_of(array.flatten()), pyarrow.compute.list_value_length(array).to_pylist()
        bounds = pairwise(accumulate((size or 0 for size in sizes), initial=0))
        return [None if size is None else items[a:b] for (a, b), size in zip(bounds, sizes, strict=True)]
    if kinds.is_run_end_encoded(kind):
        return values_of(pyarrow.compute.run_end_decode(array))
    return _leaves(array)


def _valid(array: Any) -> list[bool]:
    valid: list[bool] = array.is_valid().to_pylist()
    return valid


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def _structs(array: Any) -> list[Any]:
    names = [array.type.field(place).name for place in range(array.type.num_fields)]
    if (twice := repeated(names)) is not None:
        raise ValueError(f"the field '{twice}' stands in it twice. Rename one.")
    columns = [values_of(part) for part in array.flatten()]
    rows = zip(*columns, strict=True) if columns else [()] * len(array)
    return [
        dict(zip(names, cells, strict=True)) if valid else None
        for cells, valid in zip(rows, _valid(array), strict=True)
    ]


def _leaves(array: Any) -> list[Any]:
    """Values that hold no others."""
    import pyarrow

    kinds, kind = pyarrow.types, array.type
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind):
        try:
            texts: list[Any] = array.to_pylist()
            return texts
        except UnicodeDecodeError:
            to = {"string": pyarrow.binary(), "large_string": pyarrow.large_binary()}.get(
                str(kind), pyarrow.binary_view()
            )
            return [
                raw if raw is None else raw.decode("utf-8", "surrogateescape") for raw in array.view(to).to_pylist()
            ]
    values: list[Any]
    if kinds.is_timestamp(kind):
        return _times(array.view(pyarrow.timestamp(kind.unit)), kind.unit, "Z" if kind.tz else "")
    if kinds.is_date(kind) or kinds.is_time(kind):
        return _times(array, "d" if kinds.is_date32(kind) else "ms" if kinds.is_date64(kind) else kind.unit)
    values = array.to_pylist() if not kinds.is_duration(kind) else array.view(pyarrow.int64()).to_pylist()
    if kinds.is_duration(kind):
        return [value if value is None else _seconds(value, _UNITS[kind.unit]) for value in values]
    if kinds.is_decimal(kind):
        return [value if value is None else f"{value:f}" for value in values]
    if kinds.is_float16(kind) or kinds.is_float32(kind):  # as short as such a float is written, not as its double
        texts = array.cast(pyarrow.float32()).cast(pyarrow.string()).to_pylist()
        return [text if text is None else float(text) for text in texts]
    return [base64.b64encode(value).decode() if isinstance(value, bytes) else value for value in values]


def _times(array: Any, unit: str, zone: str = "") -> list[str | None]:
    """Times as RFC 3339 writes them; those that it cannot write as a count of their unit."""
    import pyarrow

    texts = array.cast(pyarrow.string()).to_pylist()
    counts = array.view(pyarrow.int32() if array.type.bit_width == 32 else pyarrow.int64()).to_pylist()
    return [
        text and (f"{count} {unit}" if text.startswith("<") else f"{text.replace(' ', 'T')}{zone}")
        for text, count in zip(texts, counts, strict=True)
    ]


def _seconds(count: int, unit: int) -> str:
    """A duration as protobuf writes it: `-1.5s`."""
    whole, part = divmod(abs(count), unit)
    places = len(str(unit)) - 1
    fraction = f".{part:0{places}d}".rstrip("0") if part else ""
    return f"{'-' if count < 0 else ''}{whole}{fraction}s"

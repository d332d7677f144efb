"""What predictions are written as: each suffix what it says, and tables with the columns that they were."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtune.records.files import Line, rows
from glmtune.records.writing import WRITTEN, as_json, as_line, read_given, strict, write_beside, write_rows
from glmtune.runtime import UserError

pyarrow = pytest.importorskip("pyarrow", reason="tables are written by pyarrow")

from pyarrow import parquet  # noqa: E402

NEW = [{"completion": "x", "error": None}, {"completion": None, "error": "e"}]


def read(path: Path) -> list[dict[str, Any]]:
    found = list(rows(str(path)))
    assert all(isinstance(entry, Line) for entry in found), found
    return [entry.given for entry in found if isinstance(entry, Line)]


def refuse(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "NaN"),
        ({"a": [-math.inf, 1.5], "b": {"c": math.inf}}, {"a": ["-Infinity", 1.5], "b": {"c": "Infinity"}}),
        ({"a": None, "b": True, "c": 10**30, "d": "值"}, {"a": None, "b": True, "c": 10**30, "d": "值"}),
    ],
)
def test_lines_are_strict_json(value: Any, expected: Any) -> None:
    assert strict(value) == expected
    assert json.loads(as_line({"a": value}), parse_constant=refuse) == {"a": expected}


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=4)


@pytest.mark.parametrize("suffix", WRITTEN)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), names=st.lists(NAMES, min_size=1, max_size=3, unique=True))
def test_texts_come_back_from_every_kind_of_file(
    suffix: str, data: st.DataObject, names: list[str], tmp_path: Path
) -> None:
    row = st.fixed_dictionaries(dict.fromkeys(names, TEXT))
    records = data.draw(st.lists(row, min_size=1, max_size=3))
    file = tmp_path / f"out{suffix}"
    if suffix in (".jsonl", ".ndjson"):
        file.write_text("".join(as_line(record) + "\n" for record in records), "utf-8")
    else:
        write_rows(records, file, suffix)
    assert read(file) == records


def test_a_json_file_is_one_list(tmp_path: Path) -> None:
    write_rows([{"a": math.nan}, {"b": "\ud800"}], tmp_path / "a.json", ".json")
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse) == [{"a": "NaN"}, {"b": "\ud800"}]


def test_values_of_several_kinds_become_texts(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"prompt": "1", "more": [1], "empty": {}},
        {"prompt": [{"role": "user", "content": "值"}], "empty": {}},
    ]
    for suffix in (".csv", ".tsv", ".parquet", ".arrow"):
        write_rows(given, tmp_path / f"x{suffix}", suffix)
        first, second = read(tmp_path / f"x{suffix}")
        assert first["prompt"] == "1" and json.loads(second["prompt"]) == given[1]["prompt"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_cell_has_no_quotation_marks_that_json_gives_to_what_is_no_number(value: float, tmp_path: Path) -> None:
    write_rows([{"a": value}], tmp_path / "a.csv", ".csv")
    assert read(tmp_path / "a.csv") == [{"a": strict(value)}]


WRITTEN_NUMBERS = "0.12345678901234567890123 1.10 1E5 -0.0 1e999 1e-999 123456789012345678901234567890"


@pytest.mark.parametrize("number", WRITTEN_NUMBERS.split())
@pytest.mark.parametrize("suffix", WRITTEN)
def test_numbers_come_back_as_they_were_written(suffix: str, number: str, tmp_path: Path) -> None:
    line = f'{{"prompt": "1", "x": {number}, "deep": {{"a": [{number}, true, null]}}}}'
    (tmp_path / "in.jsonl").write_text(line)
    [record] = as_json(read(tmp_path / "in.jsonl"))
    assert as_line(record) == line and strict(record) == record
    if suffix in (".jsonl", ".ndjson"):
        return
    write_rows([record], tmp_path / f"out{suffix}", suffix)
    [again] = read(tmp_path / f"out{suffix}")
    if suffix in (".csv", ".tsv"):
        assert again == {"prompt": "1", "x": number, "deep": f'{{"a": [{number}, true, null]}}'}
    elif suffix == ".json":
        assert as_line(again) == line
    elif number in ("1.10", "1E5", "-0.0"):  # a column of floats holds them
        assert again["x"] == float(number)
    else:
        assert again["x"] == number


@pytest.mark.parametrize(
    ("value", "expected"),
    [((1, 2), [1, 2]), ({1: Decimal("1.50")}, {"1": "1.50"}), ([True, None, "值"], [True, None, "值"])],
)
def test_what_json_has_no_form_for_becomes_a_text(value: Any, expected: Any) -> None:
    assert as_json(value) == expected and type(as_json(value)) is type(expected)


LEAVES = [
    pyarrow.int8(),
    pyarrow.uint64(),
    pyarrow.bool_(),
    pyarrow.float32(),
    pyarrow.float64(),
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.binary(),
    pyarrow.binary(3),
    pyarrow.decimal128(20, 4),
    pyarrow.date32(),
    pyarrow.time64("us"),
    pyarrow.timestamp("us"),
    pyarrow.timestamp("ns", "Asia/Shanghai"),
    pyarrow.timestamp("us", "Mars/Phobos"),
    pyarrow.duration("ms"),
    pyarrow.null(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
]


def nested(inner: Any) -> Any:
    return (
        inner.map(pyarrow.list_)
        | inner.map(pyarrow.large_list)
        | inner.map(lambda kind: pyarrow.struct([("a", kind), ("b", pyarrow.string())]))
        | inner.filter(lambda kind: kind != pyarrow.null()).map(lambda kind: pyarrow.map_(pyarrow.string(), kind))
    )


def column(kind: Any, bits: list[int]) -> Any:
    """Three values of a type, one of them null, that depend on some numbers."""
    types = pyarrow.types
    if types.is_struct(kind):
        parts = [column(kind.field(place).type, bits) for place in range(kind.num_fields)]
        return pyarrow.StructArray.from_arrays(parts, fields=list(kind), mask=pyarrow.array([False, True, False]))
    if types.is_map(kind):
        keys = pyarrow.array(["a", "b", "a"])
        return pyarrow.MapArray.from_arrays([0, None, 1, 3], keys, column(kind.item_type, bits), type=kind)
    if types.is_list(kind) or types.is_large_list(kind):
        make = pyarrow.ListArray if types.is_list(kind) else pyarrow.LargeListArray
        return make.from_arrays([0, None, 1, 3], column(kind.value_type, bits), type=kind)
    if types.is_null(kind):
        return pyarrow.nulls(3)
    if types.is_temporal(kind):
        wide = pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()
        most = 2**16 if types.is_time(kind) else 2**31
        return pyarrow.array([bits[0] % most, None, bits[1] % most], wide).view(kind)
    plain: list[Any] = [bits[0], None, bits[1]]
    if types.is_boolean(kind):
        plain = [bits[0] % 2 == 0, None, True]
    elif types.is_fixed_size_binary(kind):
        plain = [bits[0].to_bytes(3, "big"), None, b"abc"]
    elif types.is_decimal(kind):
        plain = [Decimal(bits[0]) / 10_000, None, Decimal(bits[1])]
    elif types.is_binary(kind):
        plain = [bits[0].to_bytes(3, "big"), None, b""]
    elif types.is_dictionary(kind) or not (types.is_integer(kind) or types.is_floating(kind)):
        plain = [str(bits[0]), None, "值"]
    elif kind == pyarrow.int8():
        plain = [bits[0] % 100, None, -128]
    return pyarrow.array(plain, kind)


BITS = st.lists(st.integers(0, 2**23), min_size=2, max_size=2)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.recursive(st.sampled_from(LEAVES), nested, max_leaves=3), min_size=1, max_size=3), bits=BITS)
def test_columns_keep_values_and_types(suffix: str, kinds: list[Any], bits: list[int], tmp_path: Path) -> None:
    columns = {f"c{place}": column(kind, bits) for place, kind in enumerate(kinds)}
    table = pyarrow.table(columns).replace_schema_metadata({"own": "kept"})
    parquet.write_table(table, tmp_path / "in.parquet")
    given = read_given(str(tmp_path / "in.parquet"), suffix)
    added = [{"completion": text, "error": None} for text in ("x", None, "z")]
    write_beside(given, added, tmp_path / f"out{suffix}", suffix)
    again = read_given(str(tmp_path / f"out{suffix}"), ".arrow")
    assert again.select(list(columns)).schema.equals(table.schema) and again.schema.metadata[b"own"] == b"kept"
    assert again.select(list(columns)).equals(table)
    assert again.column("completion").to_pylist() == ["x", None, "z"]
    assert again.schema.field("error").type == pyarrow.string()
    for row in read(tmp_path / f"out{suffix}"):  # and all of it has its form in JSON
        json.loads(as_line(row), parse_constant=refuse)


def test_tables_of_a_folder_are_one(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"a": pyarrow.array([1], pyarrow.int8())}), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"a": pyarrow.array([2], pyarrow.int64()), "b": ["x"]}), tmp_path / "b.parquet")
    given = read_given(str(tmp_path), ".parquet")
    assert given.to_pydict() == {"a": [1, 2], "b": [None, "x"]}
    parquet.write_table(pyarrow.table({"a": [{"c": 1}]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"a '\.parquet' file cannot hold what .* holds: .*Name it \.jsonl"):
        read_given(str(tmp_path), ".parquet")
    (tmp_path / "d.jsonl").write_text("{}\n")
    assert read_given(str(tmp_path), ".parquet") is None and read_given(str(tmp_path / "a.parquet"), ".csv") is None


def test_what_parquet_has_no_form_for_is_told_before(tmp_path: Path) -> None:
    intervals = pyarrow.table({"a": pyarrow.array([(1, 2, 3)], pyarrow.month_day_nano_interval())})
    with pyarrow.ipc.new_file(str(tmp_path / "a.arrow"), intervals.schema) as writer:
        writer.write_table(intervals)
    with pytest.raises(UserError, match=r"cannot hold what .*a\.arrow holds: Unhandled type.*Name it \.jsonl"):
        read_given(str(tmp_path / "a.arrow"), ".parquet")
    assert read_given(str(tmp_path / "a.arrow"), ".arrow").equals(intervals)
    assert json.loads(as_line(read(tmp_path / "a.arrow")[0])) == {"a": [1, 2, 3]}

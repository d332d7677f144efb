"""Tables of Parquet and Arrow: every type of theirs in JSON, what is not read, and what is broken."""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtune.config import DataSettings
from glmtune.records import Fault, read_all, read_examples, read_questions
from glmtune.records.fields import UNREAD
from glmtune.records.files import Line, rows
from glmtune.records.formats import fields_read
from glmtune.records.reading import read
from glmtune.runtime import UserError

pyarrow = pytest.importorskip("pyarrow", reason="tables are read by pyarrow")

from pyarrow import parquet  # noqa: E402

from glmtune.records.arrow import values_of  # noqa: E402

ROWS = [{"prompt": f"问 {i}", "target": f"答\n{i}"} for i in range(5)]
KINDS = ["a.parquet", "a.arrow", "a.feather", "stream.arrow"]
MARS = pyarrow.timestamp("us", tz="Mars/Phobos")


def write(path: Path, table: Any) -> str:
    """A table as Parquet, Arrow's file, or its stream, as `datasets` saves it."""
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        new = pyarrow.ipc.new_stream if path.name.startswith("stream") else pyarrow.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    return str(path)


def raw_text(*values: bytes | None) -> Any:
    """A column of texts that may not be UTF-8."""
    return pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())


def counted(kind: Any, *counts: int | None) -> Any:
    """A column of times that are counted in their unit."""
    return pyarrow.array(counts, pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()).view(kind)


def faults_of(source: str) -> list[str]:
    return [str(entry).removeprefix(f"{source}: ") for entry in read(source) if isinstance(entry, Fault)]


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_every_kind_of_file(name: str, tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS * 500)
    found = list(rows(write(tmp_path / name, table)))
    assert [(entry.line, entry.row) for entry in found if isinstance(entry, Line)] == list(enumerate(ROWS * 500, 1))
    for empty in (table.slice(0, 0), pyarrow.table({}), table.schema.empty_table()):
        [fault] = rows(write(tmp_path / name, empty))
        assert isinstance(fault, Fault) and fault.message == "no records"


def test_what_rows_have_only_because_others_have_it_is_not_seen(tmp_path: Path) -> None:
    conversations = [
        {"messages": [{"role": "user", "content": "q", "name": None}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q", "name": "x"}, {"role": "assistant", "content": "b"}]},
    ]
    file = write(tmp_path / "b.parquet", pyarrow.Table.from_pylist(conversations))
    assert [record.target for record in read_all(file)] == ["a", "b"]
    first, _ = rows(file)
    assert isinstance(first, Line) and first.given == {**conversations[0], "messages": first.given["messages"]}
    assert "name" not in first.row["messages"][0] and first.given["messages"][1]["name"] is None


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (pyarrow.array(["a", None], pyarrow.large_string()), ["a", None]),
        (pyarrow.array(["a", None], pyarrow.string_view()), ["a", None]),
        (pyarrow.array(["b", "a", None, "b"]).dictionary_encode(), ["b", "a", None, "b"]),
        (pyarrow.array([None, None]), [None, None]),
        (pyarrow.array([2**64 - 1, 0], pyarrow.uint64()), [2**64 - 1, 0]),
        (pyarrow.array([True, None]), [True, None]),
        (pyarrow.array([0.1, None, 1e20], pyarrow.float32()), [0.1, None, 1e20]),
        (pyarrow.array([0.5], pyarrow.float16()), [0.5]),
        (pyarrow.array([0.1, 5.0, -0.0]), [0.1, 5.0, -0.0]),
        (pyarrow.array([Decimal("1.50"), Decimal("0")], pyarrow.decimal128(20, 10)), ["1.5000000000", "0.0000000000"]),
        (pyarrow.array([Decimal("15000")], pyarrow.decimal128(5, -3)), ["15000"]),
        (pyarrow.array([b"\xff\x00", None]), ["/wA=", None]),
        (pyarrow.array([b"ab"], pyarrow.binary(2)), ["YWI="]),
        (counted(pyarrow.timestamp("us"), 1_000_001, None), ["1970-01-01T00:00:01.000001", None]),
        (counted(pyarrow.timestamp("ns", tz="Asia/Shanghai"), 1), ["1970-01-01T00:00:00.000000001Z"]),
        (counted(MARS, 0), ["1970-01-01T00:00:00.000000Z"]),
        (counted(pyarrow.timestamp("s"), 2**62), [f"{2**62} s"]),
        (counted(pyarrow.date32(), 19_000, 2**31 - 1), ["2022-01-08", "2147483647 d"]),
        (counted(pyarrow.date64(), 86_400_000), ["1970-01-02"]),
        (counted(pyarrow.time64("us"), 1, 10**15), ["00:00:00.000001", f"{10**15} us"]),
        (counted(pyarrow.duration("ms"), -1500, 2000, None), ["-1.5s", "2s", None]),
        (pyarrow.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}]).slice(1), [None, {"a": None, "b": None}]),
        (pyarrow.array([[1], None, [2, 3], []]).slice(1), [None, [2, 3], []]),
        (pyarrow.array([[1, 2], None], pyarrow.list_(pyarrow.int8(), 2)), [[1, 2], None]),
        (pyarrow.array([[1], [2, 3]], pyarrow.list_view(pyarrow.int8())), [[1], [2, 3]]),
        (
            pyarrow.array([[("a", 1), ("a", 2)], None, []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            [[["a", 1], ["a", 2]], None, []],
        ),
        (pyarrow.array([b"0" * 16], pyarrow.uuid()), ["30303030-3030-3030-3030-303030303030"]),
        (pyarrow.array(["{}"], pyarrow.json_()), ["{}"]),
        (pyarrow.RunEndEncodedArray.from_arrays([2, 3], pyarrow.array(["a", "b"])), ["a", "a", "b"]),
        (raw_text(b"a\xffb", None, "值".encode()), ["a\udcffb", None, "值"]),
        (pyarrow.ListArray.from_arrays([0, 1], raw_text(b"\xff")), [["\udcff"]]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)
def test_values_in_json(array: Any, values: list[Any]) -> None:
    assert values_of(array) == values
    assert values_of(pyarrow.concat_arrays([array, array]).slice(len(array))) == values


def leaves() -> st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]]:
    """(type, values) of types whose values are in JSON what they are in Python."""
    whole = st.integers(-(2**31), 2**31 - 1)
    return st.sampled_from(
        [
            (pyarrow.int64(), whole),
            (pyarrow.string(), st.text(st.characters(codec="utf-8"), max_size=5)),
            (pyarrow.large_string(), st.text(st.characters(codec="utf-8"), max_size=5)),
            (pyarrow.bool_(), st.booleans()),
            (pyarrow.float64(), st.floats(allow_nan=False, allow_infinity=False)),
            (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), st.sampled_from(["a", "b", ""])),
        ]
    )


def nested(inner: Any) -> Any:
    def lists(found: Any) -> Any:
        return (pyarrow.list_(found[0]), st.lists(st.none() | found[1], max_size=3))

    def structs(found: Any) -> Any:
        return (
            pyarrow.struct([("a", found[0]), ("b", pyarrow.int64())]),
            st.fixed_dictionaries({"a": st.none() | found[1], "b": st.none() | st.integers(0, 9)}),
        )

    return inner.map(lists) | inner.map(structs)


@given(data=st.data(), found=st.recursive(leaves(), nested, max_leaves=4))
def test_plain_values_are_those_of_python(data: st.DataObject, found: Any) -> None:
    values = data.draw(st.lists(st.none() | found[1], max_size=6))
    start = data.draw(st.integers(0, len(values)))
    assert values_of(pyarrow.array(values, found[0]).slice(start)) == values[start:]


@given(
    counts=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5),
    kind=st.sampled_from(
        [pyarrow.timestamp(unit, tz) for unit in ("s", "ms", "us", "ns") for tz in (None, "UTC", "Mars/Phobos")]
        + [pyarrow.duration(unit) for unit in ("s", "ms", "us", "ns")]
        + [pyarrow.time64("us"), pyarrow.time64("ns"), pyarrow.date64()]
    ),
)
def test_every_time_has_a_text_of_its_own(counts: list[int | None], kind: Any) -> None:
    found = values_of(counted(kind, *counts))
    assert [value is None for value in found] == [count is None for count in counts]
    assert all(isinstance(value, str) for value in found if value is not None)
    if not pyarrow.types.is_date64(kind):  # of which the time of day is none
        assert len(set(found)) == len(set(counts))


@pytest.mark.parametrize("name", KINDS)
def test_columns_that_nobody_asks_for_are_not_read(name: str, tmp_path: Path) -> None:
    """Whatever is in them; messages name them all the same, and a wrong name is offered."""
    strange = {
        "when": counted(MARS, 0),
        "far": counted(pyarrow.timestamp("us"), 2**62),
        "twice": pyarrow.StructArray.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"]),
        "raw": raw_text(b"\xff"),
    }
    file = write(tmp_path / name, pyarrow.table({"prompt": ["q"], "target": ["a"], **strange}))
    assert [(example.prompt, example.target) for example in read_all(file)] == [("q", "a")]
    [line] = rows(file, is_read=fields_read().__contains__)
    assert isinstance(line, Line) and all(line.row[column] is UNREAD for column in strange)
    wrong = write(tmp_path / f"stream{name}", pyarrow.table({"frage": ["q"], **strange}))
    [told] = faults_of(wrong)
    assert told.endswith(
        "line 1: 'prompt' is missing, empty or not a text; the record has frage, when, far, twice, raw. No known "
        "format has these fields. Map yours: data.columns.prompt=FIELD data.columns.target=FIELD"
    )
    assert read_examples(file, DataSettings(columns={"prompt": "target", "target": "prompt"}))[0].prompt == "a"


@pytest.mark.parametrize("names", [("a", "a"), ("a", " a"), ("a", "\ufeffa")])
@pytest.mark.parametrize("name", KINDS)
def test_columns_twice(name: str, names: tuple[str, str], tmp_path: Path) -> None:
    file = write(tmp_path / name, pyarrow.table([["x"], ["y"]], names=list(names)))
    assert faults_of(file) == ["two columns are called 'a'. Rename one."]


@pytest.mark.parametrize("name", KINDS)
def test_texts_that_are_not_utf_8_are_told_with_row_and_column(name: str, tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["1", "2", "3"], "target": raw_text(b"a", "值".encode()[:2], b"b")})
    file = write(tmp_path / name, table)
    [told] = faults_of(file)
    assert told.endswith(
        "line 2: 'target' is not UTF-8 text: byte 0xe5 behind ''. Write the file again from its source."
    )
    assert [example.prompt for example in read_all(file, on_error="skip")] == ["1", "3"]


def test_a_struct_with_a_field_twice_is_refused_where_it_is_read(tmp_path: Path) -> None:
    twice = pyarrow.StructArray.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    file = write(tmp_path / "a.arrow", pyarrow.table({"prompt": ["q"], "target": ["a"], "facts": twice}))
    assert faults_of(file) == [f"{file}, line 1: the column 'facts': the field 'a' stands in it twice. Rename one."]
    [fault] = read_questions(file)
    assert isinstance(fault, Fault) and fault.ends_file


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_told(name: str, tmp_path: Path) -> None:
    """Cut off, overwritten, or something else: faults, or other values, and never a traceback."""
    whole = Path(write(tmp_path / name, pyarrow.Table.from_pylist(ROWS * 20))).read_bytes()
    damaged, rng = tmp_path / f"stream_{name}", random.Random(0)
    for number in range(60):
        content = bytearray(whole[: rng.randrange(len(whole))] if number % 3 == 0 else whole)
        if number % 3 == 1:
            content[rng.randrange(8, len(content))] ^= 0xFF
        elif number % 3 == 2:
            place = rng.randrange(8, len(content))
            content[place : place + 64] = bytes(64)
        damaged.write_bytes(content)
        for entry in rows(str(damaged)):
            assert isinstance(entry, Line) or entry.file == str(damaged)
    damaged.write_bytes(b"no")
    assert "Copy or download it again" in faults_of(str(damaged))[0]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2000))
def test_a_file_without_its_end_is_no_table(place: int, tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "a.parquet", pyarrow.Table.from_pylist(ROWS))).read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: min(place, len(whole) - 1)])
    with pytest.raises(UserError, match=r"b\.parquet: not a readable Parquet file"):
        read_all(str(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (pyarrow.array([7]), "7"),
        (pyarrow.array([2**64 - 1], pyarrow.uint64()), "18446744073709551615"),
        (pyarrow.array([True]), "true"),
        (pyarrow.array([0.1], pyarrow.float32()), "0.1"),
        (pyarrow.array([5.0]), "5.0"),
        (pyarrow.array([Decimal("1.50")], pyarrow.decimal128(9, 2)), "1.50"),
    ],
)
@pytest.mark.parametrize("name", KINDS)
def test_numbers_to_learn_are_texts(name: str, array: Any, text: str, tmp_path: Path) -> None:
    """As JSON writes them: they are answers like others."""
    file = write(tmp_path / name, pyarrow.table({"prompt": ["q"], "target": array}))
    assert [example.target for example in read_all(file)] == [text]

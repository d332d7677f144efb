"""Files of every kind, whole and broken."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtune.examples import Example
from glmtune.records import Fault, read, read_all, tables
from glmtune.records.files import Line, rows
from glmtune.runtime import UserError

ROWS = [{"prompt": f"问 {i}", "target": f"答\n{i}"} for i in range(5)]


def lines(*records: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def faults_of(source: str, encoding: str = "utf-8") -> list[tuple[int | None, str]]:
    return [(entry.line, entry.message) for entry in rows(source, encoding) if isinstance(entry, Fault)]


def rows_in(source: str, encoding: str = "utf-8") -> list[dict[str, Any]]:
    entries = list(rows(source, encoding))
    assert not [entry for entry in entries if isinstance(entry, Fault)]
    return [entry.row for entry in entries if isinstance(entry, Line)]


def as_csv(records: list[dict[str, Any]], delimiter: str = ",") -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(*ROWS)),
        ("a.ndjson", lines(*ROWS)),
        ("a.jsonl", lines(*ROWS) + "\n \n"),  # empty lines at the end
        ("a.jsonl", lines(*ROWS).rstrip()),
        ("a.jsonl", "\ufeff" + lines(*ROWS)),
        ("a.jsonl", lines(*ROWS).replace("\n", "\r\n")),
        ("a.jsonl", lines(*ROWS).replace("\n", "\r")),
        ("a.jsonl.gz", gzip.compress(lines(*ROWS).encode(), mtime=0)),
        ("a.csv.gz", gzip.compress(as_csv(ROWS).encode(), mtime=0)),
        ("A.JSON.GZ", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("a.json", json.dumps(ROWS, indent=1).replace("\n", "\r")),
        ("a.csv", as_csv(ROWS).replace("\r\n", "\r")),
        ("a.csv", as_csv(ROWS) + "\r\n\r\n"),  # empty lines at the end
        ("records", lines(*ROWS)),
        ("a.txt", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("a.json", "\ufeff" + json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("a.json", lines(*ROWS)),  # as ADGEN and BELLE are called
        ("a.json", "\n".join(json.dumps(row, indent=4) for row in ROWS)),  # as Math23K is
        ("a.csv", as_csv(ROWS)),
        ("a.csv", "\ufeff" + as_csv(ROWS)),
        ("a.csv", as_csv(ROWS, ";")),
        ("a.tsv", as_csv(ROWS, "\t")),
    ],
)
def test_whole_files(name: str, content: str | bytes, tmp_path: Path) -> None:
    assert rows_in(write(tmp_path / name, content)) == ROWS


def test_paragraphs_of_plain_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "\n \n春天\r\n来了\n\n\n{not JSON}\nend")
    entries = [(entry.line, entry.row) for entry in rows(file) if isinstance(entry, Line)]
    assert entries == [(3, {"text": "春天\n来了"}), (7, {"text": "{not JSON}\nend"})]
    assert faults_of(write(tmp_path / "b.txt", "\n\n"))[0][1] == "no records"
    assert "GBK would read it" in faults_of(write(tmp_path / "c.txt", "a\n\n春天来了".encode("gb18030")))[-1][1]
    assert rows_in(str(tmp_path / "a.txt")) == rows_in(str(write_alone(tmp_path / "texts" / "a.txt", file).parent))


def write_alone(path: Path, file: str) -> Path:
    """A copy in a folder of its own, where texts are records; beside other records they are notes."""
    write(path, Path(file).read_bytes())
    return path


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    files = {"a.jsonl": lines(*ROWS), "a.json": json.dumps(ROWS, indent=1), "a.csv": as_csv(ROWS)}
    for name, content in files.items():
        for entry in rows(write(tmp_path / name, content)):
            assert isinstance(entry, Line)
            following = "\n".join(content.replace("\r\n", "\n").split("\n")[entry.line - 1 :])
            number = entry.row["prompt"].split()[1]
            assert f" {number}" in following and f" {int(number) - 1}" not in following


@pytest.mark.parametrize(
    ("missing", "source"), [("pyarrow", "a.parquet"), ("pyarrow", "a.arrow"), ("datasets", "someone/something")]
)
def test_missing_libraries(missing: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.parquet", "a.arrow"):
        write(tmp_path / name, "x")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{missing}: pip install 'glmtune\[data\]'"):
        list(rows(source))


def test_names_that_only_seem_to_differ(tmp_path: Path) -> None:
    """Blanks and byte order marks around a name are not seen; what is written again has them all the same."""
    file = write(tmp_path / "a.jsonl", lines({"\ufeffprompt": "q", "target ": "a"}, {" a": 1, "a": 2}))
    first, second = rows(file)
    assert isinstance(first, Line) and isinstance(second, Line)
    assert first.row == {"prompt": "q", "target": "a"} and first.given == {"\ufeffprompt": "q", "target ": "a"}
    assert second.row == second.given == {" a": 1, "a": 2}


def test_packed_files_in_folders_are_read_or_told(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl.gz", gzip.compress(lines(*ROWS).encode(), mtime=0))
    assert rows_in(str(tmp_path)) == ROWS
    write(tmp_path / "b.jsonl.zst", b"(\xb5/\xfd rest")
    assert [message for _, message in faults_of(str(tmp_path))] == ["packed with zstd. Unpack it with unzstd."]


def test_folders(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", lines(*ROWS[2:]))
    write(tmp_path / "a" / "a.csv", as_csv(ROWS[:2]))
    for name in ("notes.txt", ".hidden.jsonl", "b.jsonl.skipped.jsonl", ".git/x.json"):
        write(tmp_path / name, "{")
    assert rows_in(str(tmp_path)) == ROWS
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="without files of records"):
        list(rows(str(tmp_path / "empty")))


def test_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="data sets of the hub need datasets")
    monkeypatch.chdir(tmp_path)
    asked = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        asked.append((name, config, split, streaming))
        if name == "no/body":
            raise ValueError("Dataset 'no/body' doesn't exist on the Hub\nmore")
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(tables, "check_card", lambda name: None)  # tests/security/test_network.py tries it
    assert [record.source.line for record in read_all("some/one")] == [1, 2, 3, 4, 5]
    read_all("some/one@main:test")
    assert asked == [("some/one", None, "train", True), ("some/one", "main", "test", True)]
    with pytest.raises(UserError, match=r"no/body: there is no such file here.*doesn't exist on the Hub\. Write"):
        read_all("no/body")


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("a.jsonl", "", None, "no records"),
        ("a.json", "", None, "no records"),
        ("a.json", " [ ] ", None, "no records"),
        ("a.csv", "", None, "no records"),
        ("a.csv", "prompt,target\n", None, "no records"),
        ("a.jsonl", "\n\n", 1, "empty; every line"),
        ("a.jsonl", lines(ROWS[0]) + "\n" * 20000 + lines(ROWS[1]), 2, "more than 10,000 empty lines in a row"),
        ("a.jsonl", lines(ROWS[0]) + "\n" + lines(ROWS[1]), 2, "empty; every line"),
        ("a.jsonl", '{"prompt": 1', 1, "not JSON: .* One JSON object a line"),
        ("a.jsonl", "[\n{}]", 1, "Name the file .json"),
        ("a.jsonl", "[1]\n", 1, "a list, not a JSON object"),
        ("a.jsonl", "3\n", 1, "a number, not a JSON object"),
        ("a.jsonl", "[" * 100_000 + "\n", 1, "not JSON"),
        ("a.jsonl", '{"a": 1, "b": {"c": 1, "c": 2}}\n', 1, "the field 'c' stands in it twice"),
        ("a.json", '[{"a": 1},\n{"a": 1, "a": 2}]', 2, "the field 'a' stands in it twice"),
        ("a.jsonl", '{"a": "\0"}\n', 1, "NUL bytes"),
        ("a.json", '[\n{"a": "\0"}]', 2, "NUL bytes"),
        ("a.json", '[\n{"a": 1},\n{"a" 2}\n]', 3, "not JSON: Expecting ':' delimiter"),
        ("a.json", '[{"a": 1},\n{"a": 2}', 2, "the file is cut off"),
        ("a.json", '[{"a": 1},\n{"a": "2', 2, "not JSON: Unterminated"),
        ("a.json", '[{"a": 1}]\n{"a": 2}', 2, "more text stands behind the end"),
        ("a.json", '[{"a": 1}, 7]', 1, "a number, not a JSON object"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", 3, r"3 cells for 2 columns \(a, b\)"),
        ("a.csv", "a,b\n1,2\n1\n", 3, r"1 cell for 2 columns \(a, b\)"),
        ("a.csv", 'a,b\n1,"2\n', 2, "not CSV: .* quotation mark"),
        ("a.csv", "a," * 10_000_000 + "\n1,2\n", 1, "its first line has more than .* and no names of columns"),
        ("a.csv", "a,a\n1,2\n", 1, "two columns are called 'a'"),
        ("a.csv", "a,\ufeffa \n1,2\n", 1, "two columns are called 'a'"),
        ("a.jsonl", lines(ROWS[0]).encode("utf-16"), None, r"UTF-16 text\. Set data\.encoding=utf-16"),
        ("a.jsonl", b"PK\x03\x04 rest", None, "Excel"),
        ("a.jsonl", b"\x1f\x8b rest", None, "packed with gzip, and damaged"),
        ("a.jsonl.gz", gzip.compress(lines(*ROWS).encode(), mtime=0)[:-12], None, "packed with gzip, and damaged"),
        ("a.jsonl.zst", b"(\xb5/\xfd rest", None, "unzstd"),
        ("a.csv.bz2", b"BZh rest", None, "bunzip2"),
        ("a.csv", b"ARROW1 rest", None, r"Name it \.arrow"),
        ("a.jsonl", lines(*ROWS).encode("gb18030"), 1, "GBK would read it: .*问 0.*data.encoding=gb18030.*iconv"),
        ("a.json", json.dumps(ROWS, ensure_ascii=False).encode("gb18030"), 1, "GBK would read it"),
        ("a.csv", as_csv(ROWS).encode("gb18030"), 2, "GBK would read it"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff\xff"}\n', 2, "not UTF-8 text, nor GBK: byte 0xff"),
        ("a.xml", "<a/>", None, r"'\.xml' files are not read\..*Known: \.jsonl"),
    ],
)
def test_bad_files(name: str, content: str | bytes, line: int | None, message: str, tmp_path: Path) -> None:
    told = faults_of(write(tmp_path / name, content))
    assert told[0][0] == line and re.search(message, told[0][1]), told
    assert len(told) <= 2


def test_other_encodings(tmp_path: Path) -> None:
    for encoding in ("gb18030", "utf-16", "big5"):
        files = {
            "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
            "a.json": json.dumps(ROWS, ensure_ascii=False),
            "a.csv": as_csv(ROWS),
        }
        for name, content in files.items():
            assert rows_in(write(tmp_path / name, content.replace("问", "文").encode(encoding)), encoding)
    source = write(tmp_path / "b.jsonl", lines(*ROWS).encode())
    assert "not" in faults_of(source, "ascii")[0][1] and "data.encoding" in faults_of(source, "ascii")[0][1]


def test_huge_records(tmp_path: Path) -> None:
    huge = {"prompt": "q" * 10_000_000, "target": "a"}
    told = faults_of(write(tmp_path / "a.jsonl", lines(ROWS[0], huge, ROWS[1])))
    assert told == [(2, told[0][1])] and "more than 2,000,000 characters" in told[0][1]
    assert len([e for e in read(str(tmp_path / "a.jsonl")) if isinstance(e, Example)]) == 2
    assert "more than 2,000,000 characters" in faults_of(write(tmp_path / "a.json", json.dumps([huge])))[0][1]
    assert "field larger" in faults_of(write(tmp_path / "a.csv", as_csv([huge])))[0][1]


def test_long_lists_are_read_in_pieces(tmp_path: Path) -> None:
    records = [{"prompt": f"{i} " + "长" * (i % 700), "target": "a"} for i in range(2000)]
    assert rows_in(write(tmp_path / "a.json", json.dumps(records, ensure_ascii=False))) == records
    assert rows_in(write(tmp_path / "b.json", json.dumps(records))) == records
    broken = json.dumps(records, indent=1).replace('"target"', '"target', 1)
    assert faults_of(write(tmp_path / "c.json", broken))[0][0] in (4, 5)


def test_no_such_file(tmp_path: Path) -> None:
    write(tmp_path / "poems.jsonl", lines(*ROWS))
    with pytest.raises(UserError, match=r"poem\.jsonl: no such file\. Did you mean '/.*/poems\.jsonl'"):
        list(rows(str(tmp_path / "poem.jsonl")))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.fixed_dictionaries({"prompt": TEXT, "target": TEXT}), min_size=1, max_size=8))
def test_what_is_written_is_read(records: list[dict[str, str]], tmp_path: Path) -> None:
    written = {
        "a.jsonl": lines(*records),
        "a.json": json.dumps(records, ensure_ascii=False),
        "b.json": json.dumps(records, indent=2),
        "a.csv": as_csv(records),
        "a.tsv": as_csv(records, "\t"),
    }
    for name, content in written.items():
        assert rows_in(write(tmp_path / name, content)) == records, name


@pytest.mark.parametrize(("opens", "closes"), [('{"a": ', "}"), ("[", "]")])
def test_a_deep_record_is_a_fault(tmp_path: Path, opens: str, closes: str) -> None:
    file = tmp_path / "a.jsonl"
    for levels, is_read in ((99, True), (100, False), (900, False)):
        file.write_text(f'{{"prompt": "1", "target": "2", "x": {opens * levels}1{closes * levels}}}\n')
        [found] = rows(str(file))
        assert isinstance(found, Line) == is_read
        assert is_read or "nested more than 100 levels deep" in str(found)

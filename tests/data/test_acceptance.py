"""Records that a template does not take: told by their lines, or left out, wherever they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.config import DataSettings
from glmtune.data import DrawnExamples
from glmtune.data.acceptance import accepted
from glmtune.data.encoder import Encoder
from glmtune.data.table import encode_records
from glmtune.records import read_examples
from glmtune.records.faults import add_skipped
from glmtune.runtime import UserError, read_json_lines

GEMMA = Path(__file__).parents[1] / "golden" / "foreign_templates" / "gemma.jinja"


@pytest.fixture
def gemma(chatml: Any) -> Any:
    chatml.chat_template = GEMMA.read_text(encoding="utf-8")
    return chatml


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.jsonl"
    rows = [{"prompt": f"{n}?", "response": "a", **({"system": "s"} if n % 2 else {})} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_all_that_are_refused_are_told_together(file: Path, gemma: Any) -> None:
    examples = read_examples(str(file))
    told = r"some\.jsonl: 3 faults:(\n  .*line [246]: .*System role not supported.*){3}\nMend them, or .*on_error=skip"
    with pytest.raises(UserError, match=told):
        encode_records(examples, Encoder(gemma), DataSettings(), "The examples")
    with pytest.raises(UserError, match=told):
        accepted(examples, gemma, DataSettings())


def test_they_are_left_out_on_request(file: Path, gemma: Any) -> None:
    examples = read_examples(str(file))
    skip = DataSettings(on_error="skip")
    for _ in range(2):
        with pytest.warns(
            UserWarning, match=r"some\.jsonl: 3 records that the chat template does not take are left out"
        ):
            kept = accepted(examples, gemma, skip)
        assert [example.source.line for example in kept if example.source] == [1, 3, 5]
    lines = [record["line"] for _, record in read_json_lines(file.with_name("some.jsonl.skipped.jsonl"))]
    assert lines == [2, 4, 6]
    with pytest.raises(UserError, match="All of these are records that the chat template does not take"):
        accepted(examples[1::2], gemma, skip)


def test_what_was_skipped_before_stays(file: Path, gemma: Any) -> None:
    with file.open("a", encoding="utf-8") as more:
        more.write('{"prompt": "x"}\n')
    examples = read_examples(str(file), DataSettings(on_error="skip"))
    with pytest.warns(UserWarning):
        accepted(examples, gemma, DataSettings(on_error="skip"))
    lines = [record["line"] for _, record in read_json_lines(file.with_name("some.jsonl.skipped.jsonl"))]
    assert lines == [7, 2, 4, 6]
    assert add_skipped(str(file), []) == file.with_name("some.jsonl.skipped.jsonl")


def test_what_is_drawn_stays(gemma: Any) -> None:
    drawn = DrawnExamples(None, 3, 0)  # type: ignore[arg-type]  # of which nothing is drawn
    assert accepted(drawn, gemma, DataSettings()) is drawn

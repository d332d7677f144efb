"""`predict`: every record again, in order, as it is answered."""

import json
import math
import os
import shutil
import stat
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import glmtune
from glmtune import prediction
from glmtune.commands import predict
from glmtune.config import load_recipe
from glmtune.execution import Run
from glmtune.inference.choosing import Choice
from glmtune.inference.completion import Completion
from glmtune.inference.conversation import Conversation, Exchange
from glmtune.inference.engine import Engine
from glmtune.messages import make_tool_call
from glmtune.models import loading
from glmtune.records import Fault, Question, read_examples, read_questions
from glmtune.records import output as output_file
from glmtune.records.files import rows as file_rows
from glmtune.records.writing import read_given, write_arrow, write_rows
from glmtune.runtime import UserError

PROMPTS = ["1+2=", "12.5+7", "3", "99.25-1.75*3=", "问:1+1", "100/7=", "5*5"]


@pytest.fixture
def run(tiny_run: Run) -> str:
    return str(tiny_run.folder.path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_record_again_with_its_completion(
    run: str, tiny: tuple[Any, Any], write_records: Any, tmp_path: Path
) -> None:
    records = [{"prompt": text, "id": i, "more": {"deep": ["值"]}} for i, text in enumerate(PROMPTS)]
    records.append({"prompt": [{"role": "user", "content": "1+2="}]})  # type: ignore[dict-item]
    file, output = write_records(*records), tmp_path / "deep/er/out.jsonl"
    assert predict.run(run, str(file), str(output), ["generation.batch_size=2"]) == len(records)
    answered = read(output)
    added = dict.fromkeys(("completion", "finish_reason"))
    assert [{**record, **added} for record in records] == [{**one, **added} for one in answered]
    generation = load_recipe(Path(run) / "recipe.yaml").generation
    expected = [one.text for one in Engine(*tiny).answer([record["prompt"] for record in records], generation)]
    assert [one["completion"] for one in answered] == [expected[index] for index in range(len(records))]
    assert "值" in output.read_text(encoding="utf-8")


def test_fields_of_records_stay_under_their_names(run: str, write_records: Any, tmp_path: Path) -> None:
    """What is added has names that are free, and the same ones in every line."""
    records: list[dict[str, Any]] = [
        {"prompt": "1+2=", "completion": "3", "finish_reason_2": "mine"},
        {"prompt": "1+" * 200, "error": {"old": 1}},
        {"prompt": "3"},
    ]
    file, output, plain = write_records(*records), tmp_path / "out", tmp_path / "plain"
    told = "records have 'completion' and 'error' already, which stays; what is added is called completion_3"
    with pytest.warns(UserWarning, match=told):
        predict.run(run, str(file), str(output), on_error="record")
    written = read(output)
    assert [{name: one[name] for name in record} for one, record in zip(written, records, strict=True)] == records
    assert written[1]["completion_3"] is None and "tokens" in written[1]["error_3"]
    predict.run(run, str(write_records({"prompt": "1+2="}, {"prompt": "3"}, name="plain.jsonl")), str(plain))
    assert [one["completion_3"] for one in (written[0], written[2])] == [one["completion"] for one in read(plain)]
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=told):
        predict.run(run, str(file), str(output), on_error="record", resume=True)
    assert output.read_bytes() == whole
    with pytest.warns(UserWarning, match="is called completion_2, finish_reason_2"):  # of its own output
        predict.run(run, str(plain), str(tmp_path / "again"))
    assert {"completion", "completion_2"} <= read(tmp_path / "again")[0].keys()


def test_an_answer_may_be_as_long_as_the_model_takes(tiny_checkpoint: Path, write_records: Any, tmp_path: Path) -> None:
    """Where nothing else is known; what is cut off there is marked and counted."""
    file, output = write_records(*({"prompt": text} for text in PROMPTS)), tmp_path / "out"
    with pytest.warns(UserWarning, match=r"\d of 7 answers were cut off.*finish_reason marks them with 'length'"):
        predict.run(str(tiny_checkpoint), str(file), str(output))
    answers, written = [one.completion for one in glmtune.predict(tiny_checkpoint, PROMPTS)], read(output)
    assert [(one.text, one.finish_reason) for one in answers] == [
        (one["completion"], one["finish_reason"]) for one in written
    ]
    cut = [one for one in answers if one.finish_reason == "length"]
    assert cut and all(one.prompt_tokens + len(one.token_ids) == 128 for one in cut)


def test_the_file_grows_while_it_is_answered(
    run: str, write_records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole lines, a window at a time; an error later takes none of them back."""
    file, output = write_records(*({"prompt": text} for text in PROMPTS)), tmp_path / "out.jsonl"
    grown: list[int] = []
    answer = Conversation.answer

    def watched(conversation: Any, questions: Any) -> Any:
        grown.append(len(read(output)))
        if len(grown) == 3:
            raise RuntimeError("no such luck")
        yield from answer(conversation, questions)

    monkeypatch.setattr(prediction, "BATCHES_PER_WINDOW", 1)
    monkeypatch.setattr(Conversation, "answer", watched)
    with pytest.raises(RuntimeError):
        predict.run(run, str(file), str(output), ["generation.batch_size=2"])
    assert grown == [0, 2, 4]
    assert [record["prompt"] for record in read(output)] == PROMPTS[:4]


def test_an_output_that_exists_is_kept(run: str, write_records: Any, tmp_path: Path) -> None:
    file, output = write_records({"prompt": "1+2="}), tmp_path / "out.jsonl"
    output.write_text("precious\n")
    with pytest.raises(UserError, match=r"--output .*out.jsonl: exists already.*--overwrite"):
        predict.run(run, str(file), str(output))
    assert output.read_text() == "precious\n"
    assert predict.run(run, str(file), str(output), overwrite=True) == 1
    assert read(output)[0]["prompt"] == "1+2="


def test_an_empty_output_is_no_loss(run: str, write_records: Any, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").touch()
    assert predict.run(run, str(write_records({"prompt": "1"})), str(tmp_path / "out.jsonl")) == 1


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_input_is_not_overwritten(run: str, write_records: Any, tmp_path: Path, overwrite: bool) -> None:
    file = write_records({"prompt": "1+2="})
    before = file.read_text()
    with pytest.raises(UserError, match="is the input, too"):
        predict.run(run, str(file), f"{tmp_path}/../{tmp_path.name}/{file.name}", overwrite=overwrite)
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"frage": "1"}, "line 2: 'prompt' is missing.*the record has frage"),
        ({"prompt": ""}, "line 2: 'prompt' is missing, empty"),
        ({"prompt": {"a": 1}}, "line 2: 'prompt' is .*not a text but an object"),
        ({"prompt": []}, "line 2: 'prompt' is missing, empty"),
        ({"prompt": [{"role": "user"}]}, "line 2: 'prompt', turn 1: its content is missing"),
        ({}, "the record has nothing"),
        ("[1]", "line 2: a list, not a JSON object"),
        ('{"prompt": ', "line 2: not JSON"),
        ({"prompt": "1" * 200}, r"line 2: the prompt has 203 tokens.*generation\.max_new_tokens=6.*128"),
    ],
)
def test_a_bad_record_is_told_before_any_is_answered(
    run: str, write_records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Any, message: str
) -> None:
    file, output = write_records({"prompt": "1+2="}, record), tmp_path / "out.jsonl"
    output.write_text("precious\n")
    monkeypatch.setattr(loading, "load_model", None)
    with pytest.raises(UserError, match=message) as error:
        predict.run(run, str(file), str(output), overwrite=True)
    assert str(file) in str(error.value)
    assert output.read_text() == "precious\n"


def test_no_records(run: str, write_records: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        predict.run(run, str(write_records()), str(tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match="no such file"):
        predict.run(run, str(tmp_path / "none.jsonl"), str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_a_full_disk_is_told(run: str, write_records: Any) -> None:
    with pytest.raises(UserError, match=r"--output /dev/full: cannot be written: No space left.*What is in it stays"):
        predict.run(run, str(write_records({"prompt": "1"})), "/dev/full")


def test_a_bare_checkpoint_answers_too(tiny_checkpoint: Path, write_records: Any, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    file, output = write_records({"prompt": "1"}), tmp_path / "out.jsonl"
    assert predict.run(str(checkpoint), str(file), str(output), ["generation.max_new_tokens=3"]) == 1


def test_goes_on_where_it_was_cut_off(run: str, write_records: Any, tmp_path: Path) -> None:
    """Wherever the output ends, in the middle of a line too, the whole is what it would have been."""
    file, whole, cut = write_records(*({"prompt": text} for text in PROMPTS)), tmp_path / "whole", tmp_path / "cut"
    predict.run(run, str(file), str(whole))
    content = whole.read_bytes()
    for length in (0, 1, len(content) // 2, content.rfind(b"\n", 0, -1) + 1, len(content)):
        cut.write_bytes(content[:length])
        assert predict.run(run, str(file), str(cut), resume=True) == len(PROMPTS)
        assert cut.read_bytes() == content
    cut.unlink()
    predict.run(run, str(file), str(cut), resume=True)
    assert cut.read_bytes() == content


def test_what_was_answered_must_be_of_this_input(run: str, write_records: Any, tmp_path: Path) -> None:
    file, output = write_records({"prompt": "1+2="}), tmp_path / "out"
    for others, message in (
        ([{"prompt": "2+1="}], "line 1 of .* is not that of the input"),
        (
            [{"prompt": "1+2="}] * 2,
            "more records than the input",
        ),
    ):
        content = "".join(json.dumps({**record, "completion": "3"}) + "\n" for record in others)
        output.write_text(content)
        with pytest.raises(UserError, match=message):
            predict.run(run, str(file), str(output), resume=True)
        assert output.read_text() == content


def test_failures_are_recorded(run: str, write_records: Any, tmp_path: Path) -> None:
    """Each in its place; the others are answered as if it were not there."""
    good = [{"prompt": "1+2="}, {"prompt": "5*5"}]
    bad: list[dict[str, Any]] = [{"frage": "1"}, {"prompt": "1+" * 200}, {"prompt": {"a": 1}}]
    file, output = write_records(bad[0], good[0], bad[1], bad[2], good[1]), tmp_path / "out"
    assert predict.run(run, str(file), str(output), on_error="record") == 5
    written = read(output)
    assert [one["completion"] is None for one in written] == [True, False, True, True, False]
    assert [one["error"] is not None for one in written] == [True, False, True, True, False]
    assert len({tuple(key for key in one if key not in ("prompt", "frage")) for one in written}) == 1
    assert "not a text" in written[0]["error"] and "tokens" in written[2]["error"]
    alone = tmp_path / "alone"
    predict.run(run, str(write_records(*good)), str(alone))
    assert [one for one in written if one.pop("error") is None] == read(alone)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "parquet", "feather"])
def test_tables(run: str, tmp_path: Path, suffix: str) -> None:
    """Records of any format in, with or without answers; a table out, written when all answers are there."""
    rows = [{"question": "1+2=", "answer": "3", "id": "a"}, {"question": "5*5=", "answer": "", "id": "b, c"}]
    file, output = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    write_rows(rows, file, file.suffix)
    assert predict.run(run, str(file), str(output)) == 2
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": row["question"]}) + "\n" for row in rows))
    predict.run(run, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    expected = [one["completion"] for one in read(tmp_path / "out.jsonl")]
    written = [entry.row for entry in file_rows(str(output))]  # type: ignore[union-attr]
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    assert [row["completion"] for row in written] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.jsonl", "out.jsonl", file.name, output.name])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_that_was_cut_off_goes_on(
    run: str, write_records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    file, whole, cut = (
        write_records(*({"prompt": text} for text in PROMPTS)),
        *(tmp_path / f"{name}.{suffix}" for name in ("whole", "cut")),
    )
    predict.run(run, str(file), str(whole))
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "BATCHES_PER_WINDOW", 1)
        patch.setattr(output_file, "write_rows", None)
        with pytest.raises(TypeError):
            predict.run(run, str(file), str(cut))
    partial = tmp_path / f".cut.{suffix}.unfinished" / "lines.jsonl"
    assert stat.S_IMODE(partial.parent.stat().st_mode) == 0o700
    lines = partial.read_text().splitlines(keepends=True)
    partial.write_text("".join(lines[:3]) + lines[3][:5])
    with pytest.raises(UserError, match="was begun already"):
        predict.run(run, str(file), str(cut))
    predict.run(run, str(file), str(cut), resume=True)
    assert [entry.row for entry in file_rows(str(cut))] == [entry.row for entry in file_rows(str(whole))]  # type: ignore[union-attr]
    assert not partial.parent.exists()
    with pytest.raises(UserError, match="is whole already"):
        predict.run(run, str(file), str(cut), resume=True)


@pytest.fixture
def table() -> Any:
    """A table with what a record may have, of every sort."""
    pyarrow = pytest.importorskip("pyarrow", reason="tables need pyarrow")
    moments = pyarrow.array([0, None], pyarrow.int64())
    columns = {
        "prompt": ["1+2=", "5*5="],
        "when": moments.view(pyarrow.timestamp("us", "Asia/Shanghai")),
        "price": pyarrow.array([Decimal("1.50"), None], pyarrow.decimal128(9, 2)),
        "raw": [b"\xff", None],
        "note": [None, "n"],
        "score": [float("nan"), 0.5],
        "deep": [{"a": [1, None]}, {"a": None}],
        "finish_reason": ["old", "old"],
    }
    return pyarrow.table(columns)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_tables_keep_their_columns(run: str, table: Any, tmp_path: Path, suffix: str) -> None:
    """With values and types; on the way they are JSON, which has neither timestamps nor decimals."""
    write_arrow(table, tmp_path / "in.parquet", ".parquet")
    assert predict.run(run, str(tmp_path / "in.parquet"), str(tmp_path / f"out.{suffix}")) == 2
    again = read_given(str(tmp_path / f"out.{suffix}"), ".arrow")
    assert again.column_names == [*table.column_names, "completion_2", "finish_reason_2"]
    assert again.select(table.column_names).schema.equals(table.schema)
    assert again.select(table.column_names).drop_columns(["score"]).equals(table.drop_columns(["score"]))
    assert math.isnan(again["score"][0].as_py()) and set(again["finish_reason_2"].to_pylist()) <= {"stop", "length"}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "ndjson"])
def test_tables_in_json(run: str, table: Any, tmp_path: Path, suffix: str) -> None:
    write_arrow(table, tmp_path / "in.parquet", ".parquet")
    with pytest.warns(UserWarning, match="1 record holds NaN or Infinity, which JSON does not have"):
        predict.run(run, str(tmp_path / "in.parquet"), str(tmp_path / f"out.{suffix}"))
    text = (tmp_path / f"out.{suffix}").read_text("utf-8")
    text = text if suffix == "json" else f"[{','.join(text.splitlines())}]"
    first, second = json.loads(text, parse_constant=pytest.fail)
    assert list(first) == list(second)
    del first["completion_2"], first["finish_reason_2"]
    assert first == {
        "prompt": "1+2=",
        "when": "1970-01-01T00:00:00.000000Z",
        "price": "1.50",
        "raw": "/w==",
        "note": None,
        "score": "NaN",
        "deep": {"a": [1, None]},
        "finish_reason": "old",
    }
    assert second["when"] is None and second["price"] is None and second["deep"] == {"a": None}
    predict.run(run, str(tmp_path / "in.parquet"), str(tmp_path / "again.jsonl"))
    (tmp_path / "again.jsonl").write_bytes((tmp_path / "again.jsonl").read_bytes()[:-30])
    predict.run(run, str(tmp_path / "in.parquet"), str(tmp_path / "again.jsonl"), resume=True)
    assert len(read(tmp_path / "again.jsonl")) == 2


@pytest.mark.parametrize("name", ["out.xlsx", "out.json.gz", "out.txt", "out.db"])
def test_other_suffixes_are_refused_before_any_answer(
    run: str, write_records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(loading, "load_model", None)
    with pytest.raises(UserError, match=r"files are not written\..*Known: \.jsonl, \.ndjson, \.json, \.csv"):
        predict.run(run, str(write_records({"prompt": "1"})), str(tmp_path / name))
    assert not (tmp_path / name).exists()


def prompt_in(record: dict[str, Any], write_records: Any, columns: dict[str, str] | None = None) -> Any:
    [found] = read_questions(str(write_records(record)), columns)
    assert isinstance(found, Question) and found.row == record, found
    return found.prompt


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "1+2=", "input": ""},
        {"question": "1+2="},
        {"messages": [{"role": "user", "content": "1+2="}]},
        {"messages": json.dumps([{"role": "user", "content": "1+2="}])},
        {"conversations": [{"from": "human", "value": "1+2="}]},
        {"messages": [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]},
        {"original_text": "1+2="},
        {"content": "1+2="},
        {"prompt": "1+2=", "history": []},
        {"question": "1+2=", "answer": "3", "content": "no question"},
        {"question": "1+2=", "answer": "", "id": 7},
        {"instruction": "no question", "question": "1+2=", "answer": "3"},
        {"input": "1+2=", "output": "3", "content": "no question"},
    ],
)
def test_questions_of_every_format(record: dict[str, Any], write_records: Any) -> None:
    """What is asked is what a training reads from the same record."""
    assert prompt_in(record, write_records) == "1+2="
    if record.get("answer") or "output" in record:
        assert read_examples(str(write_records(record)))[0].prompt == "1+2="


def test_questions_with_history_and_columns(write_records: Any) -> None:
    before = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    asked = {"role": "user", "content": "1"}
    assert prompt_in({"prompt": "1", "history": [["q", "a"]]}, write_records) == [*before, asked]
    columns = {"prompt": "问", "history": "史"}
    assert prompt_in({"问": "1", "史": []}, write_records, columns) == "1"
    assert prompt_in({"问": "1", "史": [["q", "a"]]}, write_records, columns) == [*before, asked]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"question": "1", "content": "2"}, "several fields may be the question; the record has question, content"),
        ({"prompt": [{"role": "user", "content": "half \ud800"}]}, "half of a character"),
        ({"instruction": "do", "instances": [{"input": "1"}, {"input": "2"}]}, "'output' is missing"),
    ],
)
def test_questions_that_cannot_be_told(record: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    [fault] = read_questions(str(tmp_path / "x.jsonl"))
    assert isinstance(fault, Fault) and told in fault.message


def test_halves_of_characters_are_written_again(run: str, tmp_path: Path) -> None:
    """In a field that nobody looks at, and in the record of a failure."""
    file, output = tmp_path / "x.jsonl", tmp_path / "out.jsonl"
    records = [{"prompt": "1", "more": "\ud800"}, {"prompt": "half \ud800"}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    for place in (output, tmp_path / "out.csv", tmp_path / "out.parquet"):
        predict.run(run, str(file), str(place), on_error="record")
    assert [one["prompt"] for one in read(output)] == ["1", "half \ud800"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_numbers_come_back_with_their_digits(run: str, suffix: str, tmp_path: Path) -> None:
    given = '"x": 0.12345678901234567890123, "y": 1.10, "z": 1E5, "n": 123456789012345678901234567890'
    (tmp_path / "in.jsonl").write_text(f'{{"prompt": "1", {given}}}\n')
    predict.run(run, str(tmp_path / "in.jsonl"), str(tmp_path / f"out.{suffix}"))
    cells = "1,0.12345678901234567890123,1.10,1E5,123456789012345678901234567890,"
    assert (given if suffix == "jsonl" else cells) in (tmp_path / f"out.{suffix}").read_text("utf-8")


def test_tools_are_asked_with_the_question(write_records: Any) -> None:
    tools, turns = [{"name": "add"}], [{"role": "user", "content": "q"}]
    for record in ({"prompt": "q"}, {"prompt": turns}, {"messages": turns}):
        [found] = read_questions(str(write_records({**record, "tools": tools})))
        assert isinstance(found, Question) and list(found.tools) == tools
    [found] = read_questions(str(write_records({"question": "q", "tools": "a hammer"})))  # a field of something else
    assert isinstance(found, Question) and not found.tools


@pytest.mark.parametrize("answer", [2, " ", None, float("nan"), ["x"]])
def test_answers_do_not_matter(answer: Any, write_records: Any) -> None:
    for record in ({"question": "1+1", "answer": answer}, {"prompt": "1+1", "target": answer}):
        [found] = read_questions(str(write_records(record)))
        assert isinstance(found, Question) and found.prompt == "1+1"
    [found] = read_questions(str(write_records({"q": "1", "a": answer})), {"prompt": "q", "target": "a"})
    assert isinstance(found, Question) and found.prompt == "1"


def test_a_file_that_cannot_be_read_to_its_end_stops(run: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"prompt": "1"}\n{"prompt": "\xff"}\n{"prompt": "3"}\n')
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        predict.run(run, str(file), str(tmp_path / "out.jsonl"), on_error="record")


def test_the_output_is_no_part_of_the_input(run: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"prompt": "1"}\n')
    with pytest.raises(UserError, match="is in the folder of the input"):
        predict.run(run, str(tmp_path / "in"), str(tmp_path / "in/out.jsonl"))


def test_sampling_goes_on_as_if_it_had_not_been_cut_off(run: str, write_records: Any, tmp_path: Path) -> None:
    settings = ["generation.do_sample=true", "generation.batch_size=1"]
    file, whole, cut = write_records(*({"prompt": text} for text in PROMPTS)), tmp_path / "whole", tmp_path / "cut"
    predict.run(run, str(file), str(whole), settings)
    lines = whole.read_bytes().splitlines(keepends=True)
    for done in (1, 4, 5):
        cut.write_bytes(b"".join(lines[:done]))
        predict.run(run, str(file), str(cut), settings, resume=True)
        assert cut.read_bytes() == whole.read_bytes()


def test_one_of_several_samples_is_taken(run: str, write_records: Any, tmp_path: Path) -> None:
    """Which is one that most of them say; the samples are those that are drawn for as many records of one each."""
    file, output = write_records(*({"prompt": text} for text in PROMPTS)), tmp_path / "out.jsonl"
    settings = ["generation.temperature=2.0", "generation.top_p=1.0", "generation.batch_size=2"]
    predict.run(run, str(file), str(output), [*settings, "generation.num_samples=3"])
    thrice = write_records(*({"prompt": text} for text in PROMPTS for _ in range(3)), name="thrice.jsonl")
    predict.run(run, str(thrice), str(tmp_path / "all.jsonl"), [*settings, "generation.do_sample=true"])
    samples, chosen = read(tmp_path / "all.jsonl"), read(output)
    assert len({one["completion"] for one in samples}) > len(PROMPTS)
    for number, one in enumerate(chosen):
        drawn = [sample["completion"] for sample in samples[3 * number : 3 * number + 3]]
        assert one["completion"] in drawn and 0 <= one["votes"] <= 3 and one["sampled_tokens"] >= 3
    lines = output.read_bytes().splitlines(keepends=True)
    for done in (1, 3, 6):
        output.write_bytes(b"".join(lines[:done]))
        predict.run(run, str(file), str(output), [*settings, "generation.num_samples=3"], resume=True)
        assert output.read_bytes() == b"".join(lines)
    with pytest.raises(UserError, match=r"generation\.choose=checked: this task, as it is set, checks no workings"):
        predict.run(
            run, str(file), str(output), ["generation.num_samples=3", "generation.choose=checked"], overwrite=True
        )


def test_how_answers_ended(run: str, write_records: Any, tmp_path: Path) -> None:
    """Cut off, refused, or not what was asked of the calculator; fields of the record stay."""
    file, output = write_records(*({"prompt": text, "id": 1} for text in PROMPTS)), tmp_path / "out.jsonl"
    predict.run(run, str(file), str(output), ["generation.max_new_tokens=1"])
    reasons = [one["finish_reason"] for one in read(output)]
    assert set(reasons) <= {"stop", "length"} and "length" in reasons
    tools = ["task.style=tool", "task.unfaithful=refuse"]
    predict.run(run, str(file), str(output), tools, overwrite=True)
    for one in read(output):
        assert one["id"] == 1 and one["completion"] == "" and one["faithful_calls"] is False
        assert one["refusal"] == "there is no call of the calculator that can be read"
    predict.run(run, str(file), str(output), tools, resume=True)
    file = write_records({"prompt": "1", "faithful_calls": "mine", "refusal": "old"})
    with pytest.warns(UserWarning, match="records have 'refusal' already"):
        predict.run(run, str(file), str(output), ["task.style=tool"], overwrite=True)
    [one] = read(output)
    assert (one["faithful_calls"], one["refusal"], one["faithful_calls_2"]) == ("mine", "old", False)
    assert "completion_2" in one and one["refusal_2"] is None


def test_the_first_wrong_step_is_a_column(run: str, write_records: Any, tmp_path: Path) -> None:
    file, output = write_records(*({"prompt": text} for text in ("19+23=", "3"))), tmp_path / "out.jsonl"
    predict.run(
        run, str(file), str(output), ["task.style=steps", "task.check_steps=true", "generation.max_new_tokens=1"]
    )
    first, second = read(output)
    assert " in the problem, sign " in first["first_fault"] or " in step 1, sign " in first["first_fault"]
    assert second["first_fault"] is None  # no problem


def test_tools_of_a_record_are_offered_and_calls_are_written(run: str, write_records: Any, tmp_path: Path) -> None:
    """Calls that nobody here answers are the answer; a field of the record that is called so stays."""
    tool = {"type": "function", "function": {"name": "calculate", "description": "", "parameters": {}}}
    asked = {"messages": [{"role": "user", "content": "1+2="}], "tools": [tool]}
    [found] = read_questions(str(write_records(asked)))
    assert isinstance(found, Question) and list(found.tools) == [tool]
    call = make_tool_call("calculate", {"expression": "1+2"})
    said = Exchange([{"role": "assistant", "content": "", "tool_calls": [call]}], Completion("x", [1], 3, "tool_calls"))
    entry = prediction.Entry({"prompt": "1+2=", "tool_calls": "of the record"}, "1+2=")
    row = entry.with_answer((), prediction.Names(), Choice(0, said, 1, 1), {})
    assert (row["completion"], row["completion_tool_calls"], row["tool_calls"]) == ("", [call], "of the record")


def test_how_many_answers_were_cut_off(run: str, write_records: Any, tmp_path: Path) -> None:
    file, output = write_records(*({"prompt": text} for text in PROMPTS)), tmp_path / "out.jsonl"
    with pytest.warns(UserWarning, match=rf"of {len(PROMPTS)} answers were cut off; .*max_new_tokens higher"):
        predict.run(run, str(file), str(output), ["generation.max_new_tokens=1"])

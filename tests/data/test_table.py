"""Records encoded once: the same as one by one, kept on disk, and what is too long handled as the rule says."""

from __future__ import annotations

import copy
import stat
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from glmtune.config import DataSettings
from glmtune.data import EncodedDataset
from glmtune.data import cache as cached_rows
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import IGNORED, encode_example
from glmtune.data.table import EncodedTable, encode_records
from glmtune.examples import Example, Source
from glmtune.files import replacing
from glmtune.messages import as_messages
from glmtune.runtime import UserError

LONG = Example("1+" * 50 + "1=", "51")
ROWS = 60  # of a batch of the table, which is larger elsewhere


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmtune.data.table.ROWS", ROWS)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    return tmp_path / "glmtune"


def examples(count: int) -> list[Example]:
    return [Example(f"{i}+{i % 7}=", str(i + i % 7)) for i in range(count)]


def encode(records: list[Example], tokenizer: Any, max_length: int | None = None, **settings: Any) -> EncodedTable:
    records = [replace(record, source=Source("mine.jsonl", line)) for line, record in enumerate(records, start=1)]
    return encode_records(records, Encoder(tokenizer, max_length), DataSettings(**settings), "mine.jsonl")


@pytest.mark.parametrize("count", [1, ROWS - 1, ROWS, 2 * ROWS + 3])
@pytest.mark.parametrize("name", ["chatglm", "chatml"])
def test_a_table_holds_what_encoding_gives(count: int, name: str, cache: Path, request: Any) -> None:
    tokenizer = request.getfixturevalue(name)
    records = examples(count)
    expected = [encode_example(tokenizer, e.prompt, e.target, record=i) for i, e in enumerate(records)]
    for settings in ({}, {}, {"cache": False}):  # made, read again, never written
        found = encode(records, tokenizer, **settings)
        assert isinstance(found, EncodedDataset) and len(found) == count and found.remarks == []
        assert [found[i] for i in range(count)] == expected
        assert [found.length(i) for i in range(count)] == [len(e["input_ids"]) for e in expected]
    assert len(list(cache.glob("*.arrow"))) == (count >= ROWS)


def test_what_is_not_learned_is_said(chatglm: Any) -> None:
    """Plain text has no target, images no tokens; of a preference the better answer is learned."""
    for example, field in (
        (Example("", "", text="x"), "'text'.*pretrain"),
        (Example("q", "a", images=["x"]), "'images'"),
    ):
        with pytest.raises(UserError, match=rf"mine\.jsonl, line 2: {field}"):
            encode([*examples(1), example], chatglm)
    found = encode([Example("q", "a", rejected="b"), Example("q", "a")], chatglm)
    assert found[0]["labels"] == found[1]["labels"]
    assert found.remarks == ["1 records have a 'rejected' answer, of which nothing is learned here."]


def test_sources_are_those_of_this_run(chatglm: Any, cache: Path) -> None:
    """The tokens of a file are kept for the next run; where its records stand may have changed since."""
    encoder, settings = Encoder(chatglm), DataSettings()
    for file in ("mine.jsonl", "moved.jsonl"):
        records = [replace(e, source=Source(file, line)) for line, e in enumerate(examples(ROWS + 1), start=7)]
        found = encode_records(records, encoder, settings, file)
        assert found.source(0) == Source(file, 7) and found.source(ROWS) == Source(file, ROWS + 7)
    assert len(list(cache.glob("*.arrow"))) == 1


def test_what_the_template_refuses_names_the_record(chatglm: Any) -> None:
    tokenizer = copy.deepcopy(chatglm)
    tokenizer.chat_template = "{{ raise_exception('no') if messages[0].role == 'system' }}" + tokenizer.chat_template
    with pytest.raises(
        UserError, match=r"mine\.jsonl, line 2: The model's chat template does not take this conversation: no\."
    ):
        encode([*examples(1), Example([{"role": "system", "content": "s"}, *as_messages("1")], "2")], tokenizer)


def test_a_second_run_encodes_nothing(chatglm: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(examples(ROWS), chatglm)
    monkeypatch.setattr(Encoder, "__call__", None)
    again = encode(examples(ROWS), chatglm)
    assert [first[i] for i in range(ROWS)] == [again[i] for i in range(ROWS)]


@pytest.mark.parametrize("change", ["record", "turns", "template", "length", "start", "rule"])
def test_what_changes_the_tokens_changes_the_file(change: str, chatglm: Any, cache: Path) -> None:
    records = examples(ROWS)
    key = cached_rows.key_of(records, Encoder(chatglm, 100), DataSettings())
    assert cached_rows.key_of(examples(ROWS), Encoder(chatglm, 100), DataSettings(packing=True)) == key
    encoder, settings = Encoder(chatglm, 100), DataSettings()
    if change == "record":
        records[7] = Example(records[7].prompt, "another")
    elif change == "turns":
        records[7] = Example(records[7].prompt, records[7].target, train_on_all_turns=True)
    elif change == "template":
        tokenizer = copy.deepcopy(chatglm)
        tokenizer.chat_template += " "
        encoder = Encoder(tokenizer, 100)
    elif change == "length":
        encoder = Encoder(chatglm, 99)
    elif change == "start":
        encoder = Encoder(chatglm, 100, train_on_bos=True)
    else:
        settings = DataSettings(too_long="truncate")
    assert cached_rows.key_of(records, encoder, settings) != key


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(
    chatglm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="tokens are not kept for the next run"):
        assert len(encode(examples(ROWS), chatglm)) == ROWS


def damage(file: Path, kind: str) -> None:
    """Change a file in place, as a bad disk or a stranger would; or put another one there."""
    content = bytearray(file.read_bytes())
    rows = list(cached_rows.read(file))
    file.unlink()  # it may still be mapped
    if kind == "cut off":
        content = content[: len(content) // 2]
    elif kind in ("ids", "labels"):
        values = getattr(rows[1], kind)
        place = content.index(values.tobytes()[:400])
        content[place : place + 400] = bytes(400)
    elif kind == "one bit":
        content[content.index(rows[0].ids.tobytes()[:400])] ^= 1
    elif kind == "no digest":
        content = content[:-16]
    elif kind == "of another name":
        cached_rows.write(iter(rows), other := file.with_name("other.arrow"))
        content = bytearray(other.read_bytes())
        other.unlink()
    elif kind == "link":
        file.with_suffix(".old").write_bytes(content)
        file.symlink_to(file.with_suffix(".old"))
        return
    file.write_bytes({"empty": b"", "nothing": b"ARROW1 and then nothing"}.get(kind, bytes(content)))


@pytest.mark.parametrize(
    "kind", ["empty", "nothing", "cut off", "ids", "labels", "one bit", "no digest", "of another name", "link"]
)
def test_a_damaged_file_is_named_and_written_anew(kind: str, chatglm: Any, cache: Path) -> None:
    """Zeroed labels were trained on, and zeroed ids decoded: what was kept is what was written, or is not believed."""
    whole = list(encode(examples(2 * ROWS), chatglm))
    [file] = cache.glob("*.arrow")
    damage(file, kind)
    with pytest.warns(UserWarning, match=rf"{file.name}: does not hold what was written to it.*encoded anew"):
        assert list(encode(examples(2 * ROWS), chatglm)) == whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(encode(examples(2 * ROWS), chatglm)) == whole
    assert not file.is_symlink() and len(list(cached_rows.read(file))) == 2


def test_the_cache_is_ones_own(chatglm: Any, cache: Path) -> None:
    cache.mkdir(mode=0o755)
    encode(examples(ROWS), chatglm)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    for file in cache.glob("*"):
        file.unlink()
    cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to(cache.with_name("elsewhere"))
    with pytest.warns(UserWarning, match="tokens are not kept for the next run: .*is a link"):
        assert len(encode(examples(ROWS), chatglm)) == ROWS


@pytest.mark.parametrize("function", ["write", "read"])
def test_a_full_disk_costs_the_cache_alone(
    function: str, chatglm: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        with replacing(cache / "x.arrow"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(cached_rows, function, full)
    with pytest.warns(UserWarning, match="tokens are not kept"):
        assert len(encode(examples(ROWS), chatglm)) == ROWS


def test_all_that_is_too_long_is_told(chatglm: Any) -> None:
    records = [*examples(3), *[LONG] * 22, *examples(2)]
    with pytest.raises(UserError) as error:
        encode(records, chatglm, 32)
    lines = str(error.value).splitlines()
    assert lines[0] == "mine.jsonl: 22 of 27 records are too long:"
    assert lines[1].startswith("  line 4 of mine.jsonl has 10") and "'1+1+" in lines[1] and "2 more" in lines[-2]
    assert "data.too_long=drop" in lines[-1] and "data.too_long=truncate" in lines[-1]


def test_dropped(chatglm: Any) -> None:
    found = encode([LONG, *examples(3), LONG], chatglm, 32, too_long="drop")
    assert [found[i]["record"] for i in range(len(found))] == [0, 1, 2]
    assert [found.source(i) for i in range(len(found))] == [Source("mine.jsonl", line) for line in (2, 3, 4)]
    assert found.name([0, 2]) == "lines 2, 4 of mine.jsonl"
    assert found.remarks == ["Of 5 records, longer than 32 tokens: 2 left out."]
    with pytest.raises(UserError, match="none of 1 records has at most 32 tokens"):
        encode([LONG], chatglm, 32, too_long="drop")


def learned(encoding: Any) -> list[int]:
    return [label for label in encoding["labels"] if label != IGNORED]


@pytest.mark.parametrize("name", ["chatglm", "chatml"])
def test_cut(name: str, request: Any) -> None:
    """The end of the prompt and all of the answer stay, with as much of the prompt as there is room for."""
    tokenizer = request.getfixturevalue(name)
    whole = encode_example(tokenizer, LONG.prompt, LONG.target)
    found = encode([LONG, *examples(1)], tokenizer, 60, too_long="truncate")
    assert found.remarks == ["Of 2 records, longer than 60 tokens: 1 cut at the beginning of the prompt."]
    assert 57 <= found.length(0) <= 60
    assert learned(found[0]) == learned(whole) and found[0]["input_ids"][-20:] == whole["input_ids"][-20:]
    assert found[1] == encode_example(tokenizer, *[examples(1)[0].prompt, examples(1)[0].target], record=1)


def test_an_answer_is_never_cut(chatglm: Any) -> None:
    record = Example("1+1=", "2" * 100)
    with pytest.raises(UserError, match="stay so when their prompts are cut"):
        encode([record], chatglm, 60, too_long="truncate")


def test_the_oldest_rounds_go_first(chatml: Any) -> None:
    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    rounds = [turn(*pair) for i in range(5) for pair in (("user", f"question {i}"), ("assistant", f"answer {i}"))]
    prompt = [turn("system", "Be brief."), *rounds, turn("user", "the last one")]
    shorter = [turn("system", "Be brief."), *rounds[-2:], turn("user", "the last one")]
    fitting = encode_example(chatml, shorter, "yes")
    found = encode([Example(prompt, "yes")], chatml, len(fitting["input_ids"]) + 3, too_long="truncate")
    assert found[0]["input_ids"] == fitting["input_ids"]

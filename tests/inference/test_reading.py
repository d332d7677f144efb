"""Token ids of answers to their texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from glmtune.config import GenerationSettings
from glmtune.data.encoding import IGNORED, encode_example, stop_ids
from glmtune.data.pieces import without_lead_in
from glmtune.inference.completion import Request
from glmtune.inference.reading import AnswerReader, lead_in_as_read, stops_of
from glmtune.inference.rows import Row


@pytest.fixture
def reader(tiny: tuple[Any, Any]) -> AnswerReader:
    return AnswerReader.of(*tiny)


def ids(reader: AnswerReader, text: str) -> list[int]:
    return list(reader.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_text_ends_at_the_end_token(reader: AnswerReader) -> None:
    pad, eos = reader.tokenizer.pad_token_id, reader.tokenizer.eos_token_id
    for tail in ([], [eos], [eos, pad, pad], [eos, *ids(reader, "42")], [eos, eos]):
        assert reader.read([*ids(reader, "42"), *tail]) == "42"
    assert reader.read([eos, *ids(reader, "42")]) == reader.read([]) == ""


def test_a_text_ends_before_the_first_stop_text(reader: AnswerReader) -> None:
    assert reader.read(ids(reader, "12+34=46"), ["=", "+3"]) == "12"
    assert reader.read(ids(reader, "12+34=46"), ["x"]) == "12+34=46"
    assert reader.is_stopped(ids(reader, "12+34"), ["4"]) and not reader.is_stopped(ids(reader, "12+3"), ["4"])


def test_what_a_tokenizer_reads_otherwise_later_is_told_from_there(reader: AnswerReader) -> None:
    told = reader.follow()
    row = Row(Request([1], GenerationSettings()), reader)
    spelled: Any = reader.tokenizer.convert_tokens_to_ids(["<", "n", ">"])
    row.token_ids = [*ids(reader, "a"), *spelled, *ids(reader, "b and more")]
    pieces = [told.next(row, count, count == len(row.token_ids)).text for count in range(1, len(row.token_ids) + 1)]
    assert reader.read(row.token_ids) == "a\n b and more" and "".join(pieces).endswith("\n b and more")


@pytest.mark.parametrize("stop", ["4", "34=", "😀", "=4😀6", "1"])
def test_an_answer_ends_with_the_token_that_completes_a_stop_text(reader: AnswerReader, stop: str) -> None:
    whole = ids(reader, "12+34=4😀6" * 40)
    ends = next(count for count in range(len(whole) + 1) if stop in reader.read(whole[:count]))
    assert [reader.ends_stopped(whole[:count], [stop]) for count in range(ends + 1)] == [False] * ends + [True]


@pytest.mark.parametrize(("text", "begun"), [("12", "12"), ("12+", "12"), ("12+3", "12"), ("12+4", "12+4"), ("", "")])
def test_what_may_begin_a_stop_text_is_held_back(reader: AnswerReader, text: str, begun: str) -> None:
    assert reader.read_begun(ids(reader, text), ["+34"]) == begun


def test_half_characters_are_held_back(reader: AnswerReader) -> None:
    whole = ids(reader, "1😀")
    assert len(whole) > 3
    texts = [reader.read_begun(whole[:count]) for count in range(len(whole) + 1)]
    assert set(texts) == {"", "1", "1😀"} and texts[-1] == "1😀"


def test_the_lead_in_is_no_part_of_an_answer() -> None:
    assert [without_lead_in(text, "\n ") for text in ("", "\n", "\n ", "\n 4", "\n4", "4")] == [
        "",
        "",
        "",
        "4",
        "4",
        "4",
    ]
    assert without_lead_in("4", "") == "4"


@pytest.mark.parametrize("family", ["Qwen3", "GLM-4.5", "GLM-4-9B", "ChatGLM3-6B", "Llama 3.1"])
def test_an_answer_is_read_as_it_is_learned(checkpoint_of: Callable[[str], Path], family: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(family))
    learned = [token for token in encode_example(tokenizer, "1+1=", "2")["labels"] if token != IGNORED]
    assert AnswerReader(tokenizer, stop_ids(tokenizer), lead_in_as_read(tokenizer)).read(learned) == "2"


def test_what_the_checkpoint_names_ends_answers(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    for named, expected in ((None, []), (7, [7]), ([7, 9], [7, 9])):
        monkeypatch.setattr(model.generation_config, "eos_token_id", named)
        assert stops_of(model, tokenizer) == sorted({*expected, tokenizer.eos_token_id})

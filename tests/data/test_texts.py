from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from glmtune.data.control_tokens import plain_ids
from glmtune.data.encoding import IGNORED, end_id
from glmtune.data.texts import EncodedTexts, begin_ids
from glmtune.examples import Example, Source

TEXTS = ["1+1=2", "12*34=408 and so on " * 9, "7"]
EXAMPLES = [Example("", "", text=text, source=Source("corpus.jsonl", line)) for line, text in enumerate(TEXTS, start=3)]


@pytest.fixture(params=["[gMASK] <sop>", "nothing"])
def tokenizer(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Any:
    """nano's, and the same where nothing stands before a text."""
    found = AutoTokenizer.from_pretrained(tiny_checkpoint)
    if request.param == "nothing":
        bare = {"build_inputs_with_special_tokens": lambda self, ids, others=None: ids}
        found.__class__ = type("Bare", (type(found),), bare)
    return found


@pytest.mark.parametrize("max_length", [8, 9, 16, None])
def test_every_token_but_the_first_is_learned_once(tokenizer: Any, max_length: int | None) -> None:
    dataset = EncodedTexts(EXAMPLES, tokenizer, max_length)
    begin = begin_ids(tokenizer)
    learned: dict[str, list[int]] = {}
    for index in range(len(dataset)):
        encoding = dataset[index]
        ids, labels = encoding["input_ids"], encoding["labels"]
        assert len(ids) == len(labels) == dataset.length(index) <= (max_length or 10**6)
        assert ids[: len(begin)] == begin and encoding["record"] == index
        assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
        assert (
            labels[: max(1, len(begin))] == [IGNORED] * max(1, len(begin))
            and IGNORED not in labels[max(1, len(begin)) :]
        )
        learned.setdefault(str(dataset.source(index)), []).extend(label for label in labels if label != IGNORED)
    for example in EXAMPLES:
        whole = [*plain_ids(tokenizer, str(example.text)), end_id(tokenizer)]
        assert learned[str(example.source)] == (whole if begin else whole[1:])


def test_what_is_said_of_long_texts(tokenizer: Any) -> None:
    assert EncodedTexts(EXAMPLES, tokenizer, None).remarks == []
    dataset = EncodedTexts(EXAMPLES, tokenizer, 16)
    assert dataset.remarks == [f"Of 3 texts, 1 are longer than 16 tokens: learned in {len(dataset)} windows in all."]

"""Encodings as people read them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtune.data.encoding import IGNORED, encode_example
from glmtune.data.showing import shown_tokens, tokens_of

same_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@given(texts=st.tuples(st.text(), st.text()))
@same_fixture
def test_the_tokens_are_the_text(texts: tuple[str, str], chatml: Any) -> None:
    encoding = encode_example(chatml, *texts)
    tokens = list(tokens_of(chatml, encoding, 0, len(encoding["input_ids"])))
    assert "".join(token.text for token in tokens) == chatml.decode(encoding["input_ids"])
    learned = "".join(token.text for token in tokens if token.learned)
    assert learned == chatml.decode([label for label in encoding["labels"] if label != IGNORED])
    assert [token.text for token in tokens if token.control].count("<|im_end|>") == 2


def test_blanks_of_sentencepiece_stay(chatglm: Any) -> None:
    encoding = encode_example(chatglm, "the sum of 1 and 2", "it is 3")
    tokens = list(tokens_of(chatglm, encoding, 0, len(encoding["input_ids"])))
    assert "".join(token.text for token in tokens) == "the sum of 1 and 2[gMASK]<sop>it is 3<eop>"


@pytest.mark.parametrize("most", [10, 11])
def test_of_a_long_one_the_middle_is_left_out(most: int, chatml: Any) -> None:
    encoding = encode_example(chatml, "x" * 100, "y" * 50)
    tokens = shown_tokens(chatml, encoding, most)
    count = len(encoding["input_ids"])
    [left_out] = [token for token in tokens if "tokens," in token.text]
    assert len(tokens) == most + 1
    assert left_out.text == f" [... {count - most} tokens, {51 - (most - most // 2)} of them learned ...] "
    assert "".join(token.text for token in tokens[-3:]) == "yy<|im_end|>"


def test_a_long_record_takes_no_longer_for_each_token(chatml: Any) -> None:
    def seconds(length: int) -> float:
        encoding = encode_example(chatml, "x" * length, "y")
        start = time.process_time()
        list(tokens_of(chatml, encoding, 0, len(encoding["input_ids"])))
        return time.process_time() - start

    assert seconds(16_000) < 12 * max(seconds(4_000), 0.01)

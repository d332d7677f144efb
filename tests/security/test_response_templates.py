"""Response templates of strangers: their patterns search what the same stranger's model wrote."""

from __future__ import annotations

import time
from typing import Any

import pytest
from transformers import AutoTokenizer

from glmtune.data.parsing import find_response_template, parse_answer
from glmtune.models.loading import EMBEDDED

EVIL = r"(?:a|aa)+\Zb"  # 2**40 ways to fail
ANSWER = "a" * 40 + "!"


def template(**content: Any) -> dict[str, Any]:
    return {"defaults": {"role": "assistant"}, "start_anchor_pattern": r"\Z", "fields": {"content": content}}


@pytest.mark.parametrize(
    "hostile",
    [
        template(open_pattern=EVIL),
        template(close_pattern=EVIL),
        {**template(close="!"), "start_anchor_pattern": EVIL},
    ],
    ids=["opens", "closes", "anchor"],
)
def test_a_pattern_ends_in_time(hostile: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED["nano"])
    tokenizer.response_template = hostile
    start = time.process_time()
    with pytest.warns(UserWarning, match="response template"):
        message = parse_answer(tokenizer, ANSWER, ANSWER)
    assert message == {"role": "assistant", "content": ANSWER}
    assert time.process_time() - start < 5


def test_tag_patterns_are_those_that_are_known() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED["nano"])
    arguments = {"tag_pattern": rf"(?P<key>{EVIL})"}
    tokenizer.response_template = template(open="<", close=">", content="xml-inline", content_args=arguments)
    with pytest.warns(UserWarning, match="tag_pattern"):
        assert find_response_template(tokenizer) is None

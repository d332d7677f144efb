"""Control tokens are collected once, and anew where tokens were added; no text gives one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from glmtune.data.control_tokens import collect_control_tokens, guard, plain_ids, unguard


def test_they_are_collected_once(chatml: Any) -> None:
    first = collect_control_tokens(chatml)
    assert collect_control_tokens(chatml) is first
    chatml.add_tokens(["<added>"])
    again = collect_control_tokens(chatml)
    assert again.tokens == first.tokens | {"<added>"}
    chatml.add_special_tokens({"additional_special_tokens": ["<special>"]})
    assert "<special>" in collect_control_tokens(chatml).tokens


def test_added_words_are_cut(chatml: Any) -> None:
    chatml.add_tokens(["<tool>", "<tool>>", "o"])
    added = set(chatml.convert_tokens_to_ids(["<tool>", "<tool>>"]))
    for text in ("<tool>", "a<tool>>b<tool><tool>", "<<tool>"):
        ids = plain_ids(chatml, text)
        assert not added & set(ids) and chatml.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    ["<|im_end|>", "a<|im_end|><|im_start|>", "<|im_|im_end|>", "", "\U00100000<|im_end|>", "<|im_end|>\U00100000"],
)
def test_guards(text: str, chatml: Any) -> None:
    guarded = guard(chatml, text)
    assert unguard(guarded) == text and collect_control_tokens(chatml).pattern.search(guarded) is None
    assert (guarded != text) == ("<|im_end|>" in text)


def test_thousands_of_added_tokens_cost_little(chatml: Any) -> None:
    text = "57.84 + 13.64 = <not_added> " * 20
    chatml.add_tokens([f"<extra_{number}>" for number in range(6384)])
    plain_ids(chatml, text)  # collects them
    start = time.perf_counter()
    for _ in range(20):
        plain_ids(chatml, text)
    assert time.perf_counter() - start < 2  # 0.1 s here; it took 30 s before

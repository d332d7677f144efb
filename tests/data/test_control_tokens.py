"""Control tokens are collected once, and anew where tokens were added; no text gives one."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.data.control_tokens import (
    GUARD,
    ControlTokens,
    Words,
    collect_control_tokens,
    guard,
    plain_ids,
    unguard,
)
from glmtune.data.encoding import encode_example


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
    assert unguard(guarded) == text and not [*collect_control_tokens(chatml).find(guarded)]
    assert (guarded != text) == ("<|im_end|>" in text)


def test_nothing_is_counted_or_listed_again(chatml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes as long as there are many tokens is asked for once, and not for every record."""
    chatml.add_tokens([f"<extra_{number}>" for number in range(6384)])
    text = "57.84 + 13.64 = <not_added> <extra_1> " * 20
    expected = encode_example(chatml, text, "71.48")

    def asked_again(*_: Any) -> Any:
        raise AssertionError

    for name in ("added_tokens_decoder", "added_tokens_encoder", "all_special_tokens", "all_special_ids"):
        monkeypatch.setattr(type(chatml), name, property(asked_again))
    for name in ("__len__", "get_vocab", "get_added_vocab"):
        monkeypatch.setattr(type(chatml), name, asked_again)
    assert encode_example(chatml, text, "71.48") == expected


TOKENS = st.text("<|>a\n", min_size=1, max_size=4)


@given(st.sets(TOKENS, max_size=20), st.text("<|>a\nb" + GUARD, max_size=30))
def test_words_are_found_as_a_pattern_of_them_would(words: set[str], text: str) -> None:
    longest_first = "|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)"
    found = ControlTokens(frozenset(words), Words(words), Words(words))
    unguarded = re.compile(f"(?<!{GUARD})(?:{longest_first})")
    assert [*found.find(text)] == [(match.start(), match[0]) for match in unguarded.finditer(text)]
    assert "".join(piece for _, piece, _ in found.cut(text)) == text
    overlapping = re.finditer(f"(?={longest_first})", text) if words else ()
    assert [*found.words.starts(text)] == [match.start() for match in overlapping]

"""What is told of records that can each be read."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.records.cleaning import (
    FEW,
    cut_ends,
    duplicates,
    near_duplicates,
    rouge_l,
    unclosed,
    words_of,
)
from glmtune.runtime import UserError


def test_duplicates() -> None:
    assert duplicates(["a", "b", "a", ("a", "b"), ("a", "b"), "a"]) == [(2, 0), (4, 3), (5, 0)]


@given(st.lists(st.sampled_from(["ab", "a", "b"]), max_size=12), st.lists(st.sampled_from(["ab", "a"]), max_size=12))
def test_rouge_l_is_of_the_longest_common_subsequence(first: list[str], second: list[str]) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    both = len(first) + len(second)
    assert rouge_l(first, second) == (2 * table[-1][-1] / both if first and second else 0)


def test_rouge_l() -> None:
    assert rouge_l(words_of("the cat sat"), words_of("The cat SAT")) == 1
    assert rouge_l(words_of("说出法国的五个城市"), words_of("说出法国的六个城市")) == pytest.approx(16 / 18)
    assert rouge_l([], ["a"]) == 0


STEMS = ["写一首关于春天的诗", "把句子翻译成英文", "解释什么是机器学习", "列出三种水果的名字", "计算圆的面积公式"]


def test_near_duplicates_among_few() -> None:
    texts = [*STEMS, "写一首关于秋天的诗", "Name three kinds of fruit."]
    assert near_duplicates(texts) == [(5, 0)]
    assert near_duplicates([]) == []


def test_near_duplicates_among_many() -> None:
    pytest.importorskip("datasketch", reason="many records are compared by datasketch")
    rest = [f"{i * 7919 % 9973} {i * 104729 % 99991} 号 {chr(0x4E00 + i)}{chr(0x5E00 + i)}" for i in range(FEW)]
    long = "请根据以下材料，用自己的话概括作者的主要观点，并说明你是否同意，字数不超过三百字。"
    assert near_duplicates([long, *rest, long.replace("三百", "五百")]) == [(FEW + 1, 0)]


def test_many_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"data\.deduplicate=near: 1,001 records.*pip install 'glmtune\[data\]'"):
        near_duplicates(["a"] * (FEW + 1))


CLAUSES = "这是一个很长的回答，它说了很多事情，也举了一些例子，最后还总结了全文的主要内容，然后"


def test_cut_ends() -> None:
    cut = [f"{i}{CLAUSES}"[:40] for i in range(5)]
    whole = [f"第 {i} 个回答到此结束。" for i in range(20)]
    assert cut_ends([*whole, *cut]) == [20, 21, 22, 23, 24]
    assert cut_ends(cut) == [0, 1, 2, 3, 4]
    no_clauses = [str(i) + "字" * 39 for i in range(4)]
    assert cut_ends([*whole, *no_clauses]) == [20, 21, 22, 23]
    in_tokens = [8] * 20 + [64] * 5
    assert cut_ends([*whole, *(f"{c}{'啊' * i}" for i, c in enumerate(cut))], in_tokens.__getitem__) == [*range(20, 25)]


@pytest.mark.parametrize(
    "targets",
    [
        [],
        ["positive", "negative", "neutral!"] * 9,  # short ones
        [f"x=({i}+1000)*2000/3000-4000" for i in range(10, 99)],  # as long as each other, but no sentences
        [f"{i}{CLAUSES}"[:39] + "。" for i in range(9)],
        [f"{CLAUSES}{'长' * i}" for i in range(9)],  # one longest
        [CLAUSES] * 9,  # one text
    ],
)
def test_what_is_not_cut(targets: list[str]) -> None:
    assert cut_ends(targets) == []


def test_unclosed() -> None:
    assert unclosed("see:\n```python\nprint(1)\n") and not unclosed("```\na\n```\n") and not unclosed("a ``` b")

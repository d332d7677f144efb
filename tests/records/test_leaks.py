"""What is asked in two spellings is one problem."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.messages import make_tool_call
from glmtune.records.leaks import leaks, normal_text, plain_text, problem_of


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("你好，世界", "你好,世界"),
        ("What  is\n2?", "what is 2"),
        ("在 2023 年", "在2023年"),
        ("１＋２＝？", "1 + 2 ="),
        ("Hello .", "hello."),
    ],
)
def test_normal_text(first: str, second: str) -> None:
    assert normal_text(first) == normal_text(second)


@pytest.mark.parametrize(
    ("first", "second"), [("5²", "52"), ("new man", "newman"), ("1 2", "12"), ("a b", "ab"), ("?", "="), ("1.5", "15")]
)
def test_what_stays_different(first: str, second: str) -> None:
    assert normal_text(first) != normal_text(second)


def test_messages_have_a_normal_text() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q "}]
    assert normal_text(messages) == "system:s user:q" and normal_text(messages) != normal_text("q")
    assert normal_text(messages[1:]) == normal_text("q")


@given(st.text())
def test_normal_text_is_normal(text: str) -> None:
    assert normal_text(normal_text(text)) == normal_text(text) or not text.strip()


def test_leaks() -> None:
    assert leaks(["a", "b", "a"], ["c", "a", "b"]) == [(1, 0), (2, 1)]


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("57.84+13.64=", "计算：13.64 + 57.840 = ？", True),
        ("What is 3 * 5?", "5×3", True),
        ("3-5=", "5-3=", False),
        ("1+2*3=", "1+2=", False),
        ("(1+2)*3=", "1+2=", False),
        ("小明有3-1个苹果，一共几个？", "小红有3-1个梨，一共几个？", False),
        ("你好，世界", "你好,世界", True),
    ],
)
def test_one_problem_in_two_spellings(first: str, second: str, equal: bool) -> None:
    assert (problem_of(first) == problem_of(second)) == equal


def test_calls_are_part_of_what_is_asked() -> None:
    """As they were when GLM's own turns were kept: which split a conversation falls into depends on it."""
    call = {"role": "assistant", "content": None, "tool_calls": [make_tool_call("add", {"a": 1})]}
    turns = [{"role": "user", "content": "q"}, call, {"role": "tool", "content": "2"}]
    assert plain_text(turns) == 'user: q\nassistant: {"a": 1}\nobservation: 2'

"""Questions that ask for the value of a problem are told from all others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.arithmetic.asking import MOST_ASKED, problem_asked
from glmtune.tasks.arithmetic import PROMPT_WORDS

ASKED = [
    "{}",
    "{}=",
    " {} = ?",
    "What is {}?",
    "calculate: {}.",
    "{} equals?",
    "请计算 {} =",
    "{}等于多少？",
    *(f"{before}{{}}=\n{after}" for before, after in PROMPT_WORDS),
]


@pytest.mark.parametrize("form", ASKED)
@pytest.mark.parametrize("problem", ["57.84+13.64", "(3+4)*-2", "50%*3"])
def test_what_is_asked(form: str, problem: str) -> None:
    found = problem_asked(form.format(problem))
    assert found is not None and found.text == problem


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "-5",
        "What is 5?",
        "3+4=7",
        "3+4, 5+6",
        "Tom has 3-4 apples. How many?",
        "Where were you on 2024-05-01?",
        "What is 3+4 in binary?",
        "1+1" + "+1" * MOST_ASKED,
    ],
)
def test_what_asks_something_else(text: str) -> None:
    assert problem_asked(text) is None


@given(st.text("答is =?？。问0+\n", max_size=MOST_ASKED) | st.text(max_size=MOST_ASKED))
def test_any_text_is_read(text: str) -> None:
    found = problem_asked(text)
    assert found is None or problem_asked(found.text) == found

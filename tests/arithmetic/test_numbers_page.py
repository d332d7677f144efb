"""docs/numbers.md says what is read: all its examples have the values that stand there, and the table is all in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glmtune.arithmetic.notations import NOTATIONS
from glmtune.arithmetic.reading import final_number, write_number

PAGE = (Path(__file__).parents[2] / "docs/numbers.md").read_text("utf-8")
EXAMPLES = re.findall(r"`([^`\n]+)` → (-?[0-9./]*[0-9]|none)", PAGE)


def test_every_arrow_is_an_example() -> None:
    assert len(EXAMPLES) == PAGE.count("→") > 100


@pytest.mark.parametrize(("text", "value"), EXAMPLES)
def test_examples_of_the_page(text: str, value: str) -> None:
    number = final_number(text.replace("\\n", "\n"))
    assert ("none" if number is None else write_number(number)) == value


@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda notation: notation.name)
def test_the_table_stands_in_the_page(notation) -> None:
    examples = ", ".join(f"`{text}` → {value or 'none'}" for text, value in notation.examples.items())
    assert f"| {notation.name} | {examples} |" in PAGE


FRAMES = [
    "{}",
    "The answer is {}",
    "答案是{}",
    "答案：**{}**",
    "#### {}",
    "x = {}",
    "\\boxed{{{}}}",
    "\\[ {} \\]",
    "So we know:\n{}\n",
    "<think>It is 7.</think>{}",
]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(
    ("text", "value"),
    [example for notation in NOTATIONS for example in notation.examples.items() if not notation.is_small],
)
def test_notations_wherever_an_answer_stands(text: str, value: str | None, frame: str) -> None:
    number = final_number(frame.format(text))
    assert (number if number is None else write_number(number)) == value
    signed = final_number(frame.format(f"-{text}"))
    assert (signed if signed is None else write_number(-signed)) == value

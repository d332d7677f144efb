from __future__ import annotations

import random
from typing import Any

import pytest

from glmtune.arithmetic.problems import Problem
from glmtune.examples import Example
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings
from glmtune.tasks.wording import COPY_SHARE, COPY_WORDS, EQUALS_WORDS, OPERATOR_WORDS, Wording, WordingSettings

WORDS = sorted((word, sign) for sign, words in OPERATOR_WORDS.items() for word in words)[::-1]  # 加上 before 加


def task(**values: Any) -> Wording:
    return Wording(ArithmeticSettings(name="wording", **values))


def drawn(count: int = 400, split: Any = "train", **values: Any) -> list[Example]:
    made, rng = task(**values), random.Random(0)
    return [made.sample(rng, split) for _ in range(count)]


def is_copy(example: Example) -> bool:
    return example.facts["operator"] == "copy"


def with_signs(prompt: str) -> Problem:
    """The problem that is said in words."""
    for word in sorted(EQUALS_WORDS, key=len)[::-1]:
        prompt = prompt.removesuffix(word)
    for word, sign in WORDS:
        prompt = prompt.replace(word, sign)
    problem = Problem.parse(prompt)
    assert problem is not None and problem.text == prompt
    return problem


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("style", ["direct", "draft", "steps"])
def test_said_problems_are_right(style: str, echo: bool) -> None:
    made = task(style=style, echo=echo)
    for example in drawn(style=style, echo=echo):
        if is_copy(example):
            continue
        problem = with_signs(example.prompt)
        answer = problem.answer(2)
        assert not set(example.prompt) & set("+-*/=")
        assert example.facts == problem.facts()
        assert example.target.startswith(example.prompt) == echo
        assert ("|" in example.target) == (style != "direct")
        for completion in (example.target, answer, f" {example.target}\n"):
            assert made.score(example, completion).verdict == "exact"
        assert made.score(example, f"{example.target}1").verdict == "wrong"
        assert made.score(example, example.prompt).verdict == "unparseable"


def test_every_wording_occurs() -> None:
    text = "\n".join(example.prompt for example in drawn(1500))
    assert all(word in text for words in (*OPERATOR_WORDS.values(), EQUALS_WORDS, COPY_WORDS) for word in words)


def test_chains_are_said_in_full() -> None:
    assert all(is_copy(e) or len(with_signs(e.prompt).numbers) == 3 for e in drawn(100, num_operands=3))


def test_copies() -> None:
    copies = [example for example in drawn() if is_copy(example)]
    assert len(copies) / 400 == pytest.approx(COPY_SHARE, abs=0.05)
    assert {copy.target.endswith("=") for copy in copies} == {True, False}
    for copy in copies:
        word = next(word for word in COPY_WORDS if copy.prompt.startswith(word))
        assert copy.prompt == word + copy.target
        assert task().score(copy, f"{copy.target}\n").verdict == "exact"
        for completion in ("", copy.prompt, copy.target + "1"):
            assert task().score(copy, completion).verdict == "wrong"


def test_no_prompt_is_one_of_arithmetic() -> None:
    """Fine-tuning on arithmetic shows what was learned there only if its prompts are new."""
    rng = random.Random(0)
    asked = {Arithmetic(ArithmeticSettings(name="arithmetic")).sample(rng).prompt for _ in range(2000)}
    assert not asked & {example.prompt for example in drawn(2000)}


def test_held_out_problems_are_those_of_arithmetic() -> None:
    """Neither a said problem nor a copy shows what the other task holds out."""

    def forms(split: str) -> set[str]:
        return {
            (Problem.parse(e.target) if is_copy(e) else with_signs(e.prompt)).normal_form for e in drawn(400, split)
        }

    rng, arithmetic = random.Random(0), Arithmetic(ArithmeticSettings(name="arithmetic"))
    asked = {Problem.parse(arithmetic.sample(rng, "held_out").prompt).normal_form for _ in range(1000)}
    assert not forms("train") & asked and not forms("train") & forms("held_out")
    assert forms("held_out") & asked


def test_the_same_seed_draws_the_same_everywhere() -> None:
    examples = [task().sample(random.Random(f"golden {number}")) for number in range(3)]
    assert [(example.prompt, example.target) for example in examples] == [
        ("44per5gives", "44per5gives44000/5:40:0:00>44:8:04>04:8:04>00:0:00>00:0:00>;08.8|8.8"),
        ("20加25.22是", "20加25.22是00.02+22.52:22.540;22.54|45.22"),
        ("10减79", "10减79等于01-97<96;-96|-69"),
    ]


def test_words_have_no_calculator() -> None:
    with pytest.raises(ValueError, match="the calculator reads signs"):
        WordingSettings(name="wording", style="tool")

"""`task.check_steps`: scores, reports and predictions tell the first wrong step of a working."""

from __future__ import annotations

import random
import time

import pytest

from glmtune.config import RecipeError, load_recipe
from glmtune.evaluation.comparison import compare
from glmtune.evaluation.evaluator import Evaluation
from glmtune.evaluation.report import comparison_table, summarize
from glmtune.examples import Example
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings
from glmtune.tasks.wording import Wording, WordingSettings

CHECKED = Arithmetic(ArithmeticSettings(name="arithmetic", check_steps=True))
RIGHT, CARRY = "19+23=91+32:240;24|42", "19+23=91+32:230;23|32"
SAID = "wrong carry in step 1, sign 8: 91+32:230; for 91+32:240;"


@pytest.mark.parametrize("style", ["direct", "draft", "tool"])
def test_there_must_be_steps(style: str) -> None:
    with pytest.raises(
        RecipeError, match=f"task.check_steps: .*no steps with task.style={style}; set task.style=steps"
    ):
        load_recipe(None, ["task.check_steps=true", f"task.style={style}"])
    assert load_recipe(None, ["task.check_steps=true"]).task.check_steps  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", [RIGHT, "42", "19+23=42"])  # drawn, and of other people's records
def test_scores_tell_the_first_fault(target: str) -> None:
    example = Example("19+23=", target)
    score = CHECKED.score(example, CARRY)
    assert score.verdict == "wrong" and str(score.fault) == SAID
    assert CHECKED.score(example, RIGHT).fault is None
    unchecked = Arithmetic(ArithmeticSettings(name="arithmetic"))
    assert unchecked.score(example, CARRY).fault is None and unchecked.remarks("19+23=", CARRY) == {}


def test_predictions_tell_it_without_a_target() -> None:
    assert CHECKED.tell("19+23=", CARRY) == {"first_fault": SAID}
    assert CHECKED.tell("19+23=", RIGHT) == CHECKED.tell("What is love?", RIGHT) == {"first_fault": None}
    assert CHECKED.tell([{"role": "user", "content": "计算: 19+23="}], CARRY) == {"first_fault": SAID}


@pytest.mark.parametrize("problem", ["9" * 90 + "^10=", "2^9^9=", "(99^10)^10=", "1/0=", "+".join("1" * 300), "9/7^10"])
def test_any_prompt_takes_a_bounded_time(problem: str) -> None:
    started = time.process_time()
    CHECKED.remarks(problem, "1")
    assert time.process_time() - started < 2


def test_problems_in_words() -> None:
    made, rng = Wording(WordingSettings(name="wording", check_steps=True)), random.Random(0)
    for _ in range(100):
        example = made.sample(rng)
        score = made.score(example, example.target)
        assert score.verdict == "exact" and score.fault is None
    example = Example("19加23", "19加23得91+32:240;24|42")
    assert str(made.score(example, "19加23是91+32:230;23|32").fault) == SAID
    assert str(made.score(example, "19加23得91+32:230;23|32").fault) == SAID


def test_reports_group_failures_by_it() -> None:
    examples = [Example("19+23=", RIGHT)] * 4
    completions = [RIGHT, CARRY, CARRY, RIGHT[:12]]
    scores = [CHECKED.score(example, text) for example, text in zip(examples, completions, strict=True)]
    evaluation = Evaluation(examples, completions, scores)
    groups = compare(CHECKED, evaluation, evaluation)["failure_groups"]
    assert [(group["group"], group["n"]) for group in groups] == [
        ("wrong carry in the working", 2),
        ("cut off in the working", 1),
    ]
    assert groups[0]["samples"][0]["fault"] == SAID
    report = summarize(examples, completions, scores)
    assert report["faults"] == {"wrong carry": 2, "cut off": 1}
    assert [failure["fault"] for failure in report["failures"][:1]] == [SAID]
    table = comparison_table(None, evaluation.report())
    assert "first wrong in the working: wrong carry 2, cut off 1" in str(table.caption)

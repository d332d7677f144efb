"""A model is asked, its answers are scored, and the report says how they ended."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from glmtune.config import GenerationSettings, load_recipe
from glmtune.evaluation.evaluator import evaluate
from glmtune.evaluation.report import comparison_table, explain_cut_off
from glmtune.inference.conversation import Conversation
from glmtune.inference.engine import Engine
from glmtune.inference.selection import select_held_out
from glmtune.runtime import UserError
from glmtune.tasks.arithmetic import Arithmetic

SETTINGS = ["task.style=direct", "evaluation.num_examples=7", "generation.max_new_tokens=40"]


@pytest.fixture
def asked(tiny: tuple[Any, Any]) -> tuple[Arithmetic, Any]:
    recipe = load_recipe(None, SETTINGS)
    task = Arithmetic(recipe.task, recipe.data)
    return task, select_held_out(recipe, task, tiny[1], None)


def test_answers_are_scored_in_order(tiny: tuple[Any, Any], asked: tuple[Arithmetic, Any]) -> None:
    """Prompts that are encoded already are not encoded again, and mean the same."""
    task, examples = asked
    settings = GenerationSettings(max_new_tokens=6, batch_size=3)
    found = evaluate(*tiny, task, examples, settings, progress=False)
    answers = Engine(*tiny).answer([example.prompt for example in examples], settings)
    assert found.completions == [answer.text for answer in answers]
    assert found.finish_reasons == [answer.finish_reason for answer in answers]
    assert found.scores == [task.score(e, text) for e, text in zip(examples, found.completions, strict=True)]
    assert evaluate(*tiny, task, list(examples), settings, progress=False) == found


def test_answers_that_were_cut_off_are_counted(tiny: tuple[Any, Any], asked: tuple[Arithmetic, Any]) -> None:
    task, examples = asked
    found = evaluate(*tiny, task, examples, GenerationSettings(max_new_tokens=1), progress=False)
    report = found.report(text_metrics=False)
    cut = sum(reason == "length" for reason in found.finish_reasons)
    assert report["finish_reasons"] == {"stop": 7 - cut, "length": cut, "tool_calls": 0} and cut
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison_table(None, report))
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"{cut} of 7 answers were cut off" in shown and "set generation.max_new_tokens higher" in shown
    assert explain_cut_off({**report, "finish_reasons": {"stop": 7}}) == explain_cut_off({"n": 7}) == ""


def test_what_is_sampled_depends_on_the_seed_and_the_example_alone(
    tiny: tuple[Any, Any], asked: tuple[Arithmetic, Any]
) -> None:
    task, examples = asked

    def sample(batch_size: int, seed: int) -> list[str]:
        settings = GenerationSettings(max_new_tokens=6, do_sample=True, temperature=5.0, batch_size=batch_size)
        return evaluate(*tiny, task, examples, settings, progress=False, seed=seed).completions

    assert sample(1, 0) == sample(7, 0) != sample(7, 1000)


def test_a_model_may_take_less_than_its_config_says(tiny: tuple[Any, Any], asked: tuple[Arithmetic, Any]) -> None:
    """A prefix takes some of the places."""
    task, examples = asked
    with pytest.raises(UserError, match="more than the 10 that this model takes"):
        evaluate(*tiny, task, examples, GenerationSettings(max_new_tokens=6), progress=False, limit=10)


def test_what_is_refused_is_no_answer(
    tiny: tuple[Any, Any], asked: tuple[Arithmetic, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, examples = asked
    monkeypatch.setattr(task, "refuses", lambda prompt, turn: "no")
    found = evaluate(*tiny, task, examples, GenerationSettings(max_new_tokens=6), progress=False)
    assert set(found.completions) == {""} and {score.verdict for score in found.scores} == {"unparseable"}
    assert Conversation.about(task, Engine(*tiny)).refuses is task.refuses

"""A choice among samples beside one answer alone."""

from __future__ import annotations

import pytest

from glmtune.commands import evaluate
from glmtune.config import GenerationSettings
from glmtune.evaluation.report import sampled_table
from glmtune.evaluation.sampled import compare_samples, repeated
from glmtune.examples import Example
from glmtune.execution import Run
from glmtune.inference.completion import Completion
from glmtune.inference.conversation import Exchange
from glmtune.inference.selection import HeldOut
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings


def said(text: str, tokens: int = 1) -> Exchange:
    return Exchange([{"role": "assistant", "content": text}], Completion(text, [1] * tokens, 3, "stop"))


def test_what_a_choice_is_worth_and_costs() -> None:
    examples = [Example("1+1=", "2"), Example("1+2=", "3"), Example("2+2=", "4")]
    once = [said("3", 5), said("3", 5), said("5", 5)]
    sampled = [said(text, 2) for text in ("2", "2", "9", "3", "8", "8", "5", "6", "4")]
    found = compare_samples(
        Arithmetic(ArithmeticSettings()), examples, once, sampled, GenerationSettings(num_samples=3)
    )
    assert (found["num_samples"], found["choose"], found["n"]) == (3, "majority", 3)
    assert found["accuracy_once"] == pytest.approx(1 / 3) and found["accuracy"] == pytest.approx(1 / 3)
    assert found["accuracy_sampled"] == pytest.approx(4 / 9) and found["pass_at_k"] == 1
    assert (found["tokens_once"], found["tokens"]) == (5, 6)
    assert (found["change"]["better"], found["change"]["worse"]) == (1, 1)


def test_prompts_are_encoded_once() -> None:
    examples = HeldOut([Example("1", "1"), Example("2", "2")], [[1], [2]])
    several = repeated(examples, 2)
    assert isinstance(several, HeldOut) and several.input_ids == [[1], [1], [2], [2]]
    assert [one.prompt for one in several] == ["1", "1", "2", "2"]
    assert list(repeated(list(examples), 2)) == list(several)


def test_it_stands_beside_greedy_answers(tiny_run: Run) -> None:
    """Which are those of an evaluation without samples."""
    run, several = str(tiny_run.folder.path), ["generation.num_samples=3", "generation.temperature=2.0"]
    alone, plain = evaluate.run(run)
    once, report = evaluate.run(run, overrides=several)
    assert alone.completions == once.completions
    assert plain["accuracy"] == report["accuracy"] == report["sampled"]["accuracy_once"]
    assert "sampled" not in plain and report["sampled"]["n"] == report["n"]
    assert report["sampled"]["tokens"] > report["sampled"]["tokens_once"]
    assert [column.header for column in sampled_table(report).columns] == ["", "right", "95% interval", "tokens"]
    assert sampled_table(report).row_count == 4

"""Several answers to each prompt: drawn as one by one, scored as an evaluation scores."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

import glmtune
from glmtune.config import GenerationSettings
from glmtune.evaluation.evaluator import evaluate_by
from glmtune.examples import Example
from glmtune.inference.engine import Engine
from glmtune.inference.rollouts import Rollout, pass_at_k, roll_out
from glmtune.scoring import Score
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings

SAMPLED = GenerationSettings(max_new_tokens=6, batch_size=4, do_sample=True, temperature=3.0, top_p=1.0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The embedded model."""
    return Engine(*glmtune.load("nano"))


def test_answers_of_a_prompt_are_those_of_an_evaluation_by_the_same_seeds(engine: Engine) -> None:
    task = Arithmetic(ArithmeticSettings(operators="+", kinds=["integer"], maximum=9))
    rng = random.Random(0)
    examples = [task.sample(rng) for _ in range(3)]
    groups = roll_out(engine, task, examples, SAMPLED, 2, seed=5)
    asked = [example for example in examples for _ in range(2)]
    alone = evaluate_by(engine, task, asked, SAMPLED, progress=False, seed=5)
    rollouts = [rollout for group in groups for rollout in group]
    assert [len(group) for group in groups] == [2, 2, 2]
    assert [rollout.example for rollout in rollouts] == asked
    assert [rollout.exchange.text for rollout in rollouts] == alone.completions
    assert [rollout.score for rollout in rollouts] == alone.scores
    assert len(set(alone.completions)) > 3, "samples differ"


def group(right: int, n: int) -> list[Rollout]:
    verdicts = ["exact"] * right + ["wrong"] * (n - right)
    return [Rollout(Example("1+1", "2"), None, None, Score(verdict)) for verdict in verdicts]  # type: ignore[arg-type]


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_the_mean_over_all_choices_of_k(right: int, k: int) -> None:
    chosen = [*combinations([True] * right + [False] * (5 - right), k)]
    assert pass_at_k([group(right, 5)], k) == pytest.approx(sum(map(any, chosen)) / len(chosen))


def test_pass_at_k_is_the_mean_over_prompts_and_wants_k_answers() -> None:
    assert pass_at_k([group(4, 4), group(0, 4)], 1) == 0.5
    with pytest.raises(ValueError, match="3 answers to a prompt are too few for pass@4"):
        pass_at_k([group(1, 3)], 4)

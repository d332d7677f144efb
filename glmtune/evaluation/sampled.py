"""Several sampled answers to each example, one of which is chosen, beside one answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from glmtune.config import GenerationSettings
from glmtune.evaluation.breakdown import share_of
from glmtune.examples import Example
from glmtune.inference.choosing import choose
from glmtune.inference.conversation import Exchange
from glmtune.inference.selection import HeldOut
from glmtune.intervals import paired_difference
from glmtune.scoring import Score
from glmtune.tasks import Task


def repeated(examples: Sequence[Example], times: int) -> Sequence[Example]:
    """Return each example so many times, one beside the other, with its prompt encoded where it is."""
    several = [example for example in examples for _ in range(times)]
    if not isinstance(examples, HeldOut):
        return several
    return HeldOut(several, [input_ids for input_ids in examples.input_ids for _ in range(times)])


def compare_samples(
    task: Task,
    examples: Sequence[Example],
    once: Sequence[Exchange],
    sampled: Sequence[Exchange],
    settings: GenerationSettings,
) -> dict[str, Any]:
    """Return what a choice among samples is worth, and what it costs.

    Args:
        task: scores the answers.
        examples: what was asked.
        once: the answer to each, when it was asked once.
        sampled: `num_samples` answers to each, one beside the other.
        settings: how many there are, and how one is chosen.

    Returns:
        `num_samples`, `choose`, `n`, `accuracy` of the chosen ones with `accuracy_ci95`, and its `change` against
        `once`; `accuracy_once` and `accuracy_sampled`, of one sample, in the mean; `pass_at_k`, the share of examples
        of which one sample or more is right; `tokens_once` and `tokens`, written for an example, in the mean.
    """
    k = settings.num_samples
    groups = [sampled[start : start + k] for start in range(0, len(sampled), k)]
    choices = [
        choose(task, example.prompt, group, settings.choose) for example, group in zip(examples, groups, strict=True)
    ]

    def score(example: Example, exchange: Exchange) -> Score:
        return task.score(example, exchange.text, exchange.tool_calls)

    alone = [score(*one).correct for one in zip(examples, once, strict=True)]
    all_right = [
        [score(example, exchange).correct for exchange in group]
        for example, group in zip(examples, groups, strict=True)
    ]
    chosen = [score(example, choice.exchange) for example, choice in zip(examples, choices, strict=True)]
    return {
        "num_samples": k,
        "choose": settings.choose,
        **share_of(chosen),
        "change": paired_difference(alone, [one.correct for one in chosen]).report(),
        "accuracy_once": fmean(alone),
        "accuracy_sampled": fmean(fmean(group) for group in all_right),
        "pass_at_k": fmean(any(group) for group in all_right),
        "tokens_once": fmean(exchange.num_tokens for exchange in once),
        "tokens": fmean(choice.num_tokens for choice in choices),
    }

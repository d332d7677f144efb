"""Pairs of a model's own answers: a right one against a wrong one to the same prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from glmtune.config import GenerationSettings
from glmtune.examples import Example
from glmtune.inference.completion import Answering
from glmtune.inference.conversation import Exchange
from glmtune.inference.rollouts import Rollout, roll_out
from glmtune.tasks import Task

BATCHES_PER_WINDOW = 8  # of answers, after which what was found is told


@dataclass(frozen=True)
class Sampled:
    """What the answers to one prompt are good for.

    Attributes:
        right, samples: right answers, and all.
        unusable: answers that are no text as the model ends it: cut off, refused, or with calls of tools or thoughts.
        pairs: records `{"prompt", "chosen", "rejected", ...}`.
    """

    right: int
    samples: int
    unusable: int
    pairs: Sequence[dict[str, Any]]


def sample_pairs(
    engine: Answering,
    task: Task,
    examples: Sequence[Example],
    settings: GenerationSettings,
    num_samples: int,
    most: int = 1,
    seed: int = 0,
) -> Iterator[list[Sampled]]:
    """Yield what the answers to each prompt are good for, in order, of as many prompts as are answered together.

    Args:
        engine, task, settings, num_samples, seed: as `roll_out` takes them.
        examples: whose prompts are asked.
        most: pairs of one prompt.

    Raises:
        UserError: a prompt is too long for the model.
    """
    window = max(1, settings.batch_size * BATCHES_PER_WINDOW // num_samples)
    for start in range(0, len(examples), window):
        asked = examples[start : start + window]
        answered = roll_out(engine, task, asked, settings, num_samples, seed + start * num_samples)
        yield [pair_up(group, most) for group in answered]


def pair_up(group: Sequence[Rollout], most: int = 1) -> Sampled:
    """Return pairs of the answers to one prompt: the most frequent ones of each kind first, none twice."""
    example = group[0].example
    usable = [rollout for rollout in group if is_plain(rollout.exchange)]
    right, wrong = (
        [text for text, _ in Counter(one.exchange.text for one in usable if one.score.correct is kind).most_common()]
        for kind in (True, False)
    )
    count = sum(rollout.score.correct for rollout in group)
    more = {"facts": example.facts, "tools": list(example.tools)}
    chosen = sorted(product(range(len(right)), range(len(wrong))), key=sum)[:most]
    pairs = [
        {
            "prompt": example.prompt,
            "chosen": right[one],
            "rejected": wrong[other],
            **{name: value for name, value in more.items() if value},
            "right": count,
            "samples": len(group),
        }
        for one, other in chosen
    ]
    return Sampled(count, len(group), len(group) - len(usable), pairs)


def is_plain(exchange: Exchange) -> bool:
    """Return whether an answer is one message of text alone, which the model itself has ended."""
    is_text = [message.keys() for message in exchange.messages] == [{"role", "content"}]
    return is_text and exchange.completion.finish_reason == "stop" and bool(exchange.text.strip())

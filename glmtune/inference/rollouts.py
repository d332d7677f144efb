"""Several answers to each of some prompts, scored by the task: what is learned from a score, and what pass@k counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb

from glmtune.config import GenerationSettings
from glmtune.examples import Example
from glmtune.inference.completion import Answering
from glmtune.inference.conversation import Conversation, Exchange, Question
from glmtune.scoring import Score
from glmtune.tasks import Task


@dataclass(frozen=True)
class Rollout:
    """One answer to the prompt of an example, and what the task thinks of it.

    Attributes:
        example: whose prompt was asked.
        question: what the model was asked: the prompt's `input_ids` are those of its request.
        exchange: what it answered.
        score: as an evaluation has it.
    """

    example: Example
    question: Question
    exchange: Exchange
    score: Score


def roll_out(
    engine: Answering,
    task: Task,
    examples: Sequence[Example],
    settings: GenerationSettings,
    num_samples: int,
    seed: int = 0,
) -> list[list[Rollout]]:
    """Answer the prompt of each example several times, in batches, and score the answers as an evaluation does.

    Args:
        engine: answers, by the weights that it has now.
        task: offers its tools, and scores the answers.
        examples: what is asked.
        settings: how to decode; `do_sample`, or all answers to a prompt are the same.
        num_samples: answers to each prompt.
        seed: of what is sampled; an answer depends on this and on its number alone.

    Returns:
        `num_samples` rollouts of each example, in order.

    Raises:
        UserError: a prompt is too long for the model; told before any is answered.
    """
    conversation = Conversation.about(task, engine)
    questions: list[Question] = []
    for example in examples:
        first = conversation.ask(example.prompt, settings, example.tools)
        ids = first.request.input_ids
        questions += [
            conversation.ask(example.prompt, settings, example.tools, ids, seed=seed + len(questions) + number)
            for number in range(num_samples)
        ]
    exchanges = dict(conversation.answer(questions))
    groups: list[list[Rollout]] = []
    for place, example in enumerate(examples):
        numbers = range(place * num_samples, (place + 1) * num_samples)
        groups.append([scored(task, example, questions[number], exchanges[number]) for number in numbers])
    return groups


def scored(task: Task, example: Example, question: Question, exchange: Exchange) -> Rollout:
    """Return an answer with its score: by the same function as in an evaluation."""
    return Rollout(example, question, exchange, task.score(example, exchange.text, exchange.tool_calls))


def pass_at_k(groups: Iterable[Sequence[Rollout]], k: int) -> float:
    """Return the chance that one of k answers to a prompt is right, without bias, from n >= k answers to each.

    (Chen et al. 2021, Evaluating Large Language Models Trained on Code, https://arxiv.org/abs/2107.03374)

    Raises:
        ValueError: a group has fewer than k answers.
    """
    chances: list[float] = []
    for group in groups:
        n, right = len(group), sum(rollout.score.correct for rollout in group)
        if n < k:
            raise ValueError(f"{n} answers to a prompt are too few for pass@{k}")
        chances.append(1 - comb(n - right, k) / comb(n, k))
    return sum(chances) / len(chances)

"""Ask a model the examples of a task and score its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.distributed import gather, is_main, share
from glmtune.evaluation.report import count_finish_reasons, summarize
from glmtune.examples import Example
from glmtune.inference.completion import Answering, FinishReason
from glmtune.inference.conversation import Conversation, Exchange
from glmtune.inference.engine import Engine
from glmtune.inference.selection import HeldOut
from glmtune.methods import Model
from glmtune.scoring import Score
from glmtune.tasks import Axis, Task


@dataclass(frozen=True)
class Evaluation:
    """Examples, what the model answered, and what the task thinks of it; lists of equal length.

    Attributes:
        examples: what was asked.
        completions: the answers; empty where one was refused, or where the model called tools to the end.
        scores: what the task thinks of them.
        axes: of the task, along which the scores are broken down.
        finish_reasons: why the model stopped; empty where nobody looked.
        tool_calls: the calls of tools that were made for each answer; empty where nobody looked.
    """

    examples: list[Example]
    completions: list[str]
    scores: list[Score]
    axes: Sequence[Axis] = ()
    finish_reasons: Sequence[FinishReason] = ()
    tool_calls: Sequence[Sequence[dict[str, Any]]] = ()

    @property
    def accuracy(self) -> float:
        """Share of the examples that are answered rightly, 0 to 1."""
        return sum(score.correct for score in self.scores) / len(self.scores) if self.scores else 0.0

    def report(self, text_metrics: bool = True) -> dict[str, Any]:
        """Return the figures, as `report.json` holds them."""
        figures = summarize(self.examples, self.completions, self.scores, self.axes, text_metrics)
        return {**figures, "finish_reasons": count_finish_reasons(self.finish_reasons)}


def evaluate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    settings: GenerationSettings,
    progress: bool = True,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Do what `evaluate_by` does with a model in evaluation mode, which takes `limit` tokens."""
    return evaluate_by(Engine(model, tokenizer, limit), task, examples, settings, progress, seed=seed)


def evaluate_by(
    engine: Answering,
    task: Task,
    examples: Sequence[Example],
    settings: GenerationSettings,
    progress: bool = True,
    *,
    seed: int = 0,
) -> Evaluation:
    """Answer all examples, and score each answer. Arguments as for `answer_all`."""
    return score_answers(task, examples, answer_all(engine, task, examples, settings, progress, seed=seed))


def answer_all(
    engine: Answering,
    task: Task,
    examples: Sequence[Example],
    settings: GenerationSettings,
    progress: bool = True,
    *,
    seed: int = 0,
) -> list[Exchange]:
    """Answer all examples in batches, divided among the processes.

    Args:
        engine: answers.
        task: offers its tools.
        examples: what is asked.
        settings: how to decode; greedy unless they say otherwise.
        progress: show a progress bar.
        seed: of what is sampled; an example's answer depends on this and on its number alone.
    """
    conversation = Conversation.about(task, engine)
    encoded = examples.input_ids if isinstance(examples, HeldOut) else [None] * len(examples)
    questions = [
        conversation.ask(example.prompt, settings, example.tools, input_ids, seed=number)
        for number, (example, input_ids) in share([*enumerate(zip(examples, encoded, strict=True), start=seed)])
    ]
    hidden = not (progress and is_main())
    answers = conversation.answer(questions)
    mine = dict(tqdm(answers, total=len(questions), desc="answering", unit="problem", disable=hidden))
    return gather([mine[index] for index in range(len(questions))])


def score_answers(task: Task, examples: Sequence[Example], exchanges: Sequence[Exchange]) -> Evaluation:
    """Return what a task thinks of the answers to examples, one to each."""
    answered = [*zip(examples, exchanges, strict=True)]
    return Evaluation(
        list(examples),
        [exchange.text for _, exchange in answered],
        [task.score(example, exchange.text, exchange.tool_calls) for example, exchange in answered],
        task.axes,
        [exchange.completion.finish_reason for _, exchange in answered],
        [exchange.tool_calls for _, exchange in answered],
    )

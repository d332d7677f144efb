"""Ask a model the examples of a task and score its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.distributed import gather, is_main, share
from glmtune.evaluation.report import summarize
from glmtune.examples import Example
from glmtune.inference.conversation import converse
from glmtune.inference.engine import Engine
from glmtune.methods import Model
from glmtune.scoring import Score
from glmtune.tasks import Axis, Task


@dataclass(frozen=True)
class Evaluation:
    """Examples, what the model answered, and what the task thinks of it; three lists of equal length.

    Attributes:
        axes: of the task, along which the scores are broken down.
    """

    examples: list[Example]
    completions: list[str]
    scores: list[Score]
    axes: Sequence[Axis] = ()

    @property
    def accuracy(self) -> float:
        """Share of the examples that are answered rightly, 0 to 1."""
        return sum(score.correct for score in self.scores) / len(self.scores) if self.scores else 0.0

    def report(self, text_metrics: bool = True) -> dict[str, Any]:
        """The figures, as `report.json` holds them."""
        return summarize(self.examples, self.completions, self.scores, self.axes, text_metrics)


def evaluate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    settings: GenerationSettings,
    progress: bool = True,
) -> Evaluation:
    """Answer all examples in batches, divided among the processes, and score each answer.

    Args:
        model: in evaluation mode.
        task: scores the answers.
        settings: how to decode; greedy unless they say otherwise.
        progress: show a progress bar.
    """
    examples = list(examples)
    mine = share([example.prompt for example in examples])
    texts = [""] * len(mine)
    answers = converse(Engine(model, tokenizer), mine, settings, task.reply)
    hidden = not (progress and is_main())
    for index, text in tqdm(answers, total=len(mine), desc="answering", unit="problem", disable=hidden):
        texts[index] = text
    completions = gather(texts)
    scores = [task.score(example, text) for example, text in zip(examples, completions, strict=True)]
    return Evaluation(examples, completions, scores, task.axes)

"""What is learned from an example. An objective makes the data set and the Trainer; the loop knows no objective.

torch and transformers are imported by the functions that need them, so that the settings can be read without.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from glmtune.config import NamedSettings, Recipe
from glmtune.runtime import RunFolder, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from glmtune.data import EncodedDataset
    from glmtune.data.encoding import Encoder
    from glmtune.examples import Example
    from glmtune.methods import Method, Model
    from glmtune.tasks import Task
    from glmtune.training.run_trainer import Judge, RunTrainer

Part = Literal["target", "rejected", "text"]  # of an `Example`


class Preparation(Protocol):
    """What is decided before the data set is made: the part of a plan that `Objective.dataset` reads.

    Attributes:
        recipe: what the user said.
        task: whose examples are learned.
        encoder: examples to encodings, no longer than the model can take.
        general: questions by which forgetting is measured, and which must not be learned.
    """

    @property
    def recipe(self) -> Recipe: ...
    @property
    def task(self) -> Task: ...
    @property
    def encoder(self) -> Encoder: ...
    @property
    def general(self) -> Sequence[Example]: ...


class Plan(Preparation, Protocol):
    """Everything decided: what `Objective.trainer` reads.

    Attributes:
        method: which edited the model.
        tokenizer: with the template that is learned.
        dataset, steps: what `Objective.dataset` gave.
        folder: of the run.
    """

    @property
    def method(self) -> Method: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def dataset(self) -> EncodedDataset: ...
    @property
    def steps(self) -> int: ...
    @property
    def folder(self) -> RunFolder: ...


class Objective(ABC):
    """Base of all objectives. One file in this folder, or one of the user's, defines one subclass.

    Attributes:
        Settings: the objective's settings; they become the fields of the recipe's `objective` section.
        needs: the parts of an example that are learned from; empty where prompts alone are.
        metric: the figure of the judge by which the best weights are chosen.
    """

    Settings: ClassVar[type[NamedSettings]] = NamedSettings
    needs: ClassVar[frozenset[Part]]
    metric: ClassVar[str] = "accuracy"

    def __init__(self, settings: NamedSettings):
        self.settings = settings

    @abstractmethod
    def dataset(self, plan: Preparation) -> tuple[EncodedDataset, int]:
        """Return what is learned, and in how many optimizer steps.

        Raises:
            UserError: a file that cannot be read, or examples that are too long.
        """

    def judge(self, plan: Preparation) -> Judge | None:
        """Return how a model is scored, before, during and after the training.

        Default: None; the model is asked held-out examples, and the task scores its answers.
        """
        return None

    def check(self, plan: Preparation) -> None:
        """See on one example whether the task has what this objective needs.

        Raises:
            UserError: it has not.
        """
        first = plan.task.sample(random.Random(plan.recipe.seed))
        has = {"target": first.target or first.tool_calls, "rejected": first.rejected, "text": first.text}
        missing = [part for part in sorted(self.needs) if not has[part]]
        if missing:
            raise UserError(
                f"objective.name={self.settings.name} learns from {' and '.join(missing)}, which task.name="
                f"{plan.recipe.task.name} does not have. Choose another task or objective; `glmtune ls` shows them."
            )

    @abstractmethod
    def trainer(self, plan: Plan, model: Model, judge: Judge) -> RunTrainer:
        """Return the loop, ready to `run`.

        Args:
            plan: everything decided.
            model: with the method applied.
            judge: scores the model on held-out examples.

        Raises:
            UserError: the device or an optional package cannot do what the recipe says.
        """


BASE = Objective

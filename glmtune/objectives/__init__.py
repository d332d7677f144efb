"""What is learned from an example. An objective makes the data set and the Trainer; the loop knows no objective.

torch and transformers are imported by the functions that need them, so that the settings can be read without.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from glmtune.config import NamedSettings
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from glmtune.config import Recipe
    from glmtune.data import EncodedDataset
    from glmtune.examples import Example
    from glmtune.methods import Method, Model
    from glmtune.plan import Plan, Preparation
    from glmtune.training.memory import Demand
    from glmtune.training.run_trainer import Judge, RunTrainer

Part = Literal["target", "rejected", "text"]  # of an `Example`


class Objective(ABC):
    """Base of all objectives. One file in this folder, or one of the user's, defines one subclass.

    Attributes:
        Settings: the objective's settings; they become the fields of the recipe's `objective` section.
        needs: the parts of an example that are learned from; empty where prompts alone are.
        asks: the model is asked held-out examples, and the task scores its answers; else there is a `judge`.
        metric: the figure by which the best weights are chosen.
        loss_unit: what a loss is of, as an axis says it.
        training: settings of the recipe's `training` that are others with this objective, where the recipe has none.
    """

    Settings: ClassVar[type[NamedSettings]] = NamedSettings
    needs: ClassVar[frozenset[Part]]
    asks: bool = True
    metric: str = "accuracy"
    loss_unit: str = "nats a token"
    training: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, settings: NamedSettings):
        self.settings = settings

    @abstractmethod
    def dataset(self, plan: Preparation) -> tuple[EncodedDataset, int]:
        """Return what is learned, and in how many optimizer steps.

        Raises:
            UserError: a file that cannot be read, or examples that are too long.
        """

    def learned(self, plan: Preparation) -> Sequence[Example]:
        """Return the records that are learned beside those of the task: a run that goes on must find the same."""
        return ()

    def learning_rate(self, method: Method, hidden_size: int) -> float:
        """Return the peak learning rate where the recipe names none: the method's."""
        return method.learning_rate(hidden_size)

    def probe(self, plan: Plan, model: Model) -> dict[str, float]:
        """Return what else is measured of a model right before and after the training, by name; the report has it."""
        return {}

    def advise(self, probed: Mapping[str, float]) -> str | None:
        """Return what is said of a model before the training, by what `probe` measured.

        Raises:
            UserError: there is nothing that it could learn.
        """
        return None

    def judge(self, plan: Preparation, examples: Sequence[Example] | None = None) -> Judge:
        """Return what scores a model before, during and after the training, where it is not asked.

        Args:
            plan: what is decided.
            examples: by which it is judged; default: held-out ones.
        """
        raise NotImplementedError(f"{type(self).__name__} neither asks nor judges")

    def judge_during(self, plan: Preparation, judge: Judge) -> Judge:
        """Return what scores a model at the beginning of the training, and during it.

        Args:
            plan: what is decided.
            judge: by which the best weights are chosen.
        """
        return judge

    def judges(self, examples: Sequence[Example]) -> bool:
        """Return whether these can be given to `judge`; else the model is asked them."""
        return False

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

    def demand(self, recipe: Recipe) -> Demand:
        """Return what the loop takes of memory beside the passes of an example, for `glmtune estimate`.

        Args:
            recipe: what it takes may depend on the method.
        """
        from glmtune.training.memory import ORDINARY

        return ORDINARY

    def following(self, run: str, steps: int, draws: bool) -> list[str]:
        """Return the commands that a user is likely to want after a training.

        Args:
            run: its folder, quoted for a shell.
            steps: that were made.
            draws: the task draws its examples without end.
        """
        own = "train task.name=instructions task.file=YOURS.jsonl"  # what was drawn is an exercise
        return [f"evaluate {run}", f"chat {run}", own if draws else predicting(run)]

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


def predicting(run: str) -> str:
    """Return the command by which a run answers a file of prompts."""
    return f"predict {run} --input prompts.jsonl --output answers.csv"


BASE = Objective

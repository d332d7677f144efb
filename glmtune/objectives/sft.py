"""Supervised fine-tuning: the target of each example is learned, its prompt is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmtune.config import NamedSettings
from glmtune.objectives import Objective

if TYPE_CHECKING:
    from glmtune.data import EncodedDataset
    from glmtune.methods import Model
    from glmtune.plan import Plan, Preparation
    from glmtune.training.run_trainer import Judge, RunTrainer


class SftSettings(NamedSettings):
    """Supervised fine-tuning has no settings of its own."""


class SupervisedFineTuning(Objective):
    """Cross-entropy of the target tokens."""

    Settings = SftSettings
    needs = frozenset({"target"})

    def dataset(self, plan: Preparation) -> tuple[EncodedDataset, int]:
        """Return the task's examples, with those of `data.mixture`, and the optimizer steps."""
        from glmtune.data.mixture import training_set

        return training_set(plan.recipe, plan.task, plan.encoder, plan.general, plan.mixed)

    def trainer(self, plan: Plan, model: Model, judge: Judge) -> RunTrainer:
        """Return the loop with the loss of the target tokens."""
        from glmtune.training.trainer import make_trainer

        groups = plan.method.parameter_groups(model)
        return make_trainer(model, plan.tokenizer, plan.dataset, plan.recipe, plan.steps, judge, plan.folder, groups)

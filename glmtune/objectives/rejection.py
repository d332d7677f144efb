"""Expert iteration: the model answers, the task scores, and what is right is learned; in rounds.

Rejection sampling fine-tuning, also known as STaR (Zelikman et al. 2022, https://arxiv.org/abs/2203.14465) without its
hints, and RFT (Yuan et al. 2023, https://arxiv.org/abs/2308.01825): the loss is that of supervised fine-tuning, the
targets are the model's own answers.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from glmtune import distributed
from glmtune.config import NamedSettings
from glmtune.objectives import Objective
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from glmtune.config import Recipe
    from glmtune.data import EncodedDataset
    from glmtune.methods import Model
    from glmtune.plan import Plan, Preparation
    from glmtune.training.memory import Demand
    from glmtune.training.run_trainer import Judge, RunTrainer


class RejectionSettings(NamedSettings):
    """How much is sampled and kept in a round, and how long it is learned."""

    rounds: int = Field(20, ge=1, description="rounds, where `training.steps` names no number of steps")
    prompts_per_round: int = Field(128, ge=1, description="prompts of the train split that are answered in a round")
    num_samples: int = Field(8, ge=1, description="answers to each prompt")
    max_kept_per_prompt: int = Field(4, ge=1, description="right answers to a prompt that are learned, all different")
    steps_per_round: int = Field(10, ge=1, description="optimizer steps until the model is asked again")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens of this total probability")
    check_working: bool = Field(
        True,
        description="keep a right answer only if the task finds no fault in its working (task.check_steps) and its "
        "calls of tools are what was asked",
    )
    skip_solved: bool = Field(
        True, description="leave out prompts to which all answers are right, where there are others to learn from"
    )


class RejectionSampling(Objective):
    """Cross-entropy of the model's own right answers, sampled anew in each round from the weights of its beginning."""

    Settings = RejectionSettings
    settings: RejectionSettings
    needs = frozenset()

    def dataset(self, plan: Preparation) -> tuple[EncodedDataset, int]:
        """Return the task's examples, whose prompts are answered, and the optimizer steps of all rounds.

        Raises:
            UserError: the task cannot score answers, other records are to be mixed in, or several processes train.
        """
        from glmtune.data.mixture import training_set

        self.check(plan)
        steps = plan.recipe.training.steps or self.settings.rounds * self.settings.steps_per_round
        training = plan.recipe.training.model_copy(update={"steps": steps})
        return training_set(plan.recipe.model_copy(update={"training": training}), plan.task, plan.encoder)

    def check(self, plan: Preparation) -> None:
        """See whether the task can tell right answers from wrong ones, by an example of its own.

        Raises:
            UserError: it cannot; or a setting does not go with this objective.
        """
        name = f"objective.name={self.settings.name}"
        if plan.recipe.data.mixture:
            raise UserError(f"data.mixture: {name} learns the model's own answers alone. Leave it out.")
        if distributed.world_size() > 1:
            raise UserError(f"{name}: one process samples and learns. Set training.devices=1.")
        first = plan.task.sample(random.Random(plan.recipe.seed))
        scores = first.text is None and (first.target or first.tool_calls)
        if not scores or not plan.task.score(first, first.target, first.tool_calls).correct:
            raise UserError(
                f"{name} learns what the task scores right, and task.name={plan.recipe.task.name} has no answers by "
                "which it could score. Choose a task whose answers can be checked, or objective.name=sft or pretrain."
            )

    def following(self, run: str, steps: int, draws: bool) -> list[str]:
        """Return how the run is judged, trained for as long again, and given away."""
        return [f"evaluate {run}", f"train --resume {run} training.steps={2 * steps}", f"export {run}"]

    def demand(self, recipe: Recipe) -> Demand:
        """Return what rounds take: answers are decoded between the steps, and learned whatever their length."""
        from glmtune.training.memory import Demand

        return Demand(rolls_out=True)

    def trainer(self, plan: Plan, model: Model, judge: Judge) -> RunTrainer:
        """Return the loop with the loss of the targets, which are sampled from the model on the way."""
        from glmtune.objectives._rounds import Rounds, RoundTrainer
        from glmtune.training.trainer import make_trainer

        groups = plan.method.parameter_groups(model)
        kind = partial(RoundTrainer, rounds=Rounds(plan, self.settings))
        return make_trainer(
            model, plan.tokenizer, plan.dataset, plan.recipe, plan.steps, judge, plan.folder, groups, kind
        )

"""GRPO: reinforcement learning from the task's own score; of several answers to a prompt, the better become likelier.

Group relative policy optimization (Shao et al. 2024, https://arxiv.org/abs/2402.03300) as DAPO (Yu et al. 2025,
https://arxiv.org/abs/2503.14476) and Dr. GRPO (Liu et al. 2025, https://arxiv.org/abs/2503.20783) have mended it: a
mean over tokens, a wider bound above, no division by the standard deviation, and groups of equal answers replaced.
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from glmtune import distributed, registry
from glmtune.config import NamedSettings, Recipe
from glmtune.objectives import Objective
from glmtune.objectives._rewards import MEASURED, RewardSettings, label_of
from glmtune.reporting.numbers import percent
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from glmtune.data import EncodedDataset
    from glmtune.examples import Example
    from glmtune.methods import Method, Model
    from glmtune.plan import Plan, Preparation
    from glmtune.training.memory import Demand
    from glmtune.training.run_trainer import Judge, RunTrainer

STEPS = 100  # where a task draws without end and the recipe names none
RATE, RATE_OF_BASE = 0.5, 0.05  # times the method's own rate: of updates beside the base, and of the base's weights
LITTLE = 0.02  # between pass@1 and pass@k, below which there is little to sharpen


class GrpoSettings(NamedSettings):
    """How answers are drawn, what they are worth, and how far a step goes.

    `training.batch_size` counts answers: those that a device learns from at a time. A step is of `training.batch_size`
    times `training.gradient_accumulation_steps` answers, to `num_generations` times fewer prompts.
    """

    num_generations: int = Field(8, ge=2, description="answers to each prompt, which are compared with each other")
    rewards: list[RewardSettings] = Field(
        [RewardSettings(name="correct")],
        description="what an answer is worth, e.g. [{name: correct, weight: 1}, {name: length, weight: 0.1}]: correct "
        "is the task's own score; length, 0 to -1, prefers short answers; faithful_calls wants tools called as asked, "
        "and no call twice; or a path to your own .py file with a function reward(rollout)",
        min_length=1,
    )
    max_refills: int = Field(
        3,
        ge=0,
        description="rounds of other prompts that a step asks in place of those whose answers are all equally good, "
        "of which nothing is learned (DAPO's dynamic sampling)",
    )
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the answers that are learned from")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens of this total probability")
    loss_type: Literal["dapo", "dr_grpo", "grpo"] = Field(
        "dapo",
        description="mean over the tokens of all answers of a step (dapo); sum over them, by the longest that they "
        "could be (dr_grpo); or mean over answers of the mean over their tokens, which favours short right and long "
        "wrong ones (grpo)",
    )
    scale_rewards: Literal["none", "group", "batch"] = Field(
        "none",
        description="divide what an answer is better than its group by the standard deviation of the group's or all "
        "rewards, or by nothing",
    )
    mask_truncated_completions: bool = Field(
        True, description="learn nothing from answers that `generation.max_new_tokens` cut off"
    )
    num_iterations: int = Field(
        1, ge=1, description="steps that learn from the same answers; from the second on, epsilon bounds them"
    )
    epsilon: float = Field(0.2, gt=0, lt=1, description="how much less likely than when it was drawn a token becomes")
    epsilon_high: float = Field(0.28, gt=0, description="how much likelier than when it was drawn a token becomes")
    beta: float = Field(
        0.0, ge=0, description="weight of the KL divergence from the model as it was before; 0: it is not computed"
    )
    num_probed: int = Field(
        64, ge=1, description="held-out prompts that are answered `num_generations` times before and after"
    )
    zero_std_patience: int = Field(
        10, ge=1, description="end after so many steps in a row that nothing could be learned from, refilled and all"
    )
    force: bool = Field(False, description="train though the answers before it show that nothing can be learned")

    @field_validator("rewards", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        """A name alone stands for a list of it."""
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _differ(self) -> Self:
        labels = [label_of(reward.name) for reward in self.rewards]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(
                f"rewards: {', '.join(twice)} stands there twice; give it once, with the sum of the weights"
            )
        if not any(reward.weight for reward in self.rewards):
            raise ValueError("rewards: all have weight 0, by which no answer is better than another; raise one")
        return self


class Grpo(Objective):
    """Policy gradients from groups of answers, by trl's loss; the answers come from the weights that are trained."""

    Settings = GrpoSettings
    settings: GrpoSettings
    needs = frozenset({"target"})
    training: ClassVar[Mapping[str, Any]] = {"lr_scheduler_type": "constant_with_warmup", "logging_steps": 1}

    def learning_rate(self, method: Method, hidden_size: int) -> float:
        """Return the peak learning rate where the recipe names none: below the method's own."""
        return method.learning_rate(hidden_size) * (RATE_OF_BASE if method.trains_base else RATE)

    def dataset(self, plan: Preparation) -> tuple[EncodedDataset, int]:
        """Return the examples whose prompts are asked, and the optimizer steps.

        Raises:
            UserError: trl is missing, the task does not score, there are several processes, a step is not of whole
                groups, or a prompt leaves no room for an answer.
        """
        self.check(plan)
        from glmtune.data import DrawnExamples, EncodedDraws
        from glmtune.data.mixture import encoded

        records, training = plan.task.records("train"), plan.recipe.training
        per_step = self.prompts_per_step(training.examples_per_step)
        if records is None:
            steps = training.steps or STEPS
            drawn = DrawnExamples(plan.task, steps * per_step, plan.recipe.seed, first=plan.recipe.data.first_draw)
            return encoded(drawn, plan.encoder, plan.recipe.data, "The examples"), steps
        examples = askable(plan, records)
        draws = max(1, math.ceil(training.epochs * len(examples) / per_step))
        return EncodedDraws(examples, plan.encoder), training.steps or draws * self.settings.num_iterations

    def prompts_per_step(self, answers: int) -> int:
        """Return how many prompts a step asks, of so many answers.

        Raises:
            UserError: these are no whole groups.
        """
        prompts, rest = divmod(answers, self.settings.num_generations)
        if rest or not prompts:
            raise UserError(
                f"training.batch_size times training.gradient_accumulation_steps are {answers} answers a step, which "
                f"must be a multiple of objective.num_generations={self.settings.num_generations}: answers to one "
                "prompt are compared with each other. batch_size alone bounds the memory; raise the other."
            )
        return prompts

    def check(self, plan: Preparation) -> None:
        """See whether the machine, the recipe and the task allow it.

        Raises:
            UserError: they do not.
        """
        recipe = plan.recipe
        if importlib.util.find_spec("trl") is None:
            raise UserError(
                "objective.name=grpo: trl is not installed, which needs Python 3.11 or later. pip install 'glmtune[rl]'"
            )
        if distributed.world_size() > 1 or recipe.training.devices not in ("all", 1):
            raise UserError("objective.name=grpo trains in one process. Set training.devices=1.")
        if recipe.model.quantize_embedding:
            raise UserError(
                "model.quantize_embedding=true: objective.name=grpo computes the chances of tokens by the head's own "
                "weights, which must not be packed. Leave it out; model.bits=8 and 4 may stay."
            )
        if recipe.data.mixture:
            raise UserError("data.mixture: objective.name=grpo asks the prompts of the task alone; leave it out.")
        super().check(plan)
        example = plan.task.pose(random.Random(recipe.seed))
        try:
            score = plan.task.score(example, example.target, example.tool_calls)
        except NotImplementedError as error:
            raise UserError(
                f"objective.name=grpo learns from the score of answers, and task.name={recipe.task.name} gives none "
                "(Task.score). Choose another task or objective."
            ) from error
        chosen = {reward.name for reward in self.settings.rewards}
        if missing := sorted((chosen & MEASURED) - score.metrics.keys()):
            raise UserError(
                f"objective.rewards: task.name={recipe.task.name} as it is set measures no {missing[0]}; of "
                "arithmetic, task.style=tool does. Leave the reward out."
            )

    def demand(self, recipe: Recipe) -> Demand:
        """Return what a step takes: answers are decoded before it; `beta` keeps what learns of a base as it was."""
        from glmtune.training.memory import Demand

        method: type[Method] = registry.admitted("glmtune.methods", recipe.method.name)
        return Demand(rolls_out=True, reference=self.settings.beta > 0 and method.trains_base)

    def trainer(self, plan: Plan, model: Model, judge: Judge) -> RunTrainer:
        """Return the loop that draws answers, scores them and learns from what they are worth.

        Raises:
            UserError: the head of the model is packed, or learns beside its weights.
        """
        from glmtune.data import EncodedDraws
        from glmtune.objectives._grpo_answers import Prompts
        from glmtune.objectives._grpo_trainer import GrpoTrainer, check_head

        check_head(model)
        dataset, drawn = plan.dataset, plan.task.records("train") is None
        assert isinstance(dataset, EncodedDraws)
        per_step = self.prompts_per_step(plan.recipe.training.examples_per_step)
        prompts = Prompts(plan.task, None if drawn else dataset.examples, plan.recipe.seed, per_step)
        return GrpoTrainer(plan, model, judge, self.settings, prompts)

    def probe(self, plan: Plan, model: Model) -> dict[str, float]:
        """Return pass@1 and pass@k of held-out prompts, the share of groups of equal rewards, and each mean reward."""
        from glmtune.objectives._grpo_answers import probe

        return probe(plan, model, self.settings)

    def advise(self, probed: Mapping[str, float]) -> str | None:
        """Return whether there is something to sharpen.

        Raises:
            UserError: there is nothing to learn from: no answer to a prompt is better than another.
        """
        k, number = self.settings.num_generations, int(probed["prompts"])
        once, often = probed["pass_at_1"], probed[f"pass_at_{k}"]
        shares = f"pass@1 {percent(once, 1)}, pass@{k} {percent(often, 1)}"
        told = f"Of {number} held-out prompts, {k} answers to each: {shares}."
        labels = [label_of(reward.name) for reward in self.settings.rewards]
        if probed["frac_reward_zero_std"] == 1:
            if once == 1:
                why = "All are right already: there is nothing to learn. Make the task harder, or keep the model."
            elif often == 0:
                why = (
                    "None is right, so that no answer is better than another. Teach it first by objective.name=sft "
                    f"until some are, and go on from there; see pass@{k} before you do."
                )
            else:
                why = (
                    "All answers to a prompt are equally good, so that there is nothing to choose. Raise "
                    "objective.temperature or objective.num_generations, or look at objective.rewards."
                )
            if not self.settings.force:
                raise UserError(f"{told} {why} objective.force=true trains all the same.")
            return f"{told} {why}"
        for label in labels:
            if f"rewards/{label}/constant" not in probed:
                continue
            told += f" The reward {label} is {probed[f'rewards/{label}']:g} for all answers: it teaches nothing yet."
        if often - once < LITTLE:
            return (
                f"{told} Only {100 * (often - once):.1f} points lie between them: GRPO makes likelier what the model "
                "can do sometimes, and there is little of that. More may be gained by objective.name=sft."
            )
        return f"{told} {100 * (often - once):.0f} points lie between them: there is something to sharpen."


def askable(plan: Preparation, records: Sequence[Example]) -> Sequence[Example]:
    """Return the records that can be asked, with room for an answer.

    Raises:
        UserError: one cannot, and `data.on_error` or `data.too_long` says to stop; or none is left.
    """
    from glmtune.data import check_question
    from glmtune.data.acceptance import accepted
    from glmtune.inference.prompts import encode_within, has_room

    data, encoder, room = plan.recipe.data, plan.encoder, plan.recipe.generation.longest
    if data.on_error == "skip":
        records = accepted(records, encoder.tokenizer, data)
    kept = []
    for number, example in enumerate(records, start=1):
        name = str(example.source or f"Example {number}")
        check_question(example, name)
        limit = encoder.max_length if data.too_long == "stop" else None
        ids = encode_within(encoder.tokenizer, example.prompt, example.tools, limit, room, name)
        if data.too_long == "stop" or (has_room(len(ids), encoder.max_length, room) and encoder.fits(encoder(example))):
            kept.append(example)
    if not kept:
        raise UserError(
            f"None of {len(records)} records leaves room for an answer of generation.max_new_tokens={room} in the "
            f"{encoder.max_length} tokens that the model takes. Lower that setting."
        )
    return kept

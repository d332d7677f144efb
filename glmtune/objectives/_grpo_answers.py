"""The answers of GRPO: drawn from the weights as they are, scored, and made into what is learned."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch

from glmtune.config import GenerationSettings, Recipe
from glmtune.data.mixture import passes
from glmtune.examples import Example
from glmtune.inference.completion import Answering
from glmtune.inference.engine import Engine
from glmtune.inference.rollouts import Rollout, pass_at_k, roll_out
from glmtune.methods import Model
from glmtune.objectives._rewards import Rewards
from glmtune.tasks import Task

if TYPE_CHECKING:
    from glmtune.objectives.grpo import GrpoSettings
    from glmtune.plan import Plan

EQUAL = 1e-8  # rewards that differ by less are equal
SMALL = 1e-4  # beside a standard deviation that is divided by, as trl has it


class Sample(NamedTuple):
    """One turn of the model: what it was asked, what it wrote, and how much better than others of its group it is.

    Attributes:
        input_ids, token_ids: what it was asked, and what it wrote.
        advantage: of the whole answer.
        old_logps: log-probabilities of what it wrote, by the weights that did, where several steps learn from it.
        start_logps: those by the weights before the training, where the divergence from these counts.
    """

    input_ids: Sequence[int]
    token_ids: Sequence[int]
    advantage: float
    old_logps: Sequence[float] = ()
    start_logps: Sequence[float] = ()

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.input_ids) + len(self.token_ids)


@dataclass(frozen=True)
class Group:
    """The answers to one prompt.

    Attributes:
        rollouts: the answers.
        values: of each, what every reward gives, by name.
        totals: of each, the sum by the weights.
    """

    rollouts: Sequence[Rollout]
    values: Sequence[Mapping[str, float]]
    totals: Sequence[float]

    @property
    def varies(self) -> bool:
        """Whether one answer is better than another."""
        return max(self.totals) - min(self.totals) > EQUAL


class Prompts:
    """Which prompts a step asks: by the seed and its number alone, so that a run goes on as if never stopped.

    Records are passed through in an order of each pass; those of refills are drawn from the others.
    """

    def __init__(self, task: Task, records: Sequence[Example] | None, seed: int, per_step: int):
        """Prompts of a task, or of its records, `per_step` of them each step."""
        self.task, self.records, self.seed, self.per_step = task, records, seed, per_step

    def of(self, step: int, start: int, count: int) -> list[Example]:
        """Return `count` prompts to ask; of records, each once in a step, and fewer where these are fewer.

        Args:
            step: of those that draw answers, from 0.
            start: how many the step has asked already.
            count: up to `per_step`.
        """
        if self.records is None:
            rng = random.Random(f"{self.seed} {step} {start}")
            return [self.task.pose(rng) for _ in range(count)]
        number = len(self.records)
        places = [*islice(passes(number, str(self.seed), step * self.per_step), self.per_step)]
        if start:  # the order of the others is the step's own
            places += random.Random(f"{self.seed} {step}").sample(range(number), number)
        return [self.records[place] for place in [*dict.fromkeys(places)][start : start + count]]


@dataclass(frozen=True)
class GroupSampler:
    """Asks prompts until enough groups differ, and makes of their answers what is learned.

    A draw depends on the seed, its number and the weights alone.

    Args:
        engine: answers, by the weights that it has now.
        task: offers its tools, and scores the answers.
        prompts: what is asked.
        settings: of the objective.
        generation: how the answers are drawn.
        seed: of the run.
        bos_token_id: of the tokenizer.
    """

    engine: Answering
    task: Task
    prompts: Prompts
    settings: GrpoSettings
    generation: GenerationSettings
    seed: int
    bos_token_id: int | None

    @cached_property
    def rewards(self) -> Rewards:
        """What an answer is worth."""
        return Rewards(self.settings.rewards)

    @property
    def names(self) -> list[str]:
        """The names of what `draw` says of answers."""
        rewards = (f"rewards/{name}" for name in self.rewards.functions)
        shape = ("frac_reward_zero_std", "completion_length", "truncated", "refills", "rollout_seconds")
        return ["reward", *rewards, *shape]

    def draw(self, number: int) -> tuple[list[Sample], dict[str, float]]:
        """Return what a step learns from, and what the log says of its answers.

        Args:
            number: of the steps that draw answers, from 0.

        Raises:
            UserError: a reward fails, or gives no finite number.
        """
        start, wanted = time.perf_counter(), self.prompts.per_step
        asked: list[Group] = []
        useful: list[Group] = []
        refill = 0
        for refill in range(self.settings.max_refills + 1):
            examples = self.prompts.of(number, len(asked), wanted_now(wanted, len(useful), len(asked)))
            groups = self.ask(number, refill, examples)
            asked += groups
            useful += [group for group in groups if group.varies]
            if len(useful) >= wanted or not groups:
                break
        seconds = time.perf_counter() - start
        return self.samples_of(useful[:wanted]), {**self.describe(asked), "refills": refill, "rollout_seconds": seconds}

    def ask(self, number: int, refill: int, examples: Sequence[Example]) -> list[Group]:
        """Return the answers to some prompts, with what they are worth."""
        seed = random.Random(f"{self.seed} {number} {refill}").getrandbits(48)
        answered = roll_out(self.engine, self.task, examples, self.generation, self.settings.num_generations, seed)
        return [graded(self.rewards, group) for group in answered]

    def describe(self, groups: Sequence[Group]) -> dict[str, float]:
        """Return what the log says of answers: all that were drawn, also those that nothing is learned from."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        lengths = [rollout.exchange.num_tokens for rollout in rollouts]
        parts = {
            f"rewards/{name}": statistics.fmean(value[name] for group in groups for value in group.values)
            for name in self.rewards.functions
        }
        return {
            "reward": statistics.fmean(total for group in groups for total in group.totals),
            **parts,
            "frac_reward_zero_std": zero_std(groups),
            "completion_length": statistics.fmean(lengths),
            "truncated": statistics.fmean(map(is_truncated, rollouts)),
        }

    def samples_of(self, groups: Sequence[Group]) -> list[Sample]:
        """Return the turns of the model that are learned from, each with the advantage of its answer."""
        scale = self.settings.scale_rewards
        all_totals = [total for group in groups for total in group.totals]
        spread = statistics.stdev(all_totals) + SMALL if scale == "batch" and groups else 1.0
        samples = []
        for group in groups:
            mean = statistics.fmean(group.totals)
            divisor = statistics.stdev(group.totals) + SMALL if scale == "group" else spread
            for rollout, total in zip(group.rollouts, group.totals, strict=True):
                if self.settings.mask_truncated_completions and is_truncated(rollout):
                    continue
                for ids, written in rollout.exchange.turns:
                    if learned := before_start(written, self.bos_token_id):
                        samples.append(Sample(ids, learned, (total - mean) / divisor))
        return samples


def sampling(recipe: Recipe, settings: GrpoSettings) -> GenerationSettings:
    """Return how the answers are drawn that are learned from."""
    generation = recipe.generation
    return GenerationSettings(
        max_new_tokens=generation.longest,
        batch_size=generation.batch_size,
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
    )


def probe(plan: Plan, model: Model, settings: GrpoSettings) -> dict[str, float]:
    """Return what several answers to each of some held-out prompts are worth.

    Raises:
        UserError: a reward fails, or gives no finite number.
    """
    engine, recipe, rewards = Engine(model, plan.tokenizer, plan.model.limit), plan.recipe, Rewards(settings.rewards)
    examples, k = plan.held_out[: settings.num_probed], settings.num_generations
    dtype = torch.bfloat16 if recipe.model.dtype == "bfloat16" else torch.float16
    with torch.autocast(model.device.type, dtype, enabled=recipe.model.dtype != "float32"), evaluating(model):
        answered = roll_out(engine, plan.task, examples, sampling(recipe, settings), k, seed=recipe.seed)
    groups = [graded(rewards, group) for group in answered]
    figures = {
        "prompts": len(groups),
        "pass_at_1": pass_at_k(answered, 1),
        f"pass_at_{k}": pass_at_k(answered, k),
        "frac_reward_zero_std": zero_std(groups),
    }
    for name in rewards.functions:
        values = [value[name] for group in groups for value in group.values]
        figures[f"rewards/{name}"] = statistics.fmean(values)
        if max(values) - min(values) <= EQUAL:
            figures[f"rewards/{name}/constant"] = 1
    return figures


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Let a model answer as it is evaluated: nothing is dropped at random."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def graded(rewards: Rewards, rollouts: Sequence[Rollout]) -> Group:
    """Return the answers to a prompt with what they are worth."""
    values = [rewards.values(rollout) for rollout in rollouts]
    return Group(rollouts, values, [rewards.total(value) for value in values])


def zero_std(groups: Sequence[Group]) -> float:
    """Return the share of groups whose answers are all equally good."""
    return statistics.fmean(not group.varies for group in groups)


def wanted_now(wanted: int, useful: int, asked: int) -> int:
    """Return how many prompts to ask, so that about as many groups differ as are missing; all of a step at most."""
    if not asked:
        return wanted
    return min(wanted, -(-(wanted - useful) * asked // max(useful, 1)))


def before_start(token_ids: Sequence[int], bos_token_id: int | None) -> Sequence[int]:
    """Return what a model wrote before it wrote the token that begins a sequence, or (`<sop>`) an answer.

    Read as a whole, what follows that would be taken for another sequence, and not seen as it was when it was written.
    """
    return token_ids[: token_ids.index(bos_token_id)] if bos_token_id in token_ids else token_ids


def is_truncated(rollout: Rollout) -> bool:
    """Whether an answer was cut off."""
    return rollout.exchange.completion.finish_reason == "length"

"""What an answer is worth: the rewards by name, and the one in a user's own file. Each is a function of a rollout.

A file of the user's defines `reward(rollout) -> float`. A rollout has the example, what the model was asked and
answered, and the task's score.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, field_validator, model_validator

from glmtune import registry
from glmtune.config import Settings, findable
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from glmtune.examples import Example
    from glmtune.inference.rollouts import Rollout
    from glmtune.plan import Preparation

Reward: TypeAlias = "Callable[[Rollout], float]"

FUNCTION = "reward"  # what a user's file calls its own
SHOWN = 80  # characters of a prompt or an answer
MOST = 1e6  # that a reward may be, or less by: gradients of much more are infinite, and teach nothing


def correct(rollout: Rollout) -> float:
    """Return 1 for a right answer, else 0: the reward of the task's own score, by which the model is evaluated."""
    return rollout.score.reward


def length(rollout: Rollout) -> float:
    """Return minus the share of its room that an answer takes, -1 to 0: of two, the shorter one is better."""
    written = rollout.exchange.num_tokens
    return -written / (len(rollout.exchange.turns) * rollout.question.request.settings.longest)


def faithful_calls(rollout: Rollout) -> float:
    """Return 1 where tools were called as the task finds it faithful, and no call was made twice; else 0.

    Raises:
        ValueError: the task does not measure it.
    """
    if faithful_calls.__name__ not in rollout.score.metrics:
        raise ValueError("the task measures no faithful_calls; of arithmetic, task.style=tool does")
    calls = [str(call["function"]) for call in rollout.exchange.tool_calls]
    return float(bool(rollout.score.metrics[faithful_calls.__name__]) and len(calls) == len(set(calls)))


# A new reward is one row here.
TABLE: dict[str, Reward] = {function.__name__: function for function in (correct, length, faithful_calls)}
MEASURED = {faithful_calls.__name__}  # read from the metric of a score that has the same name


class RewardSettings(Settings):
    """A reward, and how much it counts."""

    name: str = Field(description=f"{', '.join(TABLE)}, or a path to your own .py file with a function `{FUNCTION}`")
    weight: float = Field(1.0, ge=-MOST, le=MOST, description="the rewards of an answer are added up by their weights")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A name alone stands for the reward of that name."""
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        find_reward(value)
        return findable(value)


def find_reward(name: str) -> Reward:
    """Return the function of a name, or of a user's file that was allowed, and run, before.

    Raises:
        ValueError: there is none.
    """
    if not registry.is_code(name):
        if name not in TABLE:
            raise ValueError(
                f"no such reward.{registry.suggest(name, list(TABLE))} A path to your own .py file works as well."
            )
        return TABLE[name]
    module = registry.loaded(Path(os.path.realpath(name))) if name.isprintable() else None
    if module is None:
        registry.Source.read(name)  # says what is wrong with it
        raise ValueError(f"{name} was not run: nobody typed or allowed it.")
    function = vars(module).get(FUNCTION)
    if not callable(function):
        raise ValueError(f"{name} must define a function {FUNCTION}(rollout) that returns a number.")
    reward: Reward = function
    return reward


class Rewards:
    """The rewards of a recipe.

    Attributes:
        functions: by their names.
        weights: by their names.
    """

    def __init__(self, chosen: list[RewardSettings]):
        self.functions = {label_of(one.name): find_reward(one.name) for one in chosen}
        self.weights = {label_of(one.name): one.weight for one in chosen}

    def values(self, rollout: Rollout) -> dict[str, float]:
        """Return what each reward gives for an answer, by name.

        Raises:
            UserError: one fails, or gives no finite number; says for which prompt and answer.
        """
        return {name: value_of(name, function, rollout) for name, function in self.functions.items()}

    def total(self, values: dict[str, float]) -> float:
        """Return the sum of the values by their weights."""
        return sum(self.weights[name] * value for name, value in values.items())


def try_rewards(rewards: Rewards, plan: Preparation, example: Example) -> None:
    """Give each reward the right answer to an example, as if the model had written it.

    Raises:
        UserError: one fails, or gives no finite number.
    """
    from glmtune.data.control_tokens import plain_ids
    from glmtune.data.encoding import encode_prompt
    from glmtune.inference.completion import Completion, Request
    from glmtune.inference.conversation import Exchange, Question, Turn
    from glmtune.inference.rollouts import scored

    tokenizer, generation = plan.encoder.tokenizer, plan.recipe.generation
    asked = encode_prompt(tokenizer, example.prompt, example.tools)
    written = [*plain_ids(tokenizer, example.target), tokenizer.eos_token_id]
    completion = Completion(example.target, written, len(asked), "stop")
    exchange = Exchange([{"role": "assistant", "content": example.target}], completion, turns=[Turn(asked, written)])
    question = Question(example.prompt, Request(asked, generation), generation, example.tools)
    rewards.values(scored(plan.task, example, question, exchange))


def label_of(name: str) -> str:
    """Return what a reward is called in the log: its name, or that of its file."""
    return Path(name).stem if registry.is_code(name) else name


def value_of(name: str, function: Reward, rollout: Rollout) -> float:
    """Return what a reward gives for an answer.

    Raises:
        UserError: it fails, or what it gives is no finite number, or one beyond all bounds.
    """
    try:
        value: object = function(rollout)
        is_number = isinstance(value, Real) and math.isfinite(value)
        fault = f"gives {value!r}, which is no finite number"
        if is_number and abs(value) > MOST:  # type: ignore[arg-type]
            fault = f"gives {value!r}, which is beyond {MOST:g}"
            is_number = False
    except Exception as error:
        is_number, fault = False, f"fails with {type(error).__name__}: {error}"
    if not is_number:
        example = rollout.example
        where = f" ({example.source})" if example.source else ""
        raise UserError(
            f"objective.rewards: {name} {fault}, for the answer {rollout.exchange.text[:SHOWN]!r} to the prompt "
            f"{str(example.prompt)[:SHOWN]!r}{where}. A reward must give a bounded number."
        )
    return float(value)  # type: ignore[arg-type]

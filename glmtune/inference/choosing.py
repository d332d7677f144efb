"""Several answers to one prompt, of which one is taken: what most of them say, or what is worked out rightly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from glmtune.inference.conversation import Exchange
from glmtune.messages import Prompt
from glmtune.tasks import Task


@dataclass(frozen=True)
class Choice:
    """The answer that is taken.

    Attributes:
        place: its own among the answers.
        exchange: what it is.
        votes: of the answers, those that say the same.
        num_tokens: that all of them have together.
    """

    place: int
    exchange: Exchange
    votes: int
    num_tokens: int


def choose(task: Task, prompt: Prompt, exchanges: Sequence[Exchange], how: Literal["majority", "checked"]) -> Choice:
    """Return the answer that is taken of several; the first of those that say the same.

    Without a target, an answer says what its task reads off it; one that says nothing has no vote, nor has one that
    was cut off.
    (Wang et al. 2022, Self-Consistency Improves Chain of Thought Reasoning, https://arxiv.org/abs/2203.11171)

    Args:
        task: reads the answers, and checks their workings.
        prompt: what was asked.
        exchanges: what was answered.
        how: as `generation.choose`.
    """
    said = [what_is_said(task, prompt, exchange) for exchange in exchanges]
    places = [place for place, one in enumerate(said) if one is not None]
    if how == "checked":
        held = [place for place in places if holds(task, prompt, exchanges[place])]
        places = held or places
    num_tokens = sum(exchange.num_tokens for exchange in exchanges)
    if not places:
        return Choice(0, exchanges[0], 0, num_tokens)
    counts = Counter(said[place] for place in places)
    taken = max(places, key=lambda place: (counts[said[place]], -place))
    return Choice(taken, exchanges[taken], said.count(said[taken]), num_tokens)


def what_is_said(task: Task, prompt: Prompt, exchange: Exchange) -> str | None:
    """Return what a task reads off an answer, in one form for all that say the same; None where it says nothing."""
    if exchange.completion.finish_reason == "length" or not exchange.text.strip():
        return None
    return task.answer_in(prompt, exchange.text, exchange.tool_calls)


def holds(task: Task, prompt: Prompt, exchange: Exchange) -> bool:
    """Whether the working of an answer is known to hold."""
    return task.holds(prompt, exchange.text, exchange.tool_calls) is True


def in_groups(answers: Iterable[tuple[int, Exchange]], size: int) -> Iterator[tuple[int, list[Exchange]]]:
    """Yield (number, answers) of each group of questions as soon as all are answered.

    Args:
        answers: (number of a question, its answer), in whatever order they come.
        size: of a group; group n has the questions n * size, n * size + 1, ...
    """
    waiting: dict[int, dict[int, Exchange]] = {}
    for number, exchange in answers:
        group, place = divmod(number, size)
        held = waiting.setdefault(group, {})
        held[place] = exchange
        if len(held) == size:
            yield group, [held[place] for place in range(size)]
            del waiting[group]

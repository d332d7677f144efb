"""One of several answers to a prompt is taken."""

from __future__ import annotations

import random
from typing import Any

import pytest

from glmtune.config import GenerationSettings, NamedSettings
from glmtune.examples import Example
from glmtune.inference.choosing import choose, in_groups
from glmtune.inference.completion import Completion
from glmtune.inference.conversation import Exchange
from glmtune.messages import make_tool_call
from glmtune.runtime import UserError
from glmtune.scoring import Score, exact
from glmtune.tasks import Task, check_choice
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings


def said(text: str, reason: Any = "stop", calls: Any = ()) -> Exchange:
    turn: dict[str, Any] = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
    return Exchange([turn], Completion(text, [1] * max(1, len(text)), 3, reason))  # type: ignore[list-item]


class Capitals(Task):
    """Answers are texts."""

    def sample(self, rng: random.Random, split: Any = "train") -> Example:
        return Example("Where?", "Rome")

    def score(self, example: Example, completion: str, calls: Any = ()) -> Score:
        return exact(example.target, completion)


CAPITALS = Capitals(NamedSettings(name="capitals"))


def arithmetic(**settings: Any) -> Arithmetic:
    return Arithmetic(ArithmeticSettings(**settings))


@pytest.mark.parametrize(
    ("answers", "place", "votes"),
    [
        (["3=3", "3=4", "3=4"], 1, 2),
        (["3=3", "3=4"], 0, 1),  # of as many, the first
        (["nothing", "3=4"], 1, 1),
        (["7.50", "x=7.5", "3=8"], 0, 2),  # one value
        (["", "nothing"], 0, 0),
    ],
)
def test_most_votes(answers: list[str], place: int, votes: int) -> None:
    choice = choose(arithmetic(), "1+2=", [said(text) for text in answers], "majority")
    assert (choice.place, choice.votes) == (place, votes)
    assert choice.exchange.text == answers[place]
    assert choice.num_tokens == sum(max(1, len(text)) for text in answers)


def test_what_was_cut_off_has_no_vote() -> None:
    choice = choose(arithmetic(), "1+2=", [said("4", "length"), said("4", "length"), said("3")], "majority")
    assert (choice.place, choice.votes) == (2, 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_answers_does_not_matter(seed: int) -> None:
    answers = [said(text) for text in ("3", "3", "3", "4", "4", "5", "no")]
    random.Random(seed).shuffle(answers)
    assert choose(arithmetic(), "1+2=", answers, "majority").exchange.text == "3"


def test_a_working_that_holds_outvotes_others() -> None:
    """Though most say something else; and where none holds, the most votes count."""
    task = arithmetic(style="steps", check_steps=True, operators="*", kinds=["integer"])
    example = task.sample(random.Random(0))
    right = example.target
    wrong = right[:-1] + ("1" if right[-1] != "1" else "2")
    assert task.holds(example.prompt, right) is True and task.holds(example.prompt, wrong) is False
    answers = [said(wrong), said(wrong), said(right)]
    assert choose(task, example.prompt, answers, "checked").place == 2
    assert choose(task, example.prompt, answers, "majority").place == 0
    assert choose(task, example.prompt, answers[:2], "checked").votes == 2
    assert task.holds("how are you?", right) is None
    assert choose(task, "how are you?", answers, "checked").place == 0


def test_faithful_calls_are_a_working() -> None:
    task = arithmetic(style="tool")
    asked, other = ([make_tool_call("calculate", {"expression": text})] for text in ("1+2", "1+3"))
    answers = [said("4", calls=other), said("4", calls=other), said("3", calls=asked)]
    assert choose(task, "1+2=", answers, "checked").place == 2


def test_a_task_that_checks_nothing() -> None:
    settings = GenerationSettings(num_samples=2, choose="checked")
    for task in (arithmetic(), CAPITALS):
        with pytest.raises(UserError, match=r"generation\.choose=checked: .*Set generation\.choose=majority"):
            check_choice(task, settings)
        check_choice(task, GenerationSettings(num_samples=2))
        check_choice(task, GenerationSettings(choose="checked"))  # of one answer, nothing is chosen
    check_choice(arithmetic(check_steps=True), settings)


def test_texts_vote_as_they_are() -> None:
    answers = [said("Paris is it."), said(" Rome"), said("Rome ")]
    assert choose(CAPITALS, "Where?", answers, "majority").place == 1


def test_groups_come_when_they_are_whole() -> None:
    answers = [(3, said("d")), (0, said("a")), (2, said("c")), (1, said("b"))]
    found = [(number, [one.text for one in group]) for number, group in in_groups(answers, 2)]
    assert found == [(1, ["c", "d"]), (0, ["a", "b"])]

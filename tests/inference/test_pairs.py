"""Pairs of a model's own answers."""

from __future__ import annotations

from glmtune.examples import Example
from glmtune.inference.completion import Completion
from glmtune.inference.conversation import Exchange
from glmtune.inference.pairs import pair_up
from glmtune.inference.rollouts import Rollout
from glmtune.scoring import Score

EXAMPLE = Example("1+1", "2", {"digits": 1})


def answer(text: str, right: bool, finish_reason: str = "stop", **more: object) -> Rollout:
    completion = Completion(text, [1], 3, finish_reason)  # type: ignore[arg-type]
    exchange = Exchange([{"role": "assistant", "content": text, **more}], completion)
    return Rollout(EXAMPLE, None, exchange, Score("exact" if right else "wrong"))  # type: ignore[arg-type]


def test_the_most_frequent_answers_are_compared_first_and_no_pair_twice() -> None:
    group = [*[answer("3", False)] * 2, answer("4", False), answer("2", True), *[answer("two", True)] * 3]
    found = pair_up(group, 3)
    assert [(pair["chosen"], pair["rejected"]) for pair in found.pairs] == [("two", "3"), ("two", "4"), ("2", "3")]
    assert found.pairs[0] == {
        "prompt": "1+1",
        "chosen": "two",
        "rejected": "3",
        "facts": {"digits": 1},
        "right": 4,
        "samples": 7,
    }
    assert len(pair_up(group, 99).pairs) == 4 and (found.right, found.samples, found.unusable) == (4, 7, 0)


def test_only_what_the_model_ended_itself_is_compared() -> None:
    calls = {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    group = [answer("2", True), answer("3", False, "length"), answer("5", False, **calls), answer(" ", False)]
    found = pair_up(group)
    assert not found.pairs and found.unusable == 3
    assert not pair_up([answer("2", True)] * 3).pairs and not pair_up([answer("3", False)] * 3).pairs

import random

import pytest

from glmtune.evaluation.comparison import compare, failure_of
from glmtune.evaluation.evaluator import Evaluation
from glmtune.examples import Example
from glmtune.scoring import Score
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings


@pytest.fixture(scope="module")
def task():
    return Arithmetic(ArithmeticSettings(name="arithmetic"))


def evaluation(task, examples, completions):
    return Evaluation(examples, completions, [task.score(e, c) for e, c in zip(examples, completions, strict=True)])


def test_examples_are_compared_one_by_one(task):
    rng = random.Random(1)
    examples = [task.sample(rng, "held_out") for _ in range(60)]
    before = evaluation(task, examples, [e.target if i < 10 else "no" for i, e in enumerate(examples)])
    after = evaluation(task, examples, [e.target if i >= 5 else "=1" for i, e in enumerate(examples)])
    found = compare(task, before, after)
    assert (found["difference"]["better"], found["difference"]["worse"]) == (50, 5)
    assert [len(found["changed"][way]) for way in ("better", "worse")] == [10, 5]
    first = found["changed"]["worse"][0]
    assert first["prompt"] == examples[0].prompt and first["after"] == "1" and first["before"] == first["right"]
    assert sum(group["n"] for group in found["failure_groups"]) == 5


def test_conversations_and_records_without_operands(task):
    examples = [Example([{"role": "user", "content": "how much?"}], "7")]  # type: ignore[arg-type]
    found = compare(task, evaluation(task, examples, ["8"]), evaluation(task, examples, ["7"]))
    assert found["failure_groups"] == []
    assert found["changed"]["better"] == [{"prompt": "how much?", "right": "7", "before": "8", "after": "7"}]


@pytest.mark.parametrize(
    ("right", "answer", "group"),
    [
        ("12", "-12", "the sign is wrong"),
        ("12.5", "1250", "the point or the zeros are misplaced"),
        ("125", "0.125", "the point or the zeros are misplaced"),
        ("123", "124", "one digit is wrong"),
        ("123", "321", "the digits are in another order"),
        ("10000", "9999", "less than 1% off"),
        ("12", "345", "a number of another length"),
        ("123", "987", "another number of the same length"),
        ("0", "5", "one digit is wrong"),
        ("Red", "red", "right but for upper and lower case"),
        ("red", "It is red, I think", "the right answer with more text around it"),
        ("red", "blue", "another text"),
    ],
)
def test_failures_are_told_apart(right, answer, group):
    assert failure_of(right, Score("wrong", answer), answer) == group


def test_failures_without_an_answer():
    assert failure_of("1", Score("unparseable"), " ") == "nothing was answered"
    assert failure_of("1", Score("unparseable"), "1 or 2") == "no answer could be read"

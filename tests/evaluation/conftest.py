"""What the tests of evaluation share: evaluations in which a share of the answers is right, and reports of two."""

import random
from copy import deepcopy
from functools import cache

import pytest

from glmtune.evaluation.comparison import compare
from glmtune.evaluation.evaluator import Evaluation
from glmtune.evaluation.forgetting import Probe, compare_probes
from glmtune.examples import Example
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings

EVIL = "<script>alert('&')</script>\n\"<img src=http://x.example/y>"


def evaluate_share(share, evil=False, count=200):
    """The arithmetic task, and an evaluation in which a share of the answers is right."""
    task, rng, chance = Arithmetic(ArithmeticSettings(name="arithmetic")), random.Random(3), random.Random(share)
    examples = [task.sample(rng, "held_out") for _ in range(count)]
    completions = [e.target if chance.random() < share else EVIL if evil else "=1" for e in examples]
    scores = [task.score(e, c) for e, c in zip(examples, completions, strict=True)]
    return task, Evaluation(examples, completions, scores, task.axes)


@cache
def written_report(before, after, known, evil):
    (task, then), (_, now) = evaluate_share(before, evil), evaluate_share(after, evil)
    report = {"format": 2, "before": then.report(), "after": now.report(), **compare(task, then, now)}
    if known is not None:
        report["forgetting"] = compare_probes(*(probe_of(right) for right in known))
    return report | {"training_seconds": 500.0, "peak_memory": 2**31, "machine": {"processor": EVIL, "versions": {}}}


def probe_of(right):
    """A probe of 60 questions in words and 60 with options, of which so many of each are right."""
    facts = {"group": EVIL, "language": "English"}
    examples = [Example(EVIL, "a", facts)] * 60 + [Example(EVIL, "a", {**facts, "options": ["a", EVIL]})] * 60
    return Probe(examples, [EVIL] * 120, [place % 60 < right for place in range(120)])


def write_report(before, after, known=None, evil=False):
    """A report that may be changed."""
    return deepcopy(written_report(before, after, known, evil))


@pytest.fixture(scope="session")
def evil():
    """Text that would be markup or code if it were not escaped."""
    return EVIL


@pytest.fixture(scope="session")
def evaluated():
    """`evaluated(0.7)`: the arithmetic task, and an evaluation in which a share of the answers is right."""
    return evaluate_share


@pytest.fixture(scope="session")
def report_of():
    """`report_of(0.2, 0.7, (40, 30))`: the report of two evaluations, and of general questions answered rightly."""
    return write_report

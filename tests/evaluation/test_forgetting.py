"""The general questions, how they are scored, and the verdict on two models."""

import json
import math
from collections import Counter

import pytest
import torch

from glmtune.config import GenerationSettings
from glmtune.data.encoding import IGNORED, encode_example
from glmtune.evaluation.forgetting import (
    RULE,
    Probe,
    compare_probes,
    is_right,
    likelihood,
    probe,
    verdict,
)
from glmtune.evaluation.general import read_general
from glmtune.examples import Example
from glmtune.runtime import UserError


@pytest.fixture(scope="module")
def general():
    return read_general()


def test_the_built_in_questions(general):
    assert len(general) == len({example.prompt for example in general}) == 60
    assert Counter(example.facts["language"] for example in general) == {"English": 30, "Chinese": 30}
    for example in general:
        assert (not example.prompt.isascii()) == (example.facts["language"] == "Chinese")
        assert is_right(example.target, example.target) and len(example.target) <= 16
    assert len({example.facts["group"] for example in general}) >= 10


def test_the_users_questions(write_records):
    path = write_records({"prompt": "p", "target": "t", "facts": {"group": "g"}})
    assert read_general(str(path)) == [Example("p", "t", {"group": "g"})]
    with pytest.raises(UserError, match="nowhere"):
        read_general("nowhere.jsonl")


@pytest.mark.parametrize(
    ("target", "completion", "right"),
    [
        ("Paris", "paris.", True),
        ("Paris", "It is Paris", False),
        ("北京", "“北京”。", True),
        ("7", "7 days", True),
        ("7", "１７", False),
        ("100", "100.0", True),
        ("RIVER", "river", False),
        ("c-a-t", "C-A-T", True),
        ("yes", "", False),
        ("不是", "是", False),
    ],
)
def test_what_is_right(target, completion, right):
    assert is_right(target, completion) is right


def test_likelihood_is_that_of_the_targets(tiny, general):
    model, tokenizer = tiny
    examples = general[:11]
    total, tokens = 0.0, 0
    for example in examples:
        encoding = encode_example(tokenizer, example.prompt, example.target)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([encoding["input_ids"]])).logits[0].double().log_softmax(-1)
        for place, label in enumerate(encoding["labels"]):
            if label != IGNORED:
                total, tokens = total + logits[place - 1, label].item(), tokens + 1
    mean, counted = likelihood(model, tokenizer, examples)
    assert counted == tokens and mean == pytest.approx(total / tokens, rel=1e-4)


def test_probe(tiny, general):
    examples = general[:5]
    found = probe(*tiny, examples, GenerationSettings(batch_size=2, do_sample=True))
    again = probe(*tiny, examples, GenerationSettings(batch_size=2))
    assert found.completions == again.completions  # greedy in any case
    assert len(found.right) == 5 and found.log_likelihood < 0 and found.tokens > 5
    report = json.loads(json.dumps(found.report()))
    assert report["n"] == 5 and sum(part["n"] for part in report["by"].values()) == 5
    empty = probe(*tiny, [], GenerationSettings())
    assert (empty.accuracy, empty.log_likelihood, empty.tokens) == (0.0, 0.0, 0)


def probe_of(right, log_likelihood=-1.0, n=60):
    examples = [Example(f"q{i}", "a", {"group": "ab"[i % 2]}) for i in range(n)]
    return Probe(
        examples, ["a" if i < right else "b" for i in range(n)], [i < right for i in range(n)], log_likelihood, n
    )


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [
        ((40, -1.0), (40, -1.0), "kept"),
        ((40, -1.0), (39, -1.05), "kept"),
        ((40, -1.0), (55, -0.5), "kept"),
        ((40, -1.0), (38, -1.0), "slightly worse"),
        ((40, -1.0), (40, -1.2), "slightly worse"),
        ((40, -1.0), (34, -1.0), "forgot"),
        ((40, -1.0), (0, -9.0), "forgot"),
        ((5, -1.0), (0, -9.0), "unknown"),
        ((0, -9.0), (0, -9.0), "unknown"),
    ],
)
def test_verdicts(before, after, level):
    found = verdict(probe_of(*before), probe_of(*after))
    assert found.level == level and found.level in RULE
    assert f"{after[0]} of 60 general questions, {before[0]} before" in found.statement


def test_a_large_loss_of_few_questions_may_be_chance():
    assert verdict(probe_of(8, n=10), probe_of(6, n=10)).level == "slightly worse"


def test_the_report_shows_what_was_lost():
    report = compare_probes(probe_of(40), probe_of(30, -1.5))
    assert json.loads(json.dumps(report)) == report and report["level"] == "forgot"
    assert len(report["lost"]) == 10
    assert report["lost"][0] == {"prompt": "q30", "target": "a", "before": "a", "after": "b"}
    assert math.isclose(report["difference"]["mean"], -10 / 60)

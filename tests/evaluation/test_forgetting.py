"""Two probes of a model, and the verdict on what it forgot."""

import json
import math

import pytest
import torch

from glmtune.config import GenerationSettings
from glmtune.evaluation.decision import decide, knowledge
from glmtune.evaluation.forgetting import RULE, Probe, compare_probes, is_answered, probe, verdict
from glmtune.evaluation.general import read_general
from glmtune.examples import Example
from glmtune.runtime import UserError


def question(part, number):
    facts = {"group": "arithmetic" if part == "arithmetic" else "ab"[number % 2]}
    return Example(f"{part} {number}?", "a", {**facts, "options": ["a", "b", "c", "d"]} if part == "choices" else facts)


def probe_of(**right):
    """`probe_of(choices=(40, 60))`: 60 questions with options, of which 40 are right."""
    examples, answers = [], []
    for part, (count, n) in right.items():
        examples += [question(part.replace("_", " "), number) for number in range(n)]
        answers += ["a" if number < count else "b" for number in range(n)]
    return Probe(examples, answers, [answer == "a" for answer in answers])


def both(choices, short_answers, arithmetic=20):
    return probe_of(choices=(choices, 100), short_answers=(short_answers, 60), arithmetic=(arithmetic, 30))


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [
        ((60, 30), (60, 30), "kept"),
        ((60, 30), (58, 29), "kept"),
        ((60, 30), (90, 50), "kept"),
        ((60, 30), (53, 30), "slightly worse"),
        ((60, 30), (45, 30), "forgot"),  # what it knows
        ((60, 30), (90, 10), "forgot"),  # what it says, though it knows more
        ((60, 30), (0, 0), "forgot"),
        ((60, 30, 20), (60, 30, 5), "forgot"),
        ((60, 30, 2), (60, 30, 30), "kept"),  # what it did not know of sums, it cannot lose
        ((60, 30, 2), (45, 30, 30), "forgot"),  # for which sums make up nothing
        ((27, 30), (25, 30), "unknown"),  # as by guessing
        ((60, 5), (60, 5), "unknown"),
        ((60, 5), (30, 5), "forgot"),
        ((0, 0), (0, 0), "unknown"),
    ],
)
def test_verdicts(before, after, level):
    found = verdict(both(*before), both(*after))
    assert found.level == level and level in RULE.lower()
    assert f"choices {before[0]} → {after[0]} of 100" in found.statement
    assert f"short answers {before[1]} → {after[1]} of 60" in found.statement


def test_arithmetic_that_was_not_known_is_not_called_kept():
    report = compare_probes(both(60, 30, 5), both(60, 30, 5))
    assert report["level"] == "kept" and report["parts"]["arithmetic"]["level"] == "unknown"


def test_equal_probes_of_few_questions_say_little():
    """Of ten questions none was lost; a tenth of all that there is to know may be all the same."""
    few = probe_of(short_answers=(10, 10))
    assert verdict(few, few).level == "unknown"
    assert "too few questions were asked" in verdict(few, few).statement
    many = probe_of(short_answers=(40, 60))
    assert verdict(many, many).level == "kept"
    assert verdict(Probe([], [], []), Probe([], [], [])).level == "unknown"


def test_what_guessing_gives_is_told():
    assert "choices 27 → 25 of 100, where guessing gives 25" in verdict(both(27, 30), both(25, 30)).statement


def test_probes_of_other_questions_are_not_compared():
    with pytest.raises(ValueError, match="not of the same questions"):
        verdict(probe_of(choices=(1, 3)), probe_of(choices=(1, 4)))


def test_the_report_shows_what_was_lost():
    report = compare_probes(both(60, 30), both(58, 2))
    assert json.loads(json.dumps(report)) == report and report["level"] == "forgot"
    assert {name: part["level"] for name, part in report["parts"].items()} == {
        "choices": "kept",
        "short answers": "forgot",
        "arithmetic": "kept",
    }
    assert len(report["lost"]) == 10  # of the worst part first
    assert report["lost"][0] == {"prompt": "short answers 2?", "target": "a", "before": "a", "after": "b"}
    assert math.isclose(report["difference"]["mean"], -30 / 160)
    assert report["before"]["parts"]["choices"]["guessed"] == 0.25
    assert report["before"]["by"]["choices"]["a"]["n"] == 50 and "arithmetic" not in report["before"]["by"]
    said = knowledge(report)
    assert "For instance: “short answers 2?” → “b”, “a” before; “short answers 3?” → “b”, “a” before." in said


def test_each_part_that_is_worst_is_shown():
    lost = compare_probes(both(60, 30), both(30, 2))["lost"]
    assert [sample["prompt"] for sample in lost[:3]] == ["choices 30?", "short answers 2?", "choices 31?"]


def test_what_is_lost_is_told_in_short(report_of):
    report = report_of(0.2, 0.7, (40, 40))
    report["forgetting"] |= {
        "level": "forgot",
        "lost": [{"prompt": [{"role": "user", "content": "p" * 99}], "before": "b\nc", "after": ""}],
    }
    assert f"“{'p' * 59}…” → nothing, “b c” before" in decide(report)[2]


def test_answers_are_judged_by_their_kind():
    options = Example("q", "a", {"options": ["a", "b"]})
    assert is_answered(options, "a") and not is_answered(options, "It is a.")
    words = Example("q", "cat", {"accepted": ["kitten"], "wrong": ["dog"]})
    assert is_answered(words, "A kitten.") and not is_answered(words, "cat, dog")
    assert is_answered(Example([{"role": "user", "content": "6 + 8?"}], "14"), "6 + 8 is 14")


def test_probe(tiny):
    examples = read_general()[::33]
    found = probe(*tiny, examples, GenerationSettings(batch_size=2, do_sample=True))
    again = probe(*tiny, examples, GenerationSettings(batch_size=3))
    assert found == again  # greedy in any case
    assert len(found.answers) == len(examples) == 7
    for example, answer in zip(examples, found.answers, strict=True):
        assert answer in example.facts.get("options", [answer])
    report = json.loads(json.dumps(found.report()))
    assert report["n"] == sum(part["n"] for part in report["parts"].values()) == 7
    assert probe(*tiny, [], GenerationSettings()) == Probe([], [], [])
    with pytest.raises(UserError, match=r"general_file: question 1 has \d+ tokens"):
        probe(*tiny, examples[-1:], GenerationSettings(), limit=20)


def test_scrambled_weights_forget_and_equal_ones_do_not(tiny):
    """What a model answers before is taken for right, so that it knows everything; then its weights are shuffled."""
    model, tokenizer = tiny
    asked = [one for one in read_general() if one.facts["language"] == "English"]
    asked = [*asked[:40], *(one for one in asked if not one.facts.get("options"))][:76]
    said = probe(model, tokenizer, asked, GenerationSettings()).answers
    known = [
        Example(one.prompt, answer or "nothing", (one.facts.get("options") and {"options": one.facts["options"]}) or {})
        for one, answer in zip(asked, said, strict=True)
    ]
    before = probe(model, tokenizer, known, GenerationSettings())
    assert verdict(before, probe(model, tokenizer, known, GenerationSettings())).level == "kept"
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            order = torch.randperm(value.numel(), generator=generator)
            value.copy_(value.flatten()[order].view_as(value))
    try:
        assert verdict(before, probe(model, tokenizer, known, GenerationSettings())).level == "forgot"
    finally:
        model.load_state_dict(weights)

"""Scores are broken down along what a task declares, and along all other facts; nothing here knows a task's words."""

import random
import re
from pathlib import Path

import pytest

from glmtune import evaluation
from glmtune.evaluation.breakdown import (
    MOST_GROUPS,
    across_of,
    axes_of,
    choose_axis,
    groups_of,
    label_of,
    part_of,
    short_label_of,
    sort_groups,
)
from glmtune.evaluation.report import summarize
from glmtune.examples import Example
from glmtune.scoring import Score
from glmtune.tasks import Axis, up_to
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings


@pytest.fixture(scope="module")
def asked():
    """Examples, completions and scores: two in three right."""
    task, rng = Arithmetic(ArithmeticSettings(name="arithmetic")), random.Random(3)
    examples = [task.sample(rng, "held_out") for _ in range(300)]
    completions = [e.target if rng.random() < 0.66 else "=1" for e in examples]
    return examples, completions, [task.score(e, c) for e, c in zip(examples, completions, strict=True)]


@pytest.fixture(scope="module")
def report(asked):
    return summarize(*asked, Arithmetic.axes, text_metrics=False)


@pytest.mark.parametrize("fact", ["operator", "kind", "operator,kind", "digits", "left_digits,right_digits"])
def test_parts_make_the_whole(report, fact):
    parts = report["by"][fact].values()
    assert sum(part["n"] for part in parts) == report["n"]
    weighted = sum(part["n"] * part["accuracy"] for part in parts) / report["n"]
    assert weighted == pytest.approx(report["accuracy"])
    assert all(part["accuracy_ci95"][0] <= part["accuracy"] <= part["accuracy_ci95"][1] for part in parts)


def test_examples_without_a_fact_are_left_out(report, asked):
    have = sum("carries" in example.facts for example in asked[0])
    assert 0 < have < report["n"]
    assert sum(part["n"] for part in report["by"]["carries"].values()) == have


def test_groups_are_in_order(report):
    """Those that the task names first; of others numbers as numbers, all else by the alphabet."""
    assert list(report["by"]["operator"]) == ["+", "-", "*", "/"]
    assert list(report["by"]["operator,kind"])[:3] == ["+ integer", "+ decimal", "- integer"]
    assert sort_groups(["10", "9", "9+", "-1", "b", "a", "/", "+"]) == ["-1", "9", "9+", "10", "+", "/", "a", "b"]
    assert sort_groups(["mixed", "x", "+", "x١", "x2"], ["+", "x"]) == ["+", "x", "mixed", "x2", "x١"]


def test_any_scalar_fact_counts_but_no_names():
    n = MOST_GROUPS + 1
    facts = [{"topic": "ab"[i % 2], "level": i % 3, "id": i, "list": [i]} for i in range(n)]
    examples = [Example("q", "a", fact) for fact in facts]
    by = summarize(examples, ["a"] * n, [Score("exact")] * n, text_metrics=False)["by"]
    assert by.keys() == {"topic", "level"} and list(by["level"]) == ["0", "1", "2"]


WORDS = [Example("q", "a", {"language": one, "length": n}) for one in ("zh", "en", "fr") for n in (2, 9, 40)]
AXES = (
    Axis("language", "language of the word", {"fr": "French", "en": "English of Britain"}, across="length"),
    Axis("length", group=up_to(8)),
)


def test_a_task_declares_its_axes():
    scores = [Score("exact"), Score("wrong"), Score("wrong")] * 3
    report = summarize(WORDS, ["a"] * 9, scores, AXES, text_metrics=False)
    assert [axis["name"] for axis in report["axes"]] == ["language", "length"]
    assert list(report["by"]) == ["language", "language,length", "length"]
    axis = choose_axis([report])
    across = across_of([report], axis)
    assert groups_of([None, report], axis) == ["fr", "en", "zh"] and groups_of([report], across) == ["2", "9+"]
    assert [label_of(axis, group) for group in ("en", "zh")] == ["English of Britain", "zh"]
    assert (short_label_of(axis, "en"), across["title"]) == ("English", "length")
    assert part_of(report, (axis, "en"), (across, "9+"))["n"] == 2
    assert part_of(report, (axis, "en"), (across, "2"))["accuracy"] == 1
    assert part_of(report, (axis, "de")) is None and part_of(report) is report


def test_an_axis_that_tells_nothing_apart_is_passed_over():
    examples = [Example("q", "a", {"language": "zh", "topic": topic}) for topic in "ab"]
    report = summarize(examples, ["a"] * 2, [Score("exact")] * 2, AXES, text_metrics=False)
    assert [axis["name"] for axis in axes_of([None, report])] == ["language", "topic"]
    assert choose_axis([report])["name"] == "topic"
    assert across_of([report], choose_axis([report])) is None
    assert choose_axis([report], lambda axis, group: group != "a") is None
    assert choose_axis([summarize([], [], [], AXES, text_metrics=False)]) is None


def test_evaluation_knows_no_words_of_a_task():
    for path in Path(evaluation.__file__).parent.glob("*.py"):
        words = re.findall(
            r"['\"](?:operator|kind|digits|carries|operand_digits|faithful\w*)['\"]", path.read_text("utf-8")
        )
        assert not words, path.name

"""The sentence at the head of a report."""

import pytest

from glmtune.evaluation.decision import decide


@pytest.mark.parametrize(
    ("before", "after", "known", "which", "words"),
    [
        (0.2, 0.7, (40, 40), "keep", "Keep it"),
        (0.2, 0.7, (40, 38), "keep", "Keep it"),
        (0.2, 0.7, None, "open", "Better, the rest unchecked"),
        (0.2, 0.7, (0, 0), "open", "Better, the rest unknown"),
        (0.2, 0.7, (40, 34), "discard", "Do not keep"),
        (0.2, 0.7, (40, 20), "discard", "Do not keep"),
        (0.7, 0.2, None, "discard", "Do not keep"),
        (0.5, 0.52, (40, 40), "open", "Not certain"),
        (0.5, 0.5, None, "open", "Not certain"),
        (0.5, 0.52, (40, 20), "discard", "Do not keep"),
    ],
)
def test_the_decision(report_of, before, after, known, which, words):
    assert decide(report_of(before, after, known))[:2] == (which, words)
    rest = decide(report_of(before, after, known))[2]
    assert "of the held-out examples rightly" in rest and rest.endswith(".")
    assert ("evaluation.forgetting=true" in rest) == (known is None)


@pytest.mark.parametrize("level", ["slightly worse", "unknown", "some word of another version"])
def test_only_what_is_known_to_be_kept_is_green(report_of, level):
    report = report_of(0.2, 0.7, (40, 40))
    report["forgetting"]["level"] = level
    assert decide(report)[0] == "open"


def test_what_was_lost_is_told_with_two_examples(report_of):
    rest = decide(report_of(0.2, 0.7, (40, 20)))[2]
    assert "The model forgot general knowledge" in rest and "For instance: " in rest
    assert "For instance" not in decide(report_of(0.2, 0.7, (40, 38)))[2]


def test_nearly_all_is_not_all(report_of):
    report = report_of(0.2, 0.7)
    report["after"] |= {"accuracy": 0.9996}
    assert "answers 99.96% of" in decide(report)[2]


def test_reports_without_a_before_are_open(report_of):
    report = report_of(0.2, 0.7, (40, 40))
    for gone in ("before", "difference"):
        assert decide({name: value for name, value in report.items() if name != gone})[:2] == ("open", "Not certain")

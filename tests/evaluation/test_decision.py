"""The sentence at the head of a report."""

import pytest

from glmtune.evaluation.decision import decide


@pytest.mark.parametrize(
    ("before", "after", "known", "which"),
    [
        (0.2, 0.7, None, "keep"),
        (0.2, 0.7, (40, 40), "keep"),
        (0.2, 0.7, (40, 38), "keep"),
        (0.2, 0.7, (0, 0), "keep"),
        (0.2, 0.7, (40, 20), "discard"),
        (0.7, 0.2, None, "discard"),
        (0.5, 0.52, (40, 40), "open"),
        (0.5, 0.5, None, "open"),
        (0.5, 0.52, (40, 20), "discard"),
    ],
)
def test_the_decision(report_of, before, after, known, which):
    found, words, rest = decide(report_of(before, after, known))
    assert found == which
    assert words == {"keep": "Keep it", "discard": "Do not keep", "open": "Not certain"}[which]
    assert "of the held-out examples rightly" in rest and rest.endswith(".")


def test_nearly_all_is_not_all(report_of):
    report = report_of(0.2, 0.7)
    report["after"] |= {"accuracy": 0.9996}
    assert "answers 99.96% of" in decide(report)[2]

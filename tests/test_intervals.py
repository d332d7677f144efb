import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.intervals import auc_interval, lowest_difference, paired_difference, wilson_interval

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


@given(PAIRS)
def test_a_difference_is_its_own_mirror(pairs):
    before, after = zip(*pairs, strict=True)
    forth, back = paired_difference(before, after), paired_difference(after, before)
    low, high = forth.ci95
    assert -1 <= low <= forth.mean <= high <= 1 and back.ci95 == (-high, -low)
    assert forth.mean == (sum(after) - sum(before)) / len(pairs) == -back.mean
    assert (forth.better, forth.worse) == (back.worse, back.better)
    assert forth.report()["ci95"] == [low, high] and forth.statement.endswith(".")


def changed(better, worse, n):
    same = n - better - worse
    return paired_difference(
        [False] * better + [True] * (worse + same), [True] * better + [False] * worse + [True] * same
    )


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 2000))
def test_verdict_words_and_interval_are_one(better, worse, more):
    """More than chance is what McNemar's test finds so; the interval is without 0 there, and no other words stand by."""
    difference = changed(better, worse, max(1, better + worse + more))
    low, high = difference.ci95
    rejected = better != worse and (abs(better - worse) - 1) ** 2 > NormalDist().inv_cdf(0.975) ** 2 * (better + worse)
    assert (difference.change != "uncertain") == (low > 0 or high < 0) == rejected
    assert ("may be chance" in difference.statement) == (better + worse > 0 and low <= 0 <= high)


def test_it_covers_the_true_difference():
    """Of 2,000 draws, as many as 95% or more; of no difference, as few as 5% or fewer are called one."""
    rng = np.random.default_rng(1)
    for n, gain, loss in ((40, 0.2, 0.2), (150, 0.3, 0.1), (500, 0.6, 0.02)):
        covered = called = 0
        for better, worse, _ in rng.multinomial(n, [gain, loss, 1 - gain - loss], 2000):
            low, high = lowest_difference(better, worse, n), -lowest_difference(worse, better, n)
            covered += low <= gain - loss <= high
            called += low > 0 or high < 0
        assert covered >= 0.94 * 2000
        assert gain != loss or called <= 0.05 * 2000


def test_pairs_say_more_than_two_shares():
    difference = changed(8, 0, 100)
    assert difference.change == "better" and changed(0, 8, 100).change == "worse"
    assert difference.ci95 == pytest.approx((0.0225, 0.1623), abs=5e-5)
    assert "8 of 100 examples got better and 0 got worse (+8.0 points" in difference.statement


def test_few_examples_are_never_certain():
    difference = changed(5, 0, 5)
    low, high = difference.ci95
    assert low < 0 < high == 1 and difference.change == "uncertain" and "may be chance" in difference.statement
    assert changed(6, 0, 6).change == "better"
    nothing = paired_difference([], [])
    assert (nothing.n, nothing.ci95, nothing.change) == (0, (-1.0, 1.0), "uncertain")
    assert "None of the 3" in changed(0, 0, 3).statement
    assert changed(0, 0, 500).ci95 == pytest.approx((-0.0112, 0.0112), abs=1e-4)


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="1 answers before, 2 after"):
        paired_difference([True], [True, False])


def test_an_area_under_roc_is_as_sure_as_its_fewer_findings():
    """In the middle it is much the same by the standard error of Hanley and McNeil; it is never beyond 0 and 1."""
    low, high = auc_interval(0.85, 20, 30)
    one, two = 0.85 / 1.15, 2 * 0.85**2 / 1.85
    spread = math.sqrt((0.85 * 0.15 + 19 * (one - 0.85**2) + 29 * (two - 0.85**2)) / 600)
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.15) and low < 0.85 < high
    assert auc_interval(1.0, 10, 10)[1] == 1.0 > auc_interval(1.0, 10, 10)[0] > 0.7
    assert auc_interval(1.0, 10, 10)[0] > auc_interval(1.0, 10, 2)[0]
    assert auc_interval(0.5, 0, 4) == (0.0, 1.0)
    assert auc_interval(0.3, 7, 9) == pytest.approx(tuple(1 - end for end in auc_interval(0.7, 9, 7)[::-1]))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_agrees_with_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_knows_nothing_without_trials():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000), st.data(), st.floats(0.5, 0.999))
def test_wilson_contains_the_share_and_narrows(n, data, confidence):
    successes = data.draw(st.integers(0, n))
    low, high = wilson_interval(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1
    wider_n = wilson_interval(4 * successes, 4 * n, confidence)
    assert wider_n[1] - wider_n[0] < high - low
    surer = wilson_interval(successes, n, (1 + confidence) / 2)
    assert surer[0] <= low and high <= surer[1]


@pytest.mark.parametrize("arguments", [(3, 2), (-1, 2), (1, -1), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_refuses_nonsense(arguments):
    with pytest.raises(ValueError, match="must"):
        wilson_interval(*arguments)

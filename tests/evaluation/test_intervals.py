import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.evaluation.intervals import paired_difference, sign_test, wilson_interval

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


@given(PAIRS)
def test_a_difference_is_its_own_mirror(pairs):
    before, after = zip(*pairs, strict=True)
    forth, back = paired_difference(before, after), paired_difference(after, before)
    low, high = forth.ci95
    assert -1 <= low <= forth.mean <= high <= 1
    assert forth.mean == (sum(after) - sum(before)) / len(pairs) == -back.mean
    assert (forth.better, forth.worse) == (back.worse, back.better) and forth.chance == back.chance
    assert forth == paired_difference(before, after)
    assert forth.report()["ci95"] == [low, high] and forth.statement.endswith(".")


def test_it_agrees_with_resampling_one_by_one():
    rng = np.random.default_rng(1)
    before, after = rng.random(150) < 0.4, rng.random(150) < 0.6
    change = after.astype(int) - before
    means = [change[rng.integers(0, 150, 150)].mean() for _ in range(4000)]
    assert paired_difference(before, after).ci95 == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)


def test_pairs_say_more_than_two_shares():
    before = [i < 50 for i in range(100)]
    after = [i < 58 for i in range(100)]  # eight got better, none worse
    difference = paired_difference(before, after)
    assert difference.change == "better" and difference.chance == pytest.approx(2 / 2**8)
    assert paired_difference(after, before).change == "worse"
    assert "8 of 100 examples got better and 0 got worse (+8.0 points" in difference.statement


def test_few_examples_are_never_certain():
    difference = paired_difference([False] * 5, [True] * 5)
    assert (
        difference.ci95 == (1.0, 1.0) and difference.change == "uncertain" and "may be chance" in difference.statement
    )
    assert paired_difference([False] * 6, [True] * 6).change == "better"
    nothing = paired_difference([], [])
    assert (nothing.n, nothing.ci95, nothing.change) == (0, (-1.0, 1.0), "uncertain")
    assert "None of the 3" in paired_difference([True] * 3, [True] * 3).statement


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="1 answers before, 2 after"):
        paired_difference([True], [True, False])


def test_sign_test():
    assert sign_test(0, 0) == sign_test(3, 3) == 1.0
    assert sign_test(1, 9) == pytest.approx(22 / 1024) and sign_test(5000, 0) < 1e-300


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

"""How sure a share is, and whether a change is more than chance: of two models, the same examples are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

RESAMPLES = 2000
CHANCE = 0.05  # a change that chance makes more often than this is not certain

Change = Literal["better", "worse", "uncertain"]


@dataclass(frozen=True)
class Difference:
    """The share of right answers after less that before, of the same examples.

    Attributes:
        n: examples.
        mean: -1 to 1.
        ci95: its 95% interval.
        better, worse: examples that only the model after, or only the one before, answers rightly.
        chance: how probable it is that examples which changed at all change so one-sidedly by chance.
    """

    n: int
    mean: float
    ci95: tuple[float, float]
    better: int
    worse: int
    chance: float

    @property
    def change(self) -> Change:
        """`better` or `worse` only where interval and sign test agree that it is more than chance."""
        low, high = self.ci95
        if self.chance > CHANCE or low <= 0 <= high:
            return "uncertain"
        return "better" if self.mean > 0 else "worse"

    @property
    def statement(self) -> str:
        """The difference in one plain sentence."""
        low, high = self.ci95
        if not self.better and not self.worse:
            return f"None of the {self.n} examples changed between right and wrong."
        counts = f"{self.better} of {self.n} examples got better and {self.worse} got worse"
        points = f"{100 * self.mean:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}"
        certain = "" if self.change != "uncertain" else "; this may be chance"
        return f"{counts} ({points}){certain}."

    def report(self) -> dict[str, Any]:
        """Return it as `report.json` holds it."""
        return {
            "n": self.n,
            "mean": self.mean,
            "ci95": list(self.ci95),
            "better": self.better,
            "worse": self.worse,
            "chance": self.chance,
            "change": self.change,
            "statement": self.statement,
        }


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share.

    Unlike `p +- 1.96 s` it stays within 0..1 and holds at p = 0 and p = 1.

    Source: E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference",
    https://doi.org/10.1080/01621459.1927.10502953

    Args:
        successes: how many of `n` succeeded.
        n: trials; with none, nothing is known and the interval is (0, 1).
        confidence: 0 to 1, both excluded.

    Returns:
        (low, high), each 0 to 1; `successes / n` lies between.

    Raises:
        ValueError: more successes than trials, a negative number, or an impossible confidence.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be 0 to n, but are {successes} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, but is {confidence}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At 0 and at n one bound is the share itself; rounding must not push it past.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def paired_difference(before: Sequence[bool], after: Sequence[bool], seed: int = 0) -> Difference:
    """Compare right and wrong answers to the same examples.

    The interval is the percentile bootstrap of `RESAMPLES` resamples of the examples (B. Efron, R. J. Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13). It has no width where all examples changed alike, be they three
    or three thousand; `chance`, of the exact sign test of the examples that changed, tells these apart. Where none did,
    it is what can be said of something that was not seen in n examples: its share is below 1 - 0.025^(1/n).

    Args:
        before, after: whether each example was answered rightly.
        seed: of the resamples.

    Raises:
        ValueError: the lists differ in length.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} answers before, {len(after)} after: not of the same examples")
    n = len(before)
    if n == 0:
        return Difference(0, 0.0, (-1.0, 1.0), 0, 0, 1.0)
    better = sum(bool(now) and not then for then, now in zip(before, after, strict=True))
    worse = sum(bool(then) and not now for then, now in zip(before, after, strict=True))
    if not better and not worse:
        unseen = 1 - 0.025 ** (1 / n)
        return Difference(n, 0.0, (-unseen, unseen), 0, 0, 1.0)
    # A resample of n examples with replacement is a draw of how many of each kind are in it.
    shares = [better / n, worse / n, (n - better - worse) / n]
    counts = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [0.025, 0.975])
    return Difference(n, (better - worse) / n, (float(low), float(high)), better, worse, sign_test(better, worse))


def sign_test(better: int, worse: int) -> float:
    """How probable it is that fair coins fall at least as one-sidedly, either way; McNemar's test, exact."""
    n, few = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)

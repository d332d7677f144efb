"""How sure a share is, and whether a change is more than chance: of two models, the same examples are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

Change = Literal["better", "worse", "uncertain"]


@dataclass(frozen=True)
class Difference:
    """The share of right answers after less that before, of the same examples.

    Attributes:
        n: examples.
        mean: -1 to 1.
        ci95: its 95% interval.
        better, worse: examples that only the model after, or only the one before, answers rightly.
    """

    n: int
    mean: float
    ci95: tuple[float, float]
    better: int
    worse: int

    @property
    def change(self) -> Change:
        """`better` or `worse` where it is more than chance: the interval is without 0."""
        low, high = self.ci95
        if low <= 0 <= high:
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
            "change": self.change,
            "statement": self.statement,
        }


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share.

    Unlike `p +- 1.96 s` it stays within 0..1 and holds at p = 0 and p = 1.

    Source: E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference",
    https://doi.org/10.1080/01621459.1927.10502953

    Args:
        successes: how many of `n` succeeded; a tie may count half.
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


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> Difference:
    """Compare right and wrong answers to the same examples.

    The interval is the score interval of paired shares, with the correction for continuity of McNemar's test: it holds
    those differences that the test does not reject, so that it is without 0 where a change is more than chance, and
    nowhere else. Five examples that all got better may be chance; six are not.

    Sources: T. Tango (1998), "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 891-908; A. L. Edwards (1948), "Note on the correction for
    continuity in testing the significance of the difference between correlated proportions", Psychometrika 13, 185-187.

    Args:
        before, after: whether each example was answered rightly.

    Raises:
        ValueError: the lists differ in length.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} answers before, {len(after)} after: not of the same examples")
    n = len(before)
    if n == 0:
        return Difference(0, 0.0, (-1.0, 1.0), 0, 0)
    better = sum(bool(now) and not then for then, now in zip(before, after, strict=True))
    worse = sum(bool(then) and not now for then, now in zip(before, after, strict=True))
    ci95 = lowest_difference(better, worse, n), -lowest_difference(worse, better, n)
    return Difference(n, (better - worse) / n, ci95, better, worse)


def lowest_difference(better: int, worse: int, n: int) -> float:
    """Return the lower end of the 95% interval of `paired_difference`, -1 to 1; mirrored, it is the upper one."""
    z, mean = NormalDist().inv_cdf(0.975), (better - worse) / n

    def is_rejected(difference: float) -> bool:
        # The likeliest share of examples that get worse, of all that make this difference.
        linear = (2 * n - better + worse) * difference - better - worse
        constant = worse * difference * (1 - difference)
        share = (math.sqrt(max(0.0, linear**2 + 8 * n * constant)) - linear) / (4 * n)
        variance = max(0.0, n * (2 * share + difference * (1 - difference)))
        return better - worse - n * difference - 1 > z * math.sqrt(variance)

    low, high = -1.0, mean
    for _ in range(60):  # halves, to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if is_rejected(middle) else (low, middle)
    return low


def auc_interval(share: float, ones: int, others: int) -> tuple[float, float]:
    """Return the 95% interval of the chance that one of a kind is better than one of another (the area under ROC).

    It is the score interval with the variance of Hanley and McNeil (1982), as pairs that share a member say less than
    as many others would.

    Source: R. G. Newcombe (2006), "Confidence intervals for an effect size measure based on the Mann-Whitney statistic.
    Part 2: asymptotic methods and evaluation", Statistics in Medicine 25, 559-573, method 5.

    Args:
        share: of all pairs of one of each kind, those in which the first is better; ties count half.
        ones, others: how many there are of each kind.

    Returns:
        (low, high), each 0 to 1; without both kinds, nothing is known and it is (0, 1).
    """
    if not ones or not others:
        return 0.0, 1.0
    z, more = NormalDist().inv_cdf(0.975), (ones + others) / 2 - 1

    def is_likely(tried: float) -> bool:
        spread = 1 + more * ((1 - tried) / (2 - tried) + tried / (1 + tried))
        return abs(share - tried) <= z * math.sqrt(tried * (1 - tried) * spread / (ones * others))

    ends = []
    for outside in (0.0, 1.0):
        inside = share
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_likely(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]

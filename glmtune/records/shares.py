"""How much of a file is held out: records that ask the same are not parted, which a share cannot always follow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from glmtune.examples import Split, split_of, threshold_of

Counts: TypeAlias = Mapping[Split, int] | Mapping[str, int]  # records of each split

OTHER = "name records that ask something else: task.held_out_file=FILE"


def explain_empty(problems: Sequence[str], counts: Counts, wanted: float) -> str | None:
    """Return what is said where a split has no record, with what helps and nothing else; None where each has some.

    Args:
        problems: what each record asks, in its normal form.
        counts: records of each split.
        wanted: share that is to be held out, 0 to 1.
    """
    empty = next((split for split, count in counts.items() if not count), None)
    if empty is None:
        return None
    share = helpful_share(set(problems), wanted)
    remedy = f"{OTHER[0].upper()}{OTHER[1:]}"
    if share:
        held_out = sum(split_of(problem, share) == "held_out" for problem in set(problems))
        remedy = f"Set task.held_out={share:g}, which holds out {held_out} of them, or {OTHER}"
    return (
        f"No record for the {empty} split: {describe(problems)}, and those that ask the same stay together. {remedy}."
    )


def explain_uneven(problems: Sequence[str], counts: Counts, wanted: float) -> str | None:
    """Return what is said where far more or less is held out than was asked for; None where chance explains it.

    Args:
        problems, counts, wanted: as of `explain_empty`.
    """
    count, held_out = len(problems), counts["held_out"]
    by_chance = 3 * math.sqrt(count * wanted * (1 - wanted)) + 1  # three standard deviations, were all different
    if abs(held_out - count * wanted) <= by_chance:
        return None
    return (
        f"task.held_out={wanted:g}: {held_out:,} of {count:,} records are held out ({held_out / count:.0%}): there are "
        f"{describe(problems)}, and those that ask the same stay together. To choose, {OTHER}."
    )


def describe(problems: Sequence[str]) -> str:
    """Return `2 different questions in 60 records`."""
    counts = {"different question": len(set(problems)), "record": len(problems)}
    return " in ".join(f"{count:,} {name}{'s' * (count != 1)}" for name, count in counts.items())


def helpful_share(problems: Iterable[str], wanted: float) -> float | None:
    """Return a share by which both splits have problems: as round as may be, then as near to that wanted; None: none.

    It is a multiple of 5 % where one helps, else of 1 %, else of 0.1 %.
    """
    bounds = sorted(threshold_of(problem) / 2**64 for problem in problems)
    for parts in (20, 100, 1000):
        fitting = [number / parts for number in range(1, parts) if bounds[0] < number / parts <= bounds[-1]]
        if fitting:
            return min(fitting, key=lambda share: abs(share - wanted))
    return None

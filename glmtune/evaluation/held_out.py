"""What is said of the held-out examples before a training: how much a score of them says."""

from __future__ import annotations

from collections.abc import Iterator

from glmtune.intervals import wilson_interval

FEW_HELD_OUT = 30


def explain_during(before: int, during: int, shared: int) -> str:
    """Return what is said of the examples that choose the best weights.

    Args:
        before: held-out examples that are asked before and after the training.
        during: those that are asked at its beginning and on the way.
        shared: how many of these are among the others.
    """
    chosen = f"{during:,} others" if not shared else f"{during:,}, {shared:,} of them among these"
    if shared == during:
        chosen = "the same" if during == before else f"{during:,} of these"
    asked = f"{before:,} held-out example{' is' if before == 1 else 's are'}"
    return f"Before and after the training {asked} asked; on the way {chosen}, by which the best weights are chosen."


def too_few(asked: int, wanted: int) -> Iterator[str]:
    """Yield what is said where so few held-out examples are asked that a score of them says little.

    Args:
        asked: held-out examples that there are.
        wanted: as many as the recipe says.
    """
    if asked < FEW_HELD_OUT:
        low, high = wilson_interval(asked // 2, asked)
        more = f"evaluation.num_examples={FEW_HELD_OUT} or more" if wanted <= asked else "task.held_out=0.2"
        yield (
            f"Only {asked} held-out example{' is' if asked == 1 else 's are'} asked: half of them right would mean "
            f"anything from {low:.0%} to {high:.0%}. Ask more ({more}{'' if wanted <= asked else ', or more records'})."
        )

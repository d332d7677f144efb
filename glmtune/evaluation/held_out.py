"""What is said of the held-out examples before a training: how much a score of them says."""

from __future__ import annotations

from collections.abc import Iterator

from glmtune.intervals import wilson_interval

FEW_HELD_OUT = 30


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

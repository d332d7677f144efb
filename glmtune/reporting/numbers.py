"""Numbers as people write them."""

from __future__ import annotations

MOST_DECIMALS = 6


def percent(share: float, decimals: int = 0) -> str:
    """Write a share of 0 to 1 as a percentage, never rounded to all or nothing.

    `percent(0.5) -> "50%"`, `percent(1) -> "100%"`, but `percent(0.9975) -> "99.8%"` and `percent(0.002) -> "0.2%"`:
    decimals are added until a share that is not 1 reads as less than 100%, and one that is not 0 as more than 0%.
    """
    text = f"{share:.{decimals}%}"
    whole = float(text[:-1]) in (0, 100) and share not in (0, 1)
    return percent(share, decimals + 1) if whole and decimals < MOST_DECIMALS else text


def points(share: float) -> str:
    """Write a difference of shares in percentage points, with its sign: `points(-0.021) -> "−2.1"`."""
    return f"{100 * share:+.1f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Write a time in the unit that fits: `40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"

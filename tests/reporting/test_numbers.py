import pytest

from glmtune.reporting.numbers import duration, percent, points


@pytest.mark.parametrize(
    ("share", "decimals", "text"),
    [
        (0.5, 0, "50%"),
        (1, 0, "100%"),
        (1.0, 1, "100.0%"),
        (0, 0, "0%"),
        (0.9975, 0, "99.8%"),
        (0.9999, 0, "99.99%"),
        (0.9997, 1, "99.97%"),
        (0.002, 0, "0.2%"),
        (1e-9, 0, "0.000000%"),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share: float, decimals: int, text: str) -> None:
    assert percent(share, decimals) == text


def test_points_have_a_sign() -> None:
    assert (points(0.1234), points(-0.021), points(0)) == ("+12.3", "−2.1", "+0.0")


def test_durations() -> None:
    assert [duration(seconds) for seconds in (3.2, 119, 500, 7200, 11100)] == [
        "3 s",
        "119 s",
        "8 min",
        "2 h 0 min",
        "3 h 5 min",
    ]

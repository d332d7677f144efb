"""What is said of the examples by which a model is judged."""

import pytest

from glmtune.evaluation.held_out import explain_during


@pytest.mark.parametrize(
    ("before", "during", "shared", "told"),
    [
        (500, 200, 0, "500 held-out examples are asked; on the way 200 others, by which"),
        (60, 40, 7, "60 held-out examples are asked; on the way 40, 7 of them among these, by which"),
        (60, 40, 40, "60 held-out examples are asked; on the way 40 of these, by which"),
        (6, 6, 6, "6 held-out examples are asked; on the way the same, by which"),
        (1, 1, 1, "1 held-out example is asked; on the way the same, by which"),
    ],
)
def test_whether_these_are_others_is_told(before: int, during: int, shared: int, told: str) -> None:
    assert told in explain_during(before, during, shared)

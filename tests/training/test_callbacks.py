"""What happens beside the loop: what is measured until the next record of the log."""

from __future__ import annotations

from typing import Any

from glmtune.training.callbacks import Means


def end_step(means: Means) -> None:
    nothing: Any = None
    means.on_step_end(nothing, nothing, nothing)


def begin_step(means: Means) -> None:
    nothing: Any = None
    means.on_step_begin(nothing, nothing, nothing)


def test_they_are_of_all_steps_since_the_last_record_and_kept_in_a_checkpoint() -> None:
    means = Means(["loss", "reward", "kl"])
    assert means.take() == {}
    means.add({"reward": 1.0, "loss": 4.0})
    end_step(means)
    means.add({"reward": 5.0}, {"reward": 2})
    end_step(means)
    kept = Means.from_state(means.state())
    for one in (means, kept):
        assert one.take() == {"loss": 4.0, "reward": 2.0} and one.take() == {}


def test_a_step_that_was_given_up_counts_not() -> None:
    means = Means(["reward"])
    means.add({"reward": 1.0})
    end_step(means)
    means.add({"reward": 9.0})
    assert means.state()["attributes"] == {"sums": [1.0], "counts": [1]}
    begin_step(means)
    end_step(means)
    assert means.take() == {"reward": 1.0}

import math
import struct

import pytest

from glmtune.evaluation.plots import breakdown_chart, held_out_chart, judged, loss_chart, preference_chart, write_plots
from glmtune.evaluation.report import summarize
from glmtune.examples import Example
from glmtune.reporting.charts import PAGE, to_svg, write_png
from glmtune.scoring import Score
from glmtune.tasks.arithmetic import Arithmetic

pytestmark = pytest.mark.usefixtures("drawn_charts")

LOG = [
    {"step": step, "loss": 3 * math.exp(-step / 20), "learning_rate": 1e-3 * (1 - step / 200)}
    for step in range(10, 201, 10)
] + [
    {"step": 100, "accuracy": 0.5, "accuracy_ci95": [0.43, 0.57], "n": 200},
    {"step": 200, "accuracy": 0.9, "n": 200, "loss": 0.3},
    {"step": 200, "train_runtime": 3.0},
]


def size_of(path):
    """Width and height of a PNG, in pixels; no temporary file may be left beside it."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 5_000
    assert list(path.parent.iterdir()) == [path]
    return struct.unpack(">II", data[16:24])


def report_of(facts, right):
    examples = [Example("q", "a", fact) for fact in facts]
    scores = [Score("exact" if index < right else "wrong") for index in range(len(examples))]
    return summarize(examples, ["a"] * len(examples), scores, Arithmetic.axes, text_metrics=False)


NAN = {"step": 210, "loss": math.nan, "learning_rate": 1e-3}


@pytest.mark.parametrize("log", [LOG, LOG[:1], [], [*LOG, NAN], [{"step": 0, "accuracy": 0.0}]])
@pytest.mark.parametrize("chart", [loss_chart, held_out_chart])
@pytest.mark.filterwarnings("error::UserWarning")
def test_curves(chart, log, tmp_path):
    write_png(chart(log), tmp_path / "curve.png")
    assert size_of(tmp_path / "curve.png") == (1200, 675)


ARITHMETIC = [{"operator": o, "kind": k, "digits": d} for o in "+-*/" for k in ("integer", "decimal") for d in (1, 2)]


@pytest.mark.parametrize(
    "facts",
    [ARITHMETIC, [{"operator": "+"}] * 4, [{}] * 4, [{"类别": "甲"}, {"类别": "乙"}], [{"topic": "a"}, {"topic": "b"}]],
)
@pytest.mark.filterwarnings("error::UserWarning")  # a missing glyph would be one
def test_breakdown(facts, tmp_path):
    before, after = report_of(facts, 0), report_of(facts, len(facts) - 1)
    for first in (before, None, {**before, "by": {}}):
        write_png(breakdown_chart(first, after), tmp_path / "bars.png")
        width, height = size_of(tmp_path / "bars.png")
        assert 700 <= width <= 2400 and height == 675


@pytest.mark.parametrize("log", [LOG, []])
def test_a_run_has_three_pictures(log, tmp_path):
    report = {"before": report_of(ARITHMETIC, 3), "after": report_of(ARITHMETIC, 9)}
    write_plots(report, log, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "accuracy.png", "breakdown.png"}


def test_what_the_curves_show():
    loss = to_svg(loss_chart(LOG, frame=PAGE), "t", "d")
    assert all(f">{label}<" in loss for label in ("training, smoothed", "held-out", "learning rate"))
    assert ">loss (nats a token)<" in loss and ">loss (ipo, a pair)<" in to_svg(
        loss_chart(LOG, "ipo, a pair"), "t", "d"
    )
    accuracy = to_svg(held_out_chart(LOG, frame=PAGE), "t", "d")
    assert ">best: 90.0% at step 200<" in accuracy and ">accuracy (n = 200)<" in accuracy


def test_a_curve_is_of_one_set() -> None:
    """What was asked of others, as runs of before began with, or before the setting was changed, is not drawn."""
    others = {"step": 0, "accuracy": 0.99, "n": 500}
    assert [record["step"] for record in judged([others, *LOG])] == [100, 200]
    assert ">accuracy (n = 200)<" in to_svg(held_out_chart([others, *LOG], frame=PAGE), "t", "d")
    pairs = [
        {"step": step, "accuracy": 0.5, "preference_accuracy": 0.5, "n": 9, "preference_accuracy_n": 4 + step}
        for step in (1, 2)
    ]
    assert [record["step"] for record in judged(pairs, "preference_accuracy")] == [2]
    assert [record["step"] for record in judged(pairs)] == [1, 2] and judged([]) == []


def test_a_share_has_a_band_and_other_figures_have_none() -> None:
    log = [{"step": step, "m": step / 10, "m_ci95": [0.0, 0.9], "n": 5} for step in (0, 5)]
    assert ">95% interval<" in to_svg(held_out_chart(log, "m", frame=PAGE), "t", "d")
    bare = [{"step": one["step"], "m": one["m"], "n": 5} for one in log]
    assert ">m (n = 5)<" in (chart := to_svg(held_out_chart(bare, "m", frame=PAGE), "t", "d")) and "95%" not in chart


def test_rewards_of_compared_answers_are_drawn(tmp_path) -> None:
    names = ("reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy")
    log = [{"step": step, "loss": 0.6, **dict.fromkeys(names, step / 10)} for step in range(1, 9)]
    chart = to_svg(preference_chart(log, PAGE), "t", "d")
    assert all(f">{label}<" in chart for label in ("better answers", "worse answers", "margin", "better has more"))
    write_plots({"after": {"preference_accuracy": 0.5}}, log, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "reward.png"}

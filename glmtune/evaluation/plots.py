"""A run's charts: the loss, rewards, held-out figures while it learns, and the accuracy before and after."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.evaluation.breakdown import (
    MOST_ROWS,
    AxisRow,
    Report,
    across_of,
    choose_axis,
    groups_of,
    part_of,
    short_label_of,
)
from glmtune.intervals import wilson_interval
from glmtune.reporting.charts import (
    PICTURE,
    Color,
    Frame,
    Group,
    Interval,
    Line,
    Point,
    bar_chart,
    line_chart,
    smooth,
    write_png,
)
from glmtune.reporting.numbers import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = "optimizer step"
_DRAWABLE = re.compile("[ -~À-ɏ−×÷]{1,16}")  # labels that the font of pictures has and that stand under a bar

Log = Sequence[dict[str, Any]]
REWARD, PART = "reward", "rewards/"  # what a log calls the sum of the rewards, and begins the name of each with
BETTER, WORSE = "reward_chosen", "reward_rejected"  # and the rewards of answers that are compared
LOSS_UNIT = "nats a token"  # where a report does not say it
Places = tuple[tuple[AxisRow, str], ...]  # a group along one axis, or along one and the one across it


def write_plots(report: dict[str, Any], log: Log, folder: Path | str) -> None:
    """Write `loss.png`, and where there is something to draw, `accuracy.png`, `breakdown.png` and `reward.png`.

    Args:
        report: what `report.json` holds.
        log: records of `log.jsonl`.
        folder: the run folder.
    """
    charts = {"loss.png": loss_chart(log, report.get("loss_unit", LOSS_UNIT))}
    if "accuracy" in report["after"]:
        charts["accuracy.png"] = held_out_chart(log)
        charts["breakdown.png"] = breakdown_chart(report.get("before"), report["after"])
    if series(log, REWARD):
        charts["reward.png"] = reward_chart(log)
    elif series(log, BETTER):
        charts["reward.png"] = preference_chart(log)
    for name, chart in charts.items():
        write_png(chart, Path(folder) / name)


def loss_chart(log: Log, unit: str = LOSS_UNIT, frame: Frame = PICTURE) -> Figure:
    """Draw the training loss, the held-out loss and, faintly, the learning rate over the optimizer steps.

    Args:
        log: records of `log.jsonl`. `loss` is the training loss, or the held-out loss where the record holds `accuracy`
            too. Where a step occurs twice, as after a resumed run, the last one counts.
        unit: what a loss is of.
        frame: where the chart stands.
    """
    training = [record for record in log if "accuracy" not in record]
    losses = series(training, "loss")
    lines = [
        Line("", losses, pale=True),
        Line("training, smoothed", smooth(losses)),
        Line("held-out", series(judged(log), "loss"), "second", marks="dots"),
    ]
    rate = Line("learning rate", series(training, "learning_rate"), "faint", dashed=True)
    label = f"loss ({unit})"
    return line_chart(lines, "Loss", STEP, label, frame, logarithmic=True, right=rate, right_label="learning rate")


def reward_chart(log: Log, frame: Frame = PICTURE) -> Figure:
    """Draw the mean reward of the answers of each step, by its parts, and the share of prompts that taught nothing.

    Args:
        log: records of `log.jsonl`; those with a `reward` count.
        frame: where the chart stands.
    """
    steps = [record for record in log if REWARD in record]
    names = dict.fromkeys(name for record in steps for name in record if name.startswith(PART))
    lines = [Line("", series(steps, REWARD), pale=True), Line("reward, smoothed", smooth(series(steps, REWARD)))]
    if len(names) > 1:
        lines += [Line(name.removeprefix(PART), smooth(series(steps, name)), "second") for name in names]
    alike = Line("all answers alike", series(steps, "frac_reward_zero_std"), "faint", dashed=True)
    title = "Rewards of the answers"
    return line_chart(lines, title, STEP, "mean reward", frame, right=alike, right_label="share of prompts")


def preference_chart(log: Log, frame: Frame = PICTURE) -> Figure:
    """Draw the mean rewards of better and worse answers, by how much they differ, and how often the better has more.

    Args:
        log: records of `log.jsonl`; those with `reward_chosen` or `reward_rejected` count. A reward is beta times how
            much likelier an answer has become.
        frame: where the chart stands.
    """
    lines = [
        Line("better answers", smooth(series(log, BETTER))),
        Line("worse answers", smooth(series(log, WORSE)), "second"),
        Line("margin", smooth(series(log, "reward_margin")), dashed=True),
    ]
    right = Line("better has more", smooth(series(log, "reward_accuracy")), "faint", dashed=True)
    title = "Rewards of better and worse answers"
    return line_chart(lines, title, STEP, "mean reward", frame, right=right, right_label="share of pairs")


def held_out_chart(
    log: Log, metric: str = "accuracy", title: str = "Held-out examples answered rightly", frame: Frame = PICTURE
) -> Figure:
    """Draw a held-out figure over the optimizer steps; of a share, with its 95% band and its best point.

    Args:
        log: records of `log.jsonl`; those with the figure count, a share with its `..._ci95` or `n`.
        metric: the figure; it is a share where it is `accuracy`, or has an interval.
        title: what it is.
        frame: where the chart stands.
    """
    records = judged(log, metric)
    course, sizes = series(records, metric), {count_of(record, metric) for record in records}
    label = metric.replace("_", " ") + (f" (n = {sizes.pop():,})" if len(sizes) == 1 and None not in sizes else "")
    if metric != "accuracy" and not any(f"{metric}_ci95" in record for record in records):
        return line_chart([Line(label, course, marks="dots")], title, STEP, metric.replace("_", " "), frame)
    lines = [Line(label, course, band=[interval_of(record, metric) for record in records], marks="dots")]
    if course:
        step, share = max(course, key=lambda point: point[1])
        lines.append(Line(f"best: {percent(share, 1)} at step {step:,}", [(step, share)], "second", marks="ring"))
    return line_chart(lines, title, STEP, metric.replace("_", " "), frame, shares=True)


def breakdown_chart(before: Report | None, after: Report, frame: Frame = PICTURE) -> Figure:
    """Draw the accuracy of all examples and of each group as bars with 95% whiskers, before and after training.

    The groups are those along the first axis that has a few with short Latin labels, and along the one across it.

    Args:
        before: a report of `summarize`, or None.
        after: another.
        frame: where the chart stands.
    """
    reports = [after] if before is None else [before, after]
    series: list[tuple[str, Color]] = [("before training", "faint"), ("after", "accent")]
    groups: list[Group] = []
    for place in drawable(reports):
        is_new = len(place) > 1 and bool(groups) and groups[-1].label.partition("\n")[0] != short_label_of(*place[0])
        label = "\n".join(short_label_of(*one) for one in place)
        groups.append(Group(label, [bar_of(part_of(report, *place)) for report in reports], apart=is_new))
    title = "Right answers by kind of problem" if groups else "Right answers"
    groups.append(Group("all", [bar_of(report) for report in reports], apart=bool(groups)))
    return bar_chart(groups, series if before is not None else [("", "accent")], title, "accuracy", frame)


def drawable(reports: Sequence[Report]) -> list[Places]:
    """Return the groups, each a place along one axis or along two, that can stand under bars."""
    axis = choose_axis(reports, lambda axis, group: _DRAWABLE.fullmatch(short_label_of(axis, group)) is not None)
    across = across_of(reports, axis)
    rows: list[Places] = [((axis, group),) for group in groups_of(reports, axis)] if axis else []
    columns: list[Places] = [((across, group),) for group in groups_of(reports, across)] if across else []
    cells = [
        row + column
        for row, column in product(rows, columns)
        if any(part_of(report, *row, *column) for report in reports)
    ]
    return cells if 0 < len(cells) <= MOST_ROWS else rows


def judged(log: Log, metric: str = "accuracy") -> list[dict[str, Any]]:
    """Return the evaluations of a log in the order of their steps; of a step that occurs twice, the last one.

    All are of as many examples as the last: what was asked of more or fewer says nothing of a course.
    """
    records = {record["step"]: record for record in log if metric in record}
    found = [records[step] for step in sorted(records)]
    return [record for record in found if count_of(record, metric) == count_of(found[-1], metric)]


def count_of(record: dict[str, Any], metric: str) -> int | None:
    """Return how many examples a figure is of; None where it was not logged."""
    return record.get(f"{metric}_n", record.get("n"))


def series(records: Log, key: str) -> list[Point]:
    """Return (step, finite value) in the order of the steps; of a step that occurs twice, the last one."""
    values = {record["step"]: record[key] for record in records if key in record and math.isfinite(record[key])}
    return [(step, values[step]) for step in sorted(values)]


def interval_of(record: dict[str, Any], metric: str = "accuracy") -> Interval:
    """Return the step and the 95% interval of a record's share: as logged, else by its `n`, else none."""
    if f"{metric}_ci95" in record:
        return (record["step"], *record[f"{metric}_ci95"])
    share, count = record[metric], count_of(record, metric)
    return (record["step"], *(wilson_interval(share * count, count) if count else (share, share)))


def bar_of(part: dict[str, Any] | None) -> Interval | None:
    """Return the accuracy of a part of a report with its interval."""
    return None if part is None else (part["accuracy"], *part["accuracy_ci95"])

"""A run's charts: the loss, the held-out accuracy while it learns, and the accuracy before and after."""

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

_DRAWABLE = re.compile("[ -~À-ɏ−×÷]{1,16}")  # labels that the font of pictures has and that stand under a bar

Log = Sequence[dict[str, Any]]
REWARD, PART = "reward", "rewards/"  # what a log calls the sum of the rewards, and begins the name of each with
Places = tuple[tuple[AxisRow, str], ...]  # a group along one axis, or along one and the one across it


def write_plots(report: dict[str, Any], log: Log, folder: Path | str) -> None:
    """Write `loss.png`, `accuracy.png` and `breakdown.png`; of a run that learned from rewards, `reward.png`, too.

    Args:
        report: what `report.json` holds.
        log: records of `log.jsonl`.
        folder: the run folder.
    """
    write_png(loss_chart(log), Path(folder) / "loss.png")
    write_png(accuracy_chart(log), Path(folder) / "accuracy.png")
    write_png(breakdown_chart(report.get("before"), report["after"]), Path(folder) / "breakdown.png")
    if series(log, REWARD):
        write_png(reward_chart(log), Path(folder) / "reward.png")


def loss_chart(log: Log, frame: Frame = PICTURE) -> Figure:
    """Draw the training loss, the held-out loss and, faintly, the learning rate over the optimizer steps.

    Args:
        log: records of `log.jsonl`. `loss` is the training loss (nats per target token), or the held-out loss where
            the record holds `accuracy` too. Where a step occurs twice, as after a resumed run, the last one counts.
        frame: where the chart stands.
    """
    training = [record for record in log if "accuracy" not in record]
    losses = series(training, "loss")
    lines = [
        Line("", losses, pale=True),
        Line("training, smoothed", smooth(losses)),
        Line("held-out", series(held_out(log), "loss"), "second", marks="dots"),
    ]
    rate = Line("learning rate", series(training, "learning_rate"), "faint", dashed=True)
    return line_chart(
        lines, "Loss", "optimizer step", "loss (nats per target token)", frame, right=rate, right_label="learning rate"
    )


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
    return line_chart(lines, title, "optimizer step", "mean reward", frame, right=alike, right_label="share of prompts")


def accuracy_chart(log: Log, frame: Frame = PICTURE) -> Figure:
    """Draw the held-out accuracy over the optimizer steps, with its 95% band and its best point.

    Args:
        log: records of `log.jsonl`; those with `accuracy` (0 to 1) count, with their `accuracy_ci95` or `n`.
        frame: where the chart stands.
    """
    records = held_out(log)
    accuracies = series(records, "accuracy")
    sizes = {record.get("n") for record in records}
    label = "accuracy" + (f" (n = {sizes.pop():,})" if len(sizes) == 1 and None not in sizes else "")
    lines = [Line(label, accuracies, band=[interval_of(record) for record in records], marks="dots")]
    if accuracies:
        step, share = max(accuracies, key=lambda point: point[1])
        lines.append(Line(f"best: {percent(share, 1)} at step {step:,}", [(step, share)], "second", marks="ring"))
    title = "Held-out examples answered rightly"
    return line_chart(lines, title, "optimizer step", "accuracy", frame, shares=True)


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


def held_out(log: Log) -> list[dict[str, Any]]:
    """Return the evaluations of a log in the order of their steps; of a step that occurs twice, the last one."""
    records = {record["step"]: record for record in log if "accuracy" in record}
    return [records[step] for step in sorted(records)]


def series(records: Log, key: str) -> list[Point]:
    """Return (step, finite value) in the order of the steps; of a step that occurs twice, the last one."""
    values = {record["step"]: record[key] for record in records if key in record and math.isfinite(record[key])}
    return [(step, values[step]) for step in sorted(values)]


def interval_of(record: dict[str, Any]) -> Interval:
    """Return the step and the 95% interval of a record's accuracy: as logged, else by its `n`, else none."""
    if "accuracy_ci95" in record:
        return (record["step"], *record["accuracy_ci95"])
    share, count = record["accuracy"], record.get("n")
    return (record["step"], *(wilson_interval(round(share * count), count) if count else (share, share)))


def bar_of(part: dict[str, Any] | None) -> Interval | None:
    """Return the accuracy of a part of a report with its interval."""
    return None if part is None else (part["accuracy"], *part["accuracy_ci95"])

"""A run's charts: the loss, the held-out accuracy while it learns, and the accuracy before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.evaluation.intervals import wilson_interval
from glmtune.evaluation.report import labels_of
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

MOST_GROUPS = 14  # more bars than that cannot be read
SIGNS = {"-": "−", "*": "×", "/": "÷"}

Log = Sequence[dict[str, Any]]


def write_plots(report: dict[str, Any], log: Log, folder: Path | str) -> None:
    """Write `loss.png`, `accuracy.png` and `breakdown.png`.

    Args:
        report: what `report.json` holds.
        log: records of `log.jsonl`.
        folder: the run folder.
    """
    write_png(loss_chart(log), Path(folder) / "loss.png")
    write_png(accuracy_chart(log), Path(folder) / "accuracy.png")
    write_png(breakdown_chart(report.get("before"), report["after"]), Path(folder) / "breakdown.png")


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


def breakdown_chart(before: dict[str, Any] | None, after: dict[str, Any], frame: Frame = PICTURE) -> Figure:
    """Draw the accuracy of all examples and of each kind as bars with 95% whiskers, before and after training.

    The kinds are the values of the first fact that has a few short Latin ones, those of operators and kinds first.

    Args:
        before: a report of `summarize`, or None.
        after: another.
        frame: where the chart stands.
    """
    reports = [after] if before is None else [before, after]
    series: list[tuple[str, Color]] = [("before training", "faint"), ("after", "accent")]
    labels, fact = drawable(reports)
    groups = [
        Group(
            print_label(label),
            [bar_of(report["by"].get(fact, {}).get(label)) for report in reports],
            apart=label.split(" ")[0] != previous.split(" ")[0] and " " in label,
        )
        for previous, label in zip(labels[:1] + labels, labels, strict=False)
    ]
    groups.append(Group("all", [bar_of(report) for report in reports], apart=bool(groups)))
    title = "Right answers by kind of problem" if labels else "Right answers"
    return bar_chart(groups, series if before is not None else [("", "accent")], title, "accuracy", frame)


def drawable(reports: Sequence[dict[str, Any]]) -> tuple[list[str], str]:
    """Return the values of the first fact that can stand under bars, and its name; no values where there is none."""
    for fact in dict.fromkeys(["operator,kind", "operator", "kind", *reports[-1]["by"]]):
        labels = labels_of(reports, fact)
        if 2 <= len(labels) <= MOST_GROUPS and all(label.isascii() and 0 < len(label) <= 16 for label in labels):
            return labels, fact
    return [], ""


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


def print_label(label: str) -> str:
    """Write the value of two facts on two lines: `* integer` is `×` over `integer`."""
    head, _, rest = label.partition(" ")
    return "\n".join(piece for piece in (SIGNS.get(head, head), rest) if piece)

"""A run's pictures: the loss, the held-out accuracy while it learns, and the accuracy before and after.

matplotlib is loaded only when a picture is drawn, and only through `Figure` objects: nothing global is touched, and no
display is needed. Labels are Latin script, because matplotlib's own font has no Chinese characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.evaluation.intervals import wilson_interval
from glmtune.evaluation.report import labels_of
from glmtune.runtime import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY, INK = "#2f6db5", "#d9722e", "#b4bac2", "#2b3038"
DPI = 150
MOST_GROUPS = 14  # more bars than that cannot be read

_SIGNS = {"-": "−", "*": "×", "/": "÷"}

Log = Sequence[dict[str, Any]]
Bar = tuple[str, dict[str, Any] | None, dict[str, Any] | None]  # label, share before, share after


def plot_loss(log: Log, path: Path | str) -> None:
    """Draw the training loss and, faintly, the learning rate over the optimizer steps.

    Args:
        log: records of `log.jsonl`. `loss` is the training loss (nats per target token), or the held-out loss where
            the record holds `accuracy` too. Where a step occurs twice, as after a resumed run, the last one counts.
        path: the PNG to write.
    """
    training = [record for record in log if "accuracy" not in record]
    axes = _axes("Loss", "loss (nats per target token)")
    steps, losses = _series(training, "loss")
    smoothed = _smooth(losses)
    if losses:
        axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.9)
        marker = "o" if len(steps) == 1 else None  # a line of one point would be invisible
        axes.plot(steps, smoothed, color=BLUE, linewidth=2, marker=marker, label="training, smoothed")
    held_out_steps, held_out = _series([record for record in log if "accuracy" in record], "loss")
    if held_out:
        axes.plot(held_out_steps, held_out, color=ORANGE, marker="o", markersize=4, linewidth=1.6, label="held-out")
    if losses and min(losses) > 0 and max(smoothed) > 20 * min(smoothed):
        _logarithmic(axes)
    if losses or held_out:
        axes.set_xlim(0, max(steps + held_out_steps + [1]) * 1.03)
    _learning_rate(axes, training)
    _finish(axes, path, empty=not (losses or held_out))


def plot_accuracy(log: Log, path: Path | str) -> None:
    """Draw the held-out exact match over the optimizer steps, with its 95% band and its best point.

    Args:
        log: records of `log.jsonl`; those with `accuracy` (0 to 1) count, with their `accuracy_ci95` or `n`.
        path: the PNG to write.
    """
    records = {record["step"]: record for record in log if "accuracy" in record}
    steps = sorted(records)
    shares = [records[step]["accuracy"] for step in steps]
    bounds = [_interval(records[step]) for step in steps]
    sizes = {records[step].get("n") for step in steps}
    axes = _axes("Held-out problems answered right", "exact match")
    _percent(axes)
    if steps:
        best = shares.index(max(shares))
        name = "exact match" + (f" (n = {sizes.pop()})" if len(sizes) == 1 and None not in sizes else "")
        _band(axes, steps, bounds)
        axes.plot(steps, shares, color=BLUE, marker="o", markersize=4, linewidth=2, label=name)
        (ring,) = axes.plot([steps[best]], [shares[best]], "o", color=ORANGE, markersize=11, markerfacecolor="none")
        ring.set(markeredgewidth=1.8, label=f"best: {shares[best]:.1%} at step {steps[best]:,}")
        axes.set_xlim(0, max(steps[-1], 1) * 1.03)
    _finish(axes, path, empty=not steps)


def plot_breakdown(before: dict[str, Any] | None, after: dict[str, Any], path: Path | str) -> None:
    """Draw the exact match by operator and kind, and of all, as bars with 95% whiskers, before and after training.

    Where the examples have no operators, the first fact with a few short Latin values takes their place.

    Args:
        before: a report of `summarize`, or None.
        after: another.
        path: the PNG to write.
    """
    bars = _bars(before, after)
    places = _places([label for label, *_ in bars])
    title = "Right answers by kind of problem" if len(bars) > 1 else "Right answers"
    axes = _axes(title, "exact match", width=max(5.0, 2.0 + 0.85 * places[-1]))
    _percent(axes)
    # Before and after side by side, or after alone in the middle.
    width, shift = (0.4, 0.2) if before is not None else (0.55, 0.0)
    for place, (_, share_before, share_after) in zip(places, bars, strict=True):
        _bar(axes, place - shift, width, share_before, GREY)
        _bar(axes, place + shift, width, share_after, BLUE)
    axes.set_xticks(places, [label for label, *_ in bars], fontsize=10)
    axes.set_xlim(min(-0.7, places[-1] / 2 - 2), max(places[-1] + 0.7, places[-1] / 2 + 2))
    axes.set_xlabel("")
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    if before is not None:
        axes.bar(0, 0, color=GREY, label="before training")
        axes.bar(0, 0, color=BLUE, label="after")
    _finish(axes, path)


def _axes(title: str, ylabel: str, width: float = 8.0) -> Axes:
    """Empty axes, steps on the x axis. `width` is in inches."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    axes = Figure(figsize=(width, 4.5), dpi=DPI, layout="constrained").add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=26)
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9.5)
    return axes


def _finish(axes: Axes, path: Path | str, empty: bool = False) -> None:
    """Add the legend above the axes and write the PNG whole or not at all."""
    from matplotlib.figure import Figure

    figure = axes.figure
    assert isinstance(figure, Figure)
    if empty:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color=INK)
        axes.set(xticks=[], yticks=[])
    handles, labels = axes.get_legend_handles_labels()
    for other in figure.axes[1:]:  # the learning rate's
        more, names = other.get_legend_handles_labels()
        handles, labels = handles + more, labels + names
    if handles:
        style: dict[str, Any] = {"frameon": False, "fontsize": 9.5, "labelcolor": INK, "ncols": 4}
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), **style)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _series(records: Log, key: str) -> tuple[list[int], list[float]]:
    """Steps and finite values of a key, in the order of the steps."""
    found = {record["step"]: record[key] for record in records if key in record and math.isfinite(record[key])}
    return sorted(found), [found[step] for step in sorted(found)]


def _smooth(values: Sequence[float]) -> list[float]:
    """Means over a window of a tenth of all values, centred on each so that nothing lags, cut off at both ends."""
    reach = len(values) // 20
    windows = [values[max(0, index - reach) : index + reach + 1] for index in range(len(values))]
    return [math.fsum(window) / len(window) for window in windows]


def _logarithmic(axes: Axes) -> None:
    """A log scale that reads 0.1, not 10^-1."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _learning_rate(axes: Axes, training: Log) -> None:
    """The learning rate on a second, faint axis."""
    steps, rates = _series(training, "learning_rate")
    if not rates:
        return
    twin = axes.twinx()
    twin.plot(steps, rates, color=GREY, linewidth=1.3, linestyle=(0, (4, 2)), label="learning rate")
    twin.set_ylim(0, max(rates) * 1.05 or 1)
    twin.set_ylabel("learning rate", color="#8a919b")
    twin.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    twin.tick_params(colors="#8a919b", labelsize=9, length=0)
    twin.yaxis.get_offset_text().set_color("#8a919b")
    twin.spines[:].set_visible(False)
    # The losses belong in front, yet a twin is drawn after its axes.
    axes.set_zorder(twin.get_zorder() + 1)
    axes.patch.set_visible(False)


def _percent(axes: Axes) -> None:
    """A y axis of 0 to 100 %."""
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    axes.set_ylim(0, 1.06)
    axes.yaxis.set_major_locator(MultipleLocator(0.2))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _interval(record: dict[str, Any]) -> tuple[float, float]:
    """The 95% interval of a record's exact match: as logged, else by its `n`, else none."""
    if "accuracy_ci95" in record:
        low, high = record["accuracy_ci95"]
        return low, high
    share = record["accuracy"]
    return wilson_interval(round(share * record["n"]), record["n"]) if record.get("n") else (share, share)


def _band(axes: Axes, steps: Sequence[int], bounds: Sequence[tuple[float, float]]) -> None:
    """The intervals as a band, or as a line where there is one step only."""
    low, high = zip(*bounds, strict=True)
    if len(steps) == 1:
        axes.vlines(steps, low, high, color=BLUE, alpha=0.3, linewidth=6, label="95% interval")
    else:
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.16, linewidth=0, label="95% interval")


def _bars(before: dict[str, Any] | None, after: dict[str, Any]) -> list[Bar]:
    """The groups of bars: operator and kind, or another fact that can be drawn, then all."""
    facts = dict.fromkeys(["operator,kind", "operator", "kind", *after["by"]])
    bars: list[Bar] = []
    for fact in facts:
        labels = labels_of((before, after), fact)
        if 2 <= len(labels) <= MOST_GROUPS and all(label.isascii() and 0 < len(label) <= 16 for label in labels):
            shares_before = before["by"].get(fact, {}) if before else {}
            shares_after = after["by"].get(fact, {})
            bars = [(_printed(label), shares_before.get(label), shares_after.get(label)) for label in labels]
            break
    return [*bars, ("all", before, after)]


def _places(labels: Sequence[str]) -> list[float]:
    """Where each group of bars stands: the kinds of one operator together, `all` set off."""
    places = [0.0]
    for previous, label in pairwise(labels):
        apart = label == "all" or ("\n" in label and label.split("\n")[0] != previous.split("\n")[0])
        places.append(places[-1] + (1.35 if apart else 1))
    return places


def _printed(label: str) -> str:
    """`* integer` -> `×` over `integer`."""
    head, _, rest = label.partition(" ")
    return "\n".join(piece for piece in (_SIGNS.get(head, head), rest) if piece)


def _bar(axes: Axes, place: float, width: float, share: dict[str, Any] | None, color: str) -> None:
    """One bar with its whisker and its percentage above."""
    if share is None:
        return
    value, (low, high) = share["accuracy"], share["accuracy_ci95"]
    axes.bar(place, value, width * 0.94, color=color)
    axes.errorbar(place, value, [[value - low], [high - value]], color=INK, elinewidth=1, capsize=2.5, alpha=0.6)
    axes.text(place, high + 0.015, f"{value:.0%}", ha="center", va="bottom", fontsize=8.5, color=INK)

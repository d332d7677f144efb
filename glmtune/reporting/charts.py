"""The chart engine: lines and bars by matplotlib, as SVG for pages and as PNG for folders, from the same functions.

matplotlib is imported when a chart is drawn, and used through `Figure` objects alone: no display is needed, and nothing
global is touched. The same chart is the same file: SVG has neither date nor random ids.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glmtune.files import replacing
from glmtune.reporting.numbers import percent

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
Color = Literal["accent", "second", "faint"]
Interval = tuple[float, float, float]  # value, low, high

# The colours of page.css; in SVG each is the variable of the page, which has another value in the dark.
COLORS = {
    "accent": "#2563ab",
    "second": "#c2571a",
    "faint": "#97a0ac",
    "ink": "#1f2530",
    "soft": "#5a6472",
    "rule": "#dfe3e8",
}
DPI = 150


@dataclass(frozen=True)
class Frame:
    """Where a chart stands.

    Attributes:
        width, height: in inches; letters have the same size in every frame.
        legend_columns: entries of the legend side by side.
        titled: whether the chart says its title itself.
    """

    width: float
    height: float
    legend_columns: int
    titled: bool


PICTURE = Frame(8.0, 4.5, 4, titled=True)  # a file of its own
PAGE = Frame(4.5, 3.1, 2, titled=False)  # under a heading, and to be read on a phone


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: in the legend; empty for none.
        points: (x, y), x ascending.
        band: (x, low, high) of an interval around it.
        marks: a dot on each point, or a ring around it instead of a line.
        pale: in the background.
        dashed: broken.
    """

    label: str
    points: Sequence[Point]
    color: Color = "accent"
    band: Sequence[Interval] = ()
    marks: Literal["none", "dots", "ring"] = "none"
    pale: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Group:
    """Bars that stand together.

    Attributes:
        label: under them, in lines.
        bars: (share, low, high) of each series; None where there is none.
        apart: whether a gap is before it.
    """

    label: str
    bars: Sequence[Interval | None]
    apart: bool = False


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    frame: Frame = PICTURE,
    shares: bool = False,
    logarithmic: bool = False,
    right: Line | None = None,
    right_label: str = "",
) -> Figure:
    """Draw lines over steps.

    Args:
        lines: from the back to the front.
        title, x_label, y_label: what is shown.
        frame: where.
        shares: whether y is a share, drawn from 0 to 100%.
        logarithmic: whether y is logarithmic where its values differ twentyfold and are all positive.
        right: a line in the background with an axis of its own on the right.
        right_label: of that axis.
    """
    axes = _axes(title, x_label, y_label, frame)
    drawn = [line for line in lines if line.points]
    for line in drawn:
        _draw_line(axes, line)
    values = [y for line in drawn if not line.pale for _, y in line.points]
    if shares:
        _set_share_axis(axes)
    elif logarithmic and values and min(values) > 0 and max(values) > 20 * min(values):
        _set_logarithmic(axes)
    if drawn:
        axes.set_xlim(0, max(1.0, *(line.points[-1][0] for line in drawn)) * 1.03)
    else:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color=COLORS["soft"])
        axes.set(xticks=[], yticks=[])
    if right is not None and right.points:
        _draw_right(axes, right, right_label)
    return _finish(axes, frame)


def bar_chart(
    groups: Sequence[Group], series: Sequence[tuple[str, Color]], title: str, y_label: str, frame: Frame = PICTURE
) -> Figure:
    """Draw groups of bars of shares, with their intervals as whiskers and their percentages above.

    Args:
        groups: from left to right.
        series: label and colour of the bars of each group; an empty label has no place in the legend.
        title, y_label: what is shown.
        frame: where; it grows with the number of groups.
    """
    places = [0.0]
    for group in groups[1:]:
        places.append(places[-1] + (1.35 if group.apart else 1.0))
    width = max(0.62 * frame.width, 2.0 + 0.85 * places[-1])
    axes = _axes(title, "", y_label, Frame(width, frame.height, frame.legend_columns, frame.titled))
    _set_share_axis(axes)
    thickness = 0.8 / len(series) if len(series) > 1 else 0.55
    for index, (label, color) in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * thickness
        for place, group in zip(places, groups, strict=True):
            if (bar := group.bars[index]) is not None:
                _draw_bar(axes, place + shift, thickness * 0.94, bar, color)
        if label:
            axes.bar(0, 0, color=COLORS[color], label=label)
    axes.set_xticks(places, [group.label for group in groups], parse_math=False)  # of anybody's records, no formulas
    axes.set_xlim(min(-0.7, places[-1] / 2 - 2), max(places[-1] + 0.7, places[-1] / 2 + 2))
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    return _finish(axes, frame)


def smooth(points: Sequence[Point]) -> list[Point]:
    """Return means over a window of a tenth of all points, centred on each so that nothing lags."""
    reach = len(points) // 20
    windows = [points[max(0, index - reach) : index + reach + 1] for index in range(len(points))]
    return [(x, sum(y for _, y in window) / len(window)) for (x, _), window in zip(points, windows, strict=True)]


def write_png(figure: Figure, path: Path | str) -> None:
    """Write a chart as PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def to_svg(figure: Figure, title: str, description: str) -> Markup:
    """Return a chart as an SVG element for a page, in the page's colours and letters.

    Args:
        figure: a chart in the frame `PAGE`.
        title: its name, for those who do not see it.
        description: what it shows, for them.
    """
    from markupsafe import Markup
    from matplotlib import rc_context

    # Texts remain texts; ids depend on the title and the drawing alone, so that two charts of a page share none.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        text = file.getvalue()
    _, box, body = re.split(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', text, maxsplit=1)
    body = re.sub(r"<style.*?</style>|<clipPath.*?</clipPath>|<defs>\s*</defs>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r' clip-path="[^"]*"', "", body)
    used = set(re.findall(r'href="#([^"]*)"', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    for name, color in COLORS.items():
        body = body.replace(color, f"var(--{name})")
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>')
    return head.format(box, title, title, description) + Markup(body.strip())


def _axes(title: str, x_label: str, y_label: str, frame: Frame) -> Axes:
    """Return empty axes in the house's style."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    axes = Figure(figsize=(frame.width, frame.height), layout="constrained").add_subplot()
    axes.figure.patch.set_visible(frame.titled)  # a page has its own ground
    axes.patch.set_visible(False)
    if frame.titled:
        axes.set_title(title, loc="left", color=COLORS["ink"], fontsize=13, fontweight="bold", pad=28)
    axes.set_xlabel(x_label, color=COLORS["soft"])
    axes.set_ylabel(y_label, color=COLORS["soft"])
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto" if frame.titled else 5, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(color=COLORS["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLORS["faint"])
    axes.tick_params(which="both", colors=COLORS["soft"], color=COLORS["faint"])
    return axes


def _finish(axes: Axes, frame: Frame) -> Figure:
    """Return the figure, with a legend above the axes."""
    figure: Any = axes.figure
    legends = [one.get_legend_handles_labels() for one in figure.axes]
    handles = [handle for drawn, _ in legends for handle in drawn]
    labels = [label for _, named in legends for label in named]
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0 if frame.titled else -0.1, 1.0),
            ncols=frame.legend_columns,
            frameon=False,
            labelcolor=COLORS["soft"],
            fontsize=9.5,
            handlelength=1.6,
            columnspacing=1.4,
            borderaxespad=0.2,
        )
    return figure  # type: ignore[no-any-return]


def _draw_line(axes: Axes, line: Line) -> None:
    """Draw a line with its band and marks."""
    color, alone = COLORS[line.color], len(line.points) == 1
    if line.band:
        x, low, high = zip(*line.band, strict=True)
        if len(x) == 1:
            axes.vlines(x, low, high, color=color, alpha=0.3, linewidth=6, label="95% interval")
        else:
            axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, label="95% interval")
    x, y = zip(*line.points, strict=True)
    style: dict[str, Any] = {"color": color, "label": line.label or None}
    if line.marks == "ring":
        axes.plot(x, y, "o", markersize=11, markerfacecolor="none", markeredgewidth=1.8, **style)
        return
    style |= {"marker": "o", "markersize": 4.5} if line.marks == "dots" or alone else {}
    style |= {"alpha": 0.35, "linewidth": 0.9} if line.pale else {"linewidth": 1.9}
    axes.plot(x, y, linestyle=(0, (4, 2)) if line.dashed else "-", **style)


def _draw_right(axes: Axes, line: Line, label: str) -> None:
    """Draw a line behind all others, with an axis on the right."""
    twin = axes.twinx()
    twin.patch.set_visible(False)
    _draw_line(twin, line)
    twin.set_ylim(0, max(y for _, y in line.points) * 1.05 or 1)
    twin.set_ylabel(label, color=COLORS["faint"])
    twin.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    twin.tick_params(colors=COLORS["faint"], length=0)
    twin.yaxis.get_offset_text().set_color(COLORS["faint"])
    twin.spines[:].set_visible(False)
    axes.set_zorder(twin.get_zorder() + 1)  # a twin is drawn after its axes


def _draw_bar(axes: Axes, place: float, width: float, bar: Interval, color: Color) -> None:
    """Draw a bar with its whisker and its percentage above."""
    share, low, high = bar
    axes.bar(place, share, width, color=COLORS[color])
    whisker = [[share - low], [high - share]]
    axes.errorbar(place, share, whisker, color=COLORS["ink"], elinewidth=1, capsize=2.5, alpha=0.6)
    axes.text(place, high + 0.015, percent(share), ha="center", va="bottom", fontsize=8.5, color=COLORS["ink"])


def _set_share_axis(axes: Axes) -> None:
    """Let y go from 0 to 100%."""
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    axes.set_ylim(0, 1.06)
    axes.yaxis.set_major_locator(MultipleLocator(0.2))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _set_logarithmic(axes: Axes) -> None:
    """Make y logarithmic, with ticks that read 0.1, not 10^-1."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())

"""Charts as SVG texts that stand in a page: they take its colours, and can be read on a phone.

Colours are the page's CSS variables, sizes are pixels at a width of 400; a page scales them with its columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 38

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: in the legend.
        points: (x, y), x ascending.
        color: a CSS variable of the page: `--accent`.
        band: (x, low, high) of an interval around it.
        marked: a dot on each point.
        faint: in the background, without a place in the legend.
    """

    label: str
    points: Sequence[Point]
    color: str
    band: Sequence[tuple[float, float, float]] = ()
    marked: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Scale:
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    as_text: Callable[[float], str],
    y_bounds: tuple[float, float] | None = None,
) -> str:
    """Lines over steps, with a legend below.

    Args:
        lines: at least one of them with a point.
        title: what a screen reader says.
        x_label: under the x axis.
        as_text: of a value on the y axis.
        y_bounds: of the y axis; default: what the values take, on a logarithmic axis where they differ twentyfold.
    """
    values = [y for line in lines for _, y in line.points]
    low, high = y_bounds or (min(values), max(values))
    logarithmic = y_bounds is None and low > 0 and high > 20 * low
    if y_bounds is None and not logarithmic:
        low, high = min(0.0, low), max(high * 1.05, low + 1e-9)
    x = Scale(0, max([1.0, *(point[0] for line in lines for point in line.points)]), LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [_axes(x, y, x_label, as_text)]
    for line in lines:
        parts += _drawn(line, x, y)
    legend = "".join(
        f'<span class="key"><i style="background:var({line.color})"></i>{escape(line.label)}</span>'
        for line in lines
        if not line.faint
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'{svg}<figcaption class="legend">{legend}</figcaption>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values between two bounds."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two bounds; the powers alone where that is enough."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def _axes(x: Scale, y: Scale, x_label: str, as_text: Callable[[float], str]) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in logarithmic_ticks(y.low, y.high) if y.logarithmic else ticks(y.low, y.high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{escape(as_text(value))}</text>')
    for value in ticks(x.low, x.high):
        if value == int(value):
            anchor = "end" if x(value) > WIDTH - 30 else "middle"
            parts.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="{anchor}">{int(value):,}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 32}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _drawn(line: Line, x: Scale, y: Scale) -> list[str]:
    """A line with its band and marks."""
    color = f"var({line.color})"
    parts = []
    if line.band:
        corners = [(at, high) for at, _, high in line.band] + [(at, low) for at, low, _ in reversed(line.band)]
        parts.append(f'<polygon points="{_path(corners, x, y)}" style="fill:{color};opacity:.18"/>')
    if len(line.points) > 1:
        style = f"stroke:{color};stroke-width:{1 if line.faint else 2};opacity:{0.35 if line.faint else 1}"
        parts.append(f'<polyline points="{_path(line.points, x, y)}" style="{style}"/>')
    if line.marked or len(line.points) == 1:
        dots = (
            f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3" style="fill:{color}"/>' for at, value in line.points
        )
        parts += dots
    return parts


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)

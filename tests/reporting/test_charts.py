"""Charts are drawn whole, alike each time, in the page's colours, and never round a share to all."""

import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from glmtune.reporting.charts import COLORS, PAGE, Group, Line, bar_chart, line_chart, smooth, to_svg, write_png

pytestmark = pytest.mark.usefixtures("drawn_charts")

CURVE = [(step, 100.0 / (1 + step)) for step in range(100)]
LINES = [
    Line("", CURVE, pale=True),
    Line("<loss>", smooth(CURVE), band=[(0, 90, 100), (99, 0.5, 2)]),
    Line("best", [(99, 1.0)], "second", marks="ring"),
]
BARS = [Group("+\ninteger", [(0.0, 0.0, 0.1), (0.9975, 0.99, 1.0)]), Group("all", [None, (1.0, 0.9, 1.0)], apart=True)]
SERIES: list[Any] = [("before", "faint"), ("after", "accent")]


def draw_both() -> list[str]:
    rate = Line("rate", CURVE, "faint", dashed=True)
    lines = line_chart(LINES, "Loss", "step", "nats", PAGE, right=rate, right_label="rate")
    bars = bar_chart(BARS, SERIES, "Bars", "accuracy", PAGE)
    return [to_svg(lines, "Loss over the steps", "It <falls>."), to_svg(bars, "Bars", "Two.")]


@pytest.mark.filterwarnings("error::UserWarning")
def test_an_svg_is_an_element_of_its_page() -> None:
    for text in draw_both():
        svg = ElementTree.fromstring(text.replace("xlink:href", "href"))
        ids = [element.get("id") for element in svg.iter() if element.get("id")]
        assert svg.get("role") == "img" and svg.get("width") is None and svg.get("viewBox")
        assert [element.tag for element in svg][:2] == ["title", "desc"] and len(ids) == len(set(ids))
        assert "url(" not in text and "<style" not in text and "<script" not in text and "date" not in text
        assert not set(re.findall(r"#[0-9a-f]{6}", text)) & set(COLORS.values()) and "var(--accent)" in text
    first, second = draw_both()
    assert "&lt;loss&gt;" in first and "It &lt;falls&gt;." in first
    assert not set(re.findall(r' id="(.*?)"', first)) & set(re.findall(r' id="(.*?)"', second))


def test_the_same_chart_is_the_same_text() -> None:
    assert draw_both() == draw_both()


def test_what_is_not_all_is_not_100_percent() -> None:
    text = draw_both()[1]
    assert ">99.8%<" in text and ">0%<" in text
    assert text.count(">100%<") == 2  # of the bar that is, and of the axis


def test_nothing_logged_is_said() -> None:
    assert "nothing was logged" in to_svg(line_chart([Line("a", [])], "t", "x", "y", PAGE), "t", "d")


def test_a_png_is_written_whole_and_alike(tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        write_png(line_chart(LINES, "Loss", "step", "nats"), tmp_path / name)
    data = (tmp_path / "one.png").read_bytes()
    assert data == (tmp_path / "other.png").read_bytes()
    assert struct.unpack(">II", data[16:24]) == (1200, 675)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "other.png"}


def test_smoothing_keeps_a_level_and_does_not_lag() -> None:
    assert [y for _, y in smooth([(step, 2.0) for step in range(50)])] == pytest.approx([2.0] * 50)
    rising = smooth([(step, float(step)) for step in range(100)])
    assert [y for _, y in rising[10:90]] == pytest.approx([float(step) for step in range(10, 90)])
    assert smooth([]) == [] and smooth([(0, 1.0)]) == [(0, 1.0)]


def test_the_colours_are_those_of_the_page() -> None:
    style = (Path(sys.modules[line_chart.__module__].__file__ or "").parent / "page.css").read_text("utf-8")
    light = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", style.partition("@media")[0]))
    assert COLORS.items() <= light.items()


def test_matplotlib_is_imported_when_a_chart_is_drawn() -> None:
    code = (
        "import sys\nimport glmtune.reporting.charts as charts, glmtune.reporting.page\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "charts.line_chart([], 't', 'x', 'y')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

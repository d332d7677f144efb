"""The shell of pages: everything filled in is text, what is missing is an error, and nothing is loaded."""

from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from glmtune.reporting.page import render_page

TEMPLATE = """{% extends "page.html" %}
{% from "parts.html" import chart, facts, section, table %}
{% block content %}
{% call section("one", title) %}
{{ facts([("name", value), ("none", none)]) }}{{ table([["head"], [value]]) }}{{ chart(title, value) }}
{{ 0.9975 | percent }} {{ -0.01 | points }} {{ 1234 | thousands }}
{% endcall %}
{% endblock %}
"""
EVIL = "<script>alert('&')</script>\n\"<img src=http://x.example/y>"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "one.html"
    path.write_text(TEMPLATE, encoding="utf-8")
    return path


def test_what_is_filled_in_is_text(template: Path, read_page: Any) -> None:
    text = render_page(template, EVIL, value=EVIL)
    read = read_page(text)
    assert read.text.count(EVIL.splitlines()[0]) == 6
    assert not read.tags & {"script", "img", "link", "iframe", "object", "embed", "base"} and read.links == []
    assert "99.8% −1.0 1,234" in read.text and read.ids == ["one"]


def test_the_page_may_load_nothing(template: Path) -> None:
    text = render_page(template, "t", value="")
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text and "//" not in text
    assert text.startswith("<!DOCTYPE html>") and "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_a_missing_value_is_an_error(template: Path) -> None:
    with pytest.raises(UndefinedError, match="value"):
        render_page(template, "t")

"""The shell of every HTML page: one file that loads nothing, runs nothing, and is read on a phone as on a desk.

What a page says stands in a Jinja template beside the code that fills it, which begins with `{% extends "page.html" %}`
and may import the macros of `parts.html`. Everything filled in is escaped: what a user or a model wrote is text, never
markup. Only charts, which are made here, are markup already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmtune.reporting import numbers

HERE = Path(__file__).parent


def render_page(template: Path, title: str, **values: Any) -> str:
    """Return the text of a page.

    Args:
        template: the page's own template.
        title: of the page.
        values: what the template asks for; a name that is missing is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": numbers.percent, "points": numbers.points, "thousands": "{:,}".format}
    return environment.get_template(template.name).render(title=title, **values)

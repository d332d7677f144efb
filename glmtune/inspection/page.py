"""The report as an HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from glmtune.inspection.summary import count_rows, length_rows, remarks, visible, where

STYLE = """
:root { color-scheme: light dark; --line: #8886; --learned: #b7e4c7; --control: #777; }
@media (prefers-color-scheme: dark) { :root { --learned: #1b5e3a; --control: #999; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid var(--line); padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: .75rem; }
pre span { outline: 1px dotted var(--line); }
.learned { background: var(--learned); }
.control { color: var(--control); }
"""


def render_page(report: dict[str, Any]) -> str:
    """Return a report as an HTML page that needs nothing else."""
    escape = html.escape
    rows = "".join(as_row("td", row) for row in count_rows(report))
    lengths = ""
    if report["records"]:
        head, *body = length_rows(report)
        lengths = f"<table>{as_row('th', head)}{''.join(as_row('td', row) for row in body)}</table>"
    said = escape("\n".join(remarks(report)))
    examples = "".join(
        f"<h2>{escape(where(example))}</h2><pre>{''.join(map(as_span, example['tokens']))}</pre>"
        for example in report["examples"]
    )
    title = escape(", ".join(Path(file).name for file in report["files"]))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>{title}</h1>'
        f"<table>{rows}</table>{lengths}{f'<pre>{said}</pre>' if said else ''}"
        f'<p>Each box is a token; those on <span class="learned">this ground</span> are learned.</p>'
        f"{examples}</body></html>\n"
    )


def as_row(tag: str, cells: Iterable[str]) -> str:
    """A row of a table of the page."""
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def as_span(token: Sequence[Any]) -> str:
    """A token of the page."""
    text, learned, control = token
    kind = " ".join(name for name, given in (("learned", learned), ("control", control)) if given)
    return f'<span class="{kind}">{html.escape(visible(text))}</span>'

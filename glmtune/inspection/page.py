"""The report as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmtune.inspection.summary import count_rows, length_rows, mark_breaks, remarks, where
from glmtune.reporting.page import render_page

TEMPLATE = Path(__file__).with_name("inspection.html")


def render_report(report: dict[str, Any]) -> str:
    """Return a report as an HTML page that needs nothing else."""
    examples = [
        (where(example), [(mark_breaks(text), learned, control) for text, learned, control in example["tokens"]])
        for example in report["examples"]
    ]
    return render_page(
        TEMPLATE,
        ", ".join(Path(file).name for file in report["files"]),
        counts=count_rows(report),
        lengths=length_rows(report) if report["records"] else [],
        remarks="\n".join(remarks(report)),
        faults=len(report["faults"]),
        examples=examples,
    )

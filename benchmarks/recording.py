"""What all benchmarks share: a table on the console, and a JSON file that says where and when it was measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from glmtune.files import write_json
from glmtune.runtime import machine

RESULTS = Path(__file__).parent / "results"


def record(name: str, settings: dict[str, Any], rows: Sequence[dict[str, Any]], **summary: Any) -> None:
    """Print the rows as a table and write `results/NAME.json`.

    Args:
        name: of the benchmark.
        settings: what was run.
        rows: measurements, all with the same keys.
        summary: ratios and other figures drawn from the rows.
    """
    where = machine()
    table = Table(title=name, caption=f"{where['processor']}, {where['cores']} cores, GPU: {where['gpu']}")
    for key in rows[0]:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console = Console()
    console.print(table)
    for key, value in summary.items():
        if not isinstance(value, list):  # the points of a curve
            console.print(f"{key}: {value}")
    write_json(RESULTS / f"{name}.json", {"settings": settings, "rows": list(rows), **summary, "machine": where})


def options(description: str | None, **defaults: int | str) -> argparse.Namespace:
    """Options of a benchmark with their defaults: numbers, or texts."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    return parser.parse_args()

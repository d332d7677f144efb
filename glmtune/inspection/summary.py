"""A report as lines and rows, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from glmtune.records import SHOWN
from glmtune.terminal import visible

PARTS = ("prompt", "target", "whole")
LENGTHS = ("min", "median", "p95", "max", "mean")


def count_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what can be counted."""
    tokens, splits = report["tokens"], report["splits"]
    formats = ", ".join(f"{name} ({count:,})" for name, count in report["formats"].items())
    near = report["near_duplicates"]
    limit = f" (the limit is {tokens['limit']:,})" if tokens["limit"] else ""
    return [
        ("files", ", ".join(report["files"])),
        ("format", formats or "none is recognised"),
        ("records", f"{report['records']:,}"),
        ("faults", f"{len(report['faults']):,}"),
        ("to learn / held out", f"{splits['train']:,} / {splits['held_out']:,}"),
        ("duplicates", f"{report['duplicates']:,}"),
        ("near duplicates", "not looked for (data.deduplicate=near)" if near is None else f"{near:,}"),
        ("tokens by", report["model"]),
        ("longer than the model takes", f"{tokens['too_long']:,}{limit}"),
    ]


def length_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return a head and a row for each part of the records: how many tokens it has."""
    tokens = report["tokens"]
    return [["tokens", *LENGTHS], *([part, *(f"{tokens[part][name]:,}" for name in LENGTHS)] for part in PARTS)]


def remarks(report: dict[str, Any]) -> Iterator[str]:
    """Faults, repetitions, long records and notes, the first of each, one a line."""
    lines = [f"{where(fault)}: {fault['message']}" for fault in report["faults"]]
    yield from first_lines("Faults", lines)
    for kind in ("duplicate", "near_duplicate"):
        pairs = report[f"{kind}_places"]
        title = kind.replace("_", " ").capitalize() + "s"
        yield from first_lines(title, [f"{where(p)} repeats {p['first_file']}, line {p['first_line']}" for p in pairs])
    rule = report["tokens"]["too_long_rule"]
    title = f"Too long (data.too_long={rule}{': a training stops; drop or truncate them' if rule == 'stop' else ''})"
    yield from first_lines(title, [where(p) for p in report["tokens"]["too_long_places"]])
    yield from first_lines("Notes", report["notes"])


def first_lines(title: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield a title, the first lines, and how many more there are."""
    if lines:
        yield f"{title}:"
        yield from (f"  {mark_breaks(line).rstrip()}" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            yield f"  ... and {len(lines) - SHOWN:,} more; all of them are in the report (--output)."


def where(place: dict[str, Any]) -> str:
    """Return the file and line of a fault or a record."""
    return place["file"] if place["line"] is None else f"{place['file']}, line {place['line']}"


def mark_breaks(text: str) -> str:
    """Return a text with line breaks, and characters that are hidden, to be seen."""
    return visible(text).replace("\n", "↵\n")

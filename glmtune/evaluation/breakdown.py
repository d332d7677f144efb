"""Scores by groups of examples: along the axes that a task declares, and along every other fact of its examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

from glmtune.examples import Example
from glmtune.intervals import wilson_interval
from glmtune.scoring import Score
from glmtune.tasks import Axis

MOST_GROUPS = 50  # a fact with more values is no class but a name, such as a record's id
MOST_ROWS = 14  # more groups than that cannot be read at a glance

Report = dict[str, Any]
AxisRow = dict[str, Any]  # an axis as a report holds it: name, title, labels, across


def break_down(axes: Sequence[Axis], examples: Sequence[Example], scores: Sequence[Score]) -> dict[str, Any]:
    """Return the parts `axes` and `by` of a report.

    `axes` has those that examples can be divided along: the declared ones, then every other fact that is a text or an
    integer, unless it takes more than `MOST_GROUPS` values. `by` has axis -> group -> share of right answers, and for
    an axis across another `operator,kind` -> `+ integer` -> share. Examples without the fact are left out.
    """
    every = {axis.name: axis for axis in [*axes, *undeclared(axes, examples)]}
    groups = {name: [axis.group_of(example.facts) for example in examples] for name, axis in every.items()}
    orders = {name: sort_groups(filter(None, groups[name]), axis.labels) for name, axis in every.items()}
    by = {}
    for name, axis in every.items():
        by[name] = shares(groups[name], scores, orders[name])
        if axis.across is not None:
            pairs = zip(groups[name], groups[axis.across], strict=True)
            crossed = [f"{row} {column}" if row and column else None for row, column in pairs]
            by[crossing(name, axis.across)] = shares(
                crossed, scores, map(" ".join, product(orders[name], orders[axis.across]))
            )
    rows = [
        {"name": name, "title": axis.title or name, "labels": dict(axis.labels), "across": axis.across}
        for name, axis in every.items()
        if by[name]
    ]
    return {"axes": rows, "by": {name: parts for name, parts in by.items() if parts}}


def undeclared(axes: Sequence[Axis], examples: Sequence[Example]) -> list[Axis]:
    """Return an axis for each further fact of the examples that divides them into classes."""
    values: dict[str, set[str]] = {}
    for example in examples:
        for name, value in example.facts.items():
            if isinstance(value, str | int):
                values.setdefault(name, set()).add(str(value))
    known = {axis.name for axis in axes}
    return [Axis(name) for name, found in values.items() if name not in known and len(found) <= MOST_GROUPS]


def crossing(name: str, across: str) -> str:
    """Return the key of a breakdown along two axes: `operator,kind`."""
    return f"{name},{across}"


def shares(groups: Sequence[str | None], scores: Sequence[Score], order: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the share of each group that has examples, in an order."""
    members: dict[str | None, list[Score]] = {}
    for group, score in zip(groups, scores, strict=True):
        members.setdefault(group, []).append(score)
    return {group: share_of(members[group]) for group in order if group in members}


def share_of(scores: Sequence[Score]) -> dict[str, Any]:
    """Return `n`, the share of right answers and its interval."""
    right = sum(score.correct for score in scores)
    share = right / len(scores) if scores else 0.0
    return {"n": len(scores), "accuracy": share, "accuracy_ci95": list(wilson_interval(right, len(scores)))}


def sort_groups(groups: Iterable[str], labels: Iterable[str] = ()) -> list[str]:
    """Return the groups that occur: those with labels first, as these are ordered, then numbers, then all else."""
    places = {group: place for place, group in enumerate(labels)}
    return sorted(set(groups), key=lambda group: (places.get(group, len(places)), natural_key(group)))


def natural_key(group: str) -> list[tuple[int, int, str]]:
    """Return a sorting key: numbers as numbers, all else by the alphabet."""
    numbers = re.compile(r"(-?[0-9]{1,18})")
    pieces = [piece for piece in numbers.split(group) if piece]
    return [(0, int(piece), "") if numbers.fullmatch(piece) else (1, 0, piece) for piece in pieces]


# What is shown of reports.


def axes_of(reports: Iterable[Report | None]) -> list[AxisRow]:
    """Return the axes of some reports, each once."""
    return list({axis["name"]: axis for report in reports if report for axis in report["axes"]}.values())


def groups_of(reports: Iterable[Report | None], axis: AxisRow) -> list[str]:
    """Return all groups along an axis that occur in some reports, in order."""
    return sort_groups(
        (group for report in reports if report for group in report["by"].get(axis["name"], {})), axis["labels"]
    )


def choose_axis(
    reports: Sequence[Report | None], fits: Callable[[AxisRow, str], bool] = lambda axis, group: True
) -> AxisRow | None:
    """Return the first axis of two groups or more that can be read at a glance, and of which every group fits."""
    for axis in axes_of(reports):
        groups = groups_of(reports, axis)
        if 2 <= len(groups) <= MOST_ROWS and all(fits(axis, group) for group in groups):
            return axis
    return None


def across_of(reports: Sequence[Report | None], axis: AxisRow | None) -> AxisRow | None:
    """Return the axis across another one, where it tells some examples from others."""
    across = next((other for other in axes_of(reports) if axis and other["name"] == axis["across"]), None)
    return across if across and len(groups_of(reports, across)) > 1 else None


def label_of(axis: AxisRow, group: str) -> str:
    """Return what people read of a group."""
    return str(axis["labels"].get(group, group))


def short_label_of(axis: AxisRow, group: str) -> str:
    """Return what people read of a group where there is little room: the first word."""
    return label_of(axis, group).partition(" ")[0]


def part_of(report: Report, *places: tuple[AxisRow, str]) -> dict[str, Any] | None:
    """Return the share of a group along one axis, or along one across another; None where there are no examples.

    Without a place it is that of all examples.
    """
    if not places:
        return report
    key = ",".join(axis["name"] for axis, _ in places)
    return report["by"].get(key, {}).get(" ".join(group for _, group in places))

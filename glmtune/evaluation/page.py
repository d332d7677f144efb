"""`report.html`: one page that tells a person who has read nothing else whether to keep the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from glmtune import registry
from glmtune.config import OPEN_SECTIONS
from glmtune.evaluation.breakdown import Report, across_of, axes_of, choose_axis, groups_of, label_of, part_of
from glmtune.evaluation.decision import decide, knowledge, prompt_of
from glmtune.evaluation.held_out import explain_during
from glmtune.evaluation.plots import (
    BETTER,
    LOSS_UNIT,
    REWARD,
    Log,
    held_out_chart,
    judged,
    loss_chart,
    preference_chart,
    reward_chart,
    series,
)
from glmtune.evaluation.report import explain_cut_off
from glmtune.files import write_text
from glmtune.reporting.charts import PAGE, to_svg
from glmtune.reporting.numbers import duration, percent
from glmtune.reporting.page import render_page
from glmtune.training.resumption import Change

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("report.html")
JUDGED = Path(__file__).with_name("judged.html")
TEXT_METRICS = {"rouge-1": "rouge-1", "rouge-2": "rouge-2", "rouge-l": "rouge-L", "bleu-4": "BLEU-4"}

PASS = "pass_at_"
Facts = list[tuple[str, Any]]  # name and value, None for one that is not known
Row = tuple[str, dict[str, Any] | None, dict[str, Any] | None]  # label, share before, share after


def write_page(report: dict[str, Any], log: Log, recipe_yaml: str, folder: Path | str) -> Path:
    """Write `report.html`.

    Args:
        report: what `report.json` holds; parts that it lacks are left out of the page.
        log: records of `log.jsonl`, or none.
        recipe_yaml: the recipe's text.
        folder: the run folder.

    Raises:
        UserError: the page cannot be written.
    """
    path = Path(folder) / "report.html"
    write_text(path, page(report, log, recipe_yaml, Path(folder).name))
    return path


def page(report: dict[str, Any], log: Log, recipe_yaml: str, name: str) -> str:
    """Return the page's text; `name` is the run's."""
    which, words, rest = decide(report)
    parts = {"before": None, "changed": None, "forgetting": None, "failure_groups": None}
    return render_page(
        TEMPLATE,
        f"{name}: {words}",
        name=name,
        which=which,
        words=words,
        rest=rest,
        report=parts | report,
        done=describe_run(report, yaml.safe_load(recipe_yaml) or {}),
        rows=result_rows(report),
        cut_off=list(cut_off_lines(report)),
        text_metrics=text_rows(report.get("before"), report["after"]),
        curves=list(draw_curves(log, report)),
        during=explain_during(**report["asked"]) if "asked" in report else None,
        heat_maps=heat_maps(report.get("before"), report["after"]),
        costs=describe_costs(report, log),
        recipe_yaml=recipe_yaml,
        prompt_of=prompt_of,
    )


def write_judged_page(report: dict[str, Any], log: Log, recipe_yaml: str, folder: Path | str) -> Path:
    """Write `report.html` of a run whose objective asks nothing; arguments and errors are those of `write_page`."""
    path, metric = Path(folder) / "report.html", report["metric"]
    title = metric.replace("_", " ").capitalize()
    figures = [write_figure(report[time], metric) for time in ("before", "after")]
    text = render_page(
        JUDGED,
        f"{Path(folder).name}: {title} {figures[1]}",
        name=Path(folder).name,
        metric=title,
        done=describe_run(report, yaml.safe_load(recipe_yaml) or {}),
        rows=[["", "before", "after"], [title, *figures]],
        known=knowledge(report.get("forgetting")),
        report={"forgetting": None} | report,
        prompt_of=prompt_of,
        curves=list(draw_curves(log, report)),
        costs=describe_costs(report, log),
        recipe_yaml=recipe_yaml,
    )
    write_text(path, text)
    return path


def describe_run(report: dict[str, Any], recipe: dict[str, Any]) -> Facts:
    """Return what was learned, from what, and how."""
    task, model, method, objective = (recipe.get(part, {}) for part in ("task", "model", "method", "objective"))
    training, examples = recipe.get("training", {}), None
    per_step = training.get("batch_size", 1) * training.get("gradient_accumulation_steps", 1)
    if training.get("steps"):
        examples = f"{training['steps'] * per_step:,} in {training['steps']:,} steps of {per_step}"
    return [
        ("Base model", model.get("path")),
        ("Goes on from", model.get("adapter")),
        ("Task", task.get("name")),
        ("Data", list_settings(unusual("task", task)) or ("as by default" if task else None)),
        ("Examples learned", examples),
        ("Judged on", f"{report['after']['n']:,} examples that were never learned"),
        ("Method", named("method", method)),
        ("Objective", named("objective", objective)),
        ("Learning rate", training.get("learning_rate")),
        *describe_probe(report.get("probe")),
        ("Changed on the way", "; ".join(str(Change(**change)) for change in report.get("changes", ())) or None),
    ]


def describe_probe(probe: dict[str, Any] | None) -> Facts:
    """Return what several answers to each of some held-out prompts were worth, before and after."""
    if not probe:
        return []
    after, known = probe["after"], [figures for figures in (probe["before"], probe["after"]) if figures]
    shares = {name: [percent(figures[name], 1) for figures in known] for name in after if name.startswith(PASS)}
    asked = f" (of {int(after['prompts'])} held-out prompts)" if "prompts" in after else ""
    return [(f"pass@{name.removeprefix(PASS)} before, after", ", ".join(shares[name]) + asked) for name in shares]


def named(section: str, group: dict[str, Any]) -> str | None:
    """Return the name of a section's entry, with the settings that matter; None where the recipe has none."""
    return ", ".join(filter(None, [group.get("name"), list_settings(unusual(section, group))])) or None


def unusual(section: str, group: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a section that are others than by default; all of what is the user's own code."""
    name = str(group.get("name", ""))
    package = OPEN_SECTIONS[section]
    if name not in registry.names(package):
        return group
    usual = registry.find(package, name).Settings.model_construct(name=name).model_dump(mode="json")
    return {setting: value for setting, value in group.items() if setting not in usual or value != usual[setting]}


def list_settings(group: dict[str, Any]) -> str:
    """Return the settings of a group but its name, on one line."""
    chosen = {name: value for name, value in group.items() if name != "name" and value is not None}
    return ", ".join(f"{name} {compact(value)}" for name, value in chosen.items())


def compact(value: Any) -> str:
    """Return a setting on one line."""
    if isinstance(value, dict):
        return " ".join(f"{name}:{compact(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "/".join(map(compact, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def result_rows(report: dict[str, Any]) -> list[Row]:
    """Return the shares of all examples, and of the groups along the first axis that parts them into a few."""
    reports = before, after = report.get("before"), report["after"]
    rows: list[Row] = [("all", before, after)]
    if axis := choose_axis(reports):
        for group in groups_of(reports, axis):
            place = axis, group
            rows.append((label_of(*place), part_of(before, place) if before else None, part_of(after, place)))
    return rows


def cut_off_lines(report: dict[str, Any]) -> Iterable[str]:
    """Yield what is said of answers that were cut off, before and after."""
    for when in ("before", "after"):
        part = report.get(when)
        if part and (said := explain_cut_off(part)):
            yield f"{when.capitalize()} training, {said}."


def text_rows(before: dict[str, Any] | None, after: dict[str, Any]) -> list[list[str]]:
    """Return a head and the rows of rouge and BLEU-4; nothing where they were not computed."""
    if "bleu-4" not in after:
        return []
    reports = {"before": before, "after": after} if before else {"after": after}
    rows = [[title, *(f"{one[name]:.1f}" for one in reports.values())] for name, title in TEXT_METRICS.items()]
    return [["", *reports], *rows]


def write_figure(part: dict[str, Any], metric: str) -> str:
    """Return a held-out figure as a person reads it; a share has its interval."""
    if f"{metric}_ci95" not in part:
        return f"{part[metric]:.4f}"
    low, high = part[f"{metric}_ci95"]
    return f"{percent(part[metric], 1)} (95% interval {low:.1%} to {high:.1%})"


def draw_curves(log: Log, report: Report) -> Iterable[tuple[str, Markup]]:
    """Yield heading and chart of the courses of loss, rewards and held-out figures, as far as they were logged."""
    losses, unit = [record["loss"] for record in log if "loss" in record], report.get("loss_unit", LOSS_UNIT)
    if rewards := series(log, REWARD):  # a loss of chances and rewards says nothing to a person
        told = f"{course(rewards, '.3g')}."
        yield "Rewards of the answers", to_svg(reward_chart(log, PAGE), "Mean reward over the steps", told)
    elif losses:
        told = f"Over {log_steps(log):,} steps; the last one logged is {losses[-1]:.3g}."
        yield f"Loss ({unit}; lower is better)", to_svg(loss_chart(log, unit, PAGE), "Loss over the steps", told)
    if margins := series(log, "reward_margin") or series(log, BETTER):
        title = "Rewards of better and worse answers"
        yield title, to_svg(preference_chart(log, PAGE), f"{title} over the steps", f"{course(margins, '.3g')}.")
    metrics = dict.fromkeys(("accuracy", report.get("metric", "accuracy"), "preference_accuracy"))
    for metric in metrics:
        if figures := series(judged(log, metric), metric):
            name = metric.replace("_", " ")
            title = "Held-out examples answered rightly" if metric == "accuracy" else f"{name.capitalize()}, held-out"
            chart = held_out_chart(log, metric, title, PAGE)
            yield title, to_svg(chart, f"Held-out {name} over the steps", f"{course(figures, '.4f')}.")


def course(points: Sequence[tuple[float, float]], form: str) -> str:
    """Return how a figure went, for those who do not see the chart."""
    (first, before), (last, after) = points[0], points[-1]
    return f"From {before:{form}} at step {first:,} to {after:{form}} at step {last:,}"


def log_steps(log: Log) -> int:
    """Return the last step of a log; 0 for an empty one."""
    return max((record["step"] for record in log), default=0)


def heat_maps(before: Report | None, after: Report) -> list[dict[str, Any]]:
    """Return a table for each axis, but the first, that has another one across: its titles, columns and rows.

    A cell is the share (before, after) of a group of both axes, None where there is none.
    """
    reports, tables = [report for report in (before, after) if report], []
    for axis in axes_of([after])[1:]:
        rows, across = groups_of([after], axis), across_of([after], axis)
        if across is None or len(rows) < 2:
            continue
        columns = groups_of([after], across)
        cells = {
            row: [[part_of(report, (axis, row), (across, column)) for report in reports] for column in columns]
            for row in rows
        }
        tables.append(
            {
                "name": axis["name"],
                "down": axis["title"],
                "across": across["title"],
                "columns": [label_of(across, column) for column in columns],
                "cells": [(label_of(axis, row), cells[row]) for row in rows],
            }
        )
    return tables


def describe_costs(report: dict[str, Any], log: Log) -> Facts:
    """Return time, memory and the machine."""
    machine, seconds, peak = report.get("machine", {}), report.get("training_seconds"), report.get("peak_memory")
    steps = log_steps(log)
    versions = [f"{name} {version}" for name, version in machine.get("versions", {}).items()]
    return [
        ("Training", None if seconds is None else duration(seconds)),
        ("A step", f"{seconds / steps:.3g} s, evaluations included" if seconds and steps else None),
        ("Peak of memory", f"{peak / 2**30:.2f} GiB" if peak else None),
        ("Processor", machine.get("processor")),
        ("Cores", machine.get("cores")),
        ("Memory", f"{machine['memory_gib']} GiB" if "memory_gib" in machine else None),
        ("GPU", machine.get("gpu")),
        ("Versions", ", ".join(versions) or None),
        ("Date", machine.get("date")),
    ]

"""Scores to a report: overall, broken down along the axes of the task, with samples; and console tables of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, product
from statistics import fmean
from typing import Any, get_args

from rich import box
from rich.table import Table
from rich.text import Text

from glmtune.evaluation.breakdown import (
    AxisRow,
    Report,
    across_of,
    break_down,
    choose_axis,
    groups_of,
    part_of,
    share_of,
    sort_groups,
)
from glmtune.evaluation.metrics import bleu4, rouge
from glmtune.examples import Example
from glmtune.inference.completion import FinishReason
from glmtune.messages import Prompt
from glmtune.records.leaks import plain_text
from glmtune.reporting.numbers import percent
from glmtune.scoring import Score, Verdict
from glmtune.tasks import Axis
from glmtune.terminal import counted, visible

SHOWN = 20  # samples and failures in a report
Place = tuple[AxisRow, str]  # an axis and a group along it


def summarize(
    examples: Sequence[Example],
    completions: Sequence[str],
    scores: Sequence[Score],
    axes: Sequence[Axis] = (),
    text_metrics: bool = True,
) -> dict[str, Any]:
    """Return the report of one evaluation, ready for JSON.

    Args:
        examples: what was asked.
        completions: what the model wrote, one for each example.
        scores: what the task thinks of it, one for each example.
        axes: along which the scores are broken down.
        text_metrics: compute rouge and BLEU-4 too (about a millisecond for each short answer).

    Returns:
        `n`, `accuracy` (share of right values, 0 to 1) with `accuracy_ci95` [low, high], `verdicts` (counts), `metrics`
        (means of what else the scores measure), `faults` (counts of workings by what is first wrong with them, if any
        is), `axes` and `by` of `break_down`, `rouge-1`, `rouge-2`, `rouge-l` and `bleu-4` (0 to 100), the first
        `samples` and the first `failures`.

    Raises:
        ValueError: the three lists differ in length.
    """
    if not len(examples) == len(completions) == len(scores):
        raise ValueError(f"{len(examples)} examples, {len(completions)} completions, {len(scores)} scores: not as many")
    answered = list(zip(examples, completions, scores, strict=True))
    verdicts = dict.fromkeys(get_args(Verdict), 0)
    for score in scores:
        verdicts[score.verdict] += 1
    report: dict[str, Any] = {"format": 2, **share_of(scores), "verdicts": verdicts, "metrics": mean_metrics(scores)}
    if faults := Counter(score.fault.kind for score in scores if score.fault is not None):
        report["faults"] = dict(faults.most_common())
    report |= break_down(axes, examples, scores)
    if text_metrics:
        targets = [example.target for example in examples]
        report |= {**rouge(completions, targets), "bleu-4": bleu4(completions, targets)}
    report["samples"] = [_sample(*one) for one in answered[:SHOWN]]
    report["failures"] = [_sample(*one) for one in answered if not one[2].correct][:SHOWN]
    return report


def mean_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Return the mean of each metric, over the scores that have it."""
    values: dict[str, list[float]] = {}
    for name, value in chain.from_iterable(score.metrics.items() for score in scores):
        values.setdefault(name, []).append(value)
    return {name: fmean(measured) for name, measured in values.items()}


def count_finish_reasons(reasons: Sequence[FinishReason]) -> dict[str, int]:
    """Return how many answers ended by themselves (`stop`), were cut off (`length`) or ended with `tool_calls`."""
    return {reason: reasons.count(reason) for reason in get_args(FinishReason)}


def explain_cut_off(report: Report) -> str:
    """Return what is said, with the remedy, where answers were cut off; else nothing."""
    cut = report.get("finish_reasons", {}).get("length", 0)
    share = f"{cut:,} of {counted(report['n'], 'answer')} {'was' if cut == 1 else 'were'} cut off"
    return f"{share}; where they should go on, set generation.max_new_tokens higher" if cut else ""


def comparison_table(before: Report | None, after: Report) -> Table:
    """Return a table of right answers before and after: a row for each group, columns for those of the axis across.

    Without an axis that tells examples apart there is one row, `all`; without one across it, one group of columns.

    Args:
        before: a report of `summarize`, or None where there is nothing to compare with.
        after: another.
    """
    reports = (before, after)
    axis = choose_axis(reports)
    across = across_of(reports, axis)
    rows = [*places_along(reports, axis), None]
    columns = [*places_along(reports, across), None]
    metrics = "".join(f"; {name} {percent(value, 1)}" for name, value in after["metrics"].items())
    faults = ", ".join(f"{kind} {count:,}" for kind, count in after.get("faults", {}).items())
    low, high = after["accuracy_ci95"]
    shares = f"all: {percent(after['accuracy'], 1)} right, 95% interval {low:.1%} to {high:.1%}{metrics}"
    table = Table(
        title="Right answers",
        caption="\n".join(
            filter(None, (shares, faults and f"first wrong in the working: {faults}", explain_cut_off(after)))
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("")
    for column in columns:
        table.add_column("\nn", justify="right", style="dim")
        times = ["right"] if before is None else ["before", "after"]
        for when, heading in zip(times, [_group(column), ""], strict=False):
            table.add_column(f"{heading}\n{when}", justify="right", style="" if when == "before" else "bold")
    for row in rows:
        if row is None:
            table.add_section()
        cells = [Text(_group(row))]
        for column in columns:
            places = [place for place in (row, column) if place is not None]
            cells += _cells([part_of(report, *places) for report in reports if report is not None])
        table.add_row(*cells)
    return table


def general_table(general: Report) -> Table:
    """Return a table of what a model knows of the general questions: its parts, and of each its languages and groups.

    Args:
        general: a report of `Probe`.
    """
    table = Table(title="General questions", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for name in ("n", "right", "by guessing"):
        table.add_column(name, justify="right")
    for name, part in general["parts"].items():
        share = percent(part["accuracy"], 1)
        table.add_row(Text(_one_line(name)), str(part["n"]), share, percent(part["guessed"], 1), style="bold")
        for group, found in general["by"].get(name, {}).items():
            table.add_row(Text(f"  {_one_line(group)}"), str(found["n"]), percent(found["accuracy"], 1), "")
    return table


def sampled_table(report: Report) -> Table:
    """Return a table of one answer to each example beside a choice among several samples.

    Args:
        report: of an evaluation; its `sampled` is what `compare_samples` returns.
    """
    found = report["sampled"]
    k: int = found["num_samples"]
    low, high = found["accuracy_ci95"]
    table = Table(
        title=f"{k} samples of each answer",
        caption=f"{found['choose']} against one answer: {found['change']['statement']}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("")
    for name in ("right", "95% interval", "tokens"):
        table.add_column(name, justify="right")
    once_low, once_high = report["accuracy_ci95"]
    tokens_once, tokens = (f"{found[name]:,.0f}" for name in ("tokens_once", "tokens"))
    once = percent(found["accuracy_once"], 1)
    table.add_row("one answer, as above", once, f"{once_low:.1%} to {once_high:.1%}", tokens_once)
    table.add_row("one sample, in the mean", percent(found["accuracy_sampled"], 1), "", f"{found['tokens'] / k:,.0f}")
    table.add_row(
        f"of {k}: {found['choose']}", percent(found["accuracy"], 1), f"{low:.1%} to {high:.1%}", tokens, style="bold"
    )
    table.add_row(f"of {k}: one or more is right", percent(found["pass_at_k"], 1), "", tokens, style="dim")
    return table


def places_along(reports: Sequence[Report | None], axis: AxisRow | None) -> list[Place]:
    """Return the groups along an axis, each with the axis."""
    return [(axis, group) for group in groups_of(reports, axis)] if axis else []


def sample_table(
    examples: Sequence[Example],
    before: Sequence[str] | None,
    after: Sequence[str],
    before_scores: Sequence[Score] | None,
    after_scores: Sequence[Score],
    right: Sequence[str] | None = None,
    rows: int = 8,
    axes: Sequence[Axis] = (),
) -> Table:
    """Some problems with the right answer and the model's, marked ✓ or ✗; every group of the first axes takes part.

    They are chosen by their groups alone, never by how the model did.

    Args:
        examples: what was asked.
        before, after: what the model wrote before and after training; `before` may be None.
        before_scores, after_scores: what the task thinks of it; shown is the answer that it read, where it read one.
        right: the right answers as a person would write them; default: the targets.
        rows: how many problems.
        axes: of the task.
    """
    table = Table(title="Some of the answers", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("problem", "right answer", *(() if before is None else ("before",)), "after"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=32)
    for index in representative(examples, rows, axes):
        prompt, target = examples[index].prompt, examples[index].target
        cells = [Text(_one_line(plain_text(prompt))), Text(_short(target if right is None else right[index], prompt))]
        if before is not None and before_scores is not None:
            cells.append(_marked(before[index], before_scores[index], prompt))
        table.add_row(*cells, _marked(after[index], after_scores[index], prompt))
    return table


def representative(examples: Sequence[Example], count: int, axes: Sequence[Axis] = ()) -> list[int]:
    """Return indices of `count` examples in which every group occurs, if `count` allows, in the order of the groups.

    The groups are those along the first axis and the one across it.
    """
    chosen = [axis for axis in axes if axis.name in (axes[0].name, axes[0].across)]
    members: dict[tuple[str, ...], list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault(tuple(axis.group_of(example.facts) or "" for axis in chosen), []).append(index)
    orders = [sort_groups((cell[place] for cell in members), axis.labels) for place, axis in enumerate(chosen)]
    cells = [cell for cell in product(*orders) if cell in members]
    seen: set[str] = set()
    first = []  # cells that bring a new group take the first turn
    for cell in cells:
        if not seen.issuperset(cell):
            seen.update(cell)
            first.append(cell)
    turns = [*first, *(cell for cell in cells if cell not in first)]
    longest = max(map(len, members.values()), default=0)
    queue = [(cell, members[cell][turn]) for turn in range(longest) for cell in turns if turn < len(members[cell])]
    return [index for _, index in sorted(queue[:count], key=lambda pick: (cells.index(pick[0]), pick[1]))]


def _sample(example: Example, completion: str, score: Score) -> dict[str, Any]:
    return {
        "prompt": example.prompt,
        "target": example.target,
        "completion": completion,
        "answer": score.answer,
        "verdict": score.verdict,
        **({"tools": list(example.tools)} if example.tools else {}),
        **({"fault": str(score.fault)} if score.fault is not None else {}),
    }


def _group(place: Place | None) -> str:
    return "all" if place is None else place[1]


def _cells(parts: Sequence[dict[str, Any] | None]) -> list[Text]:
    """Number of examples and percentages of one cell; both numbers where they differ."""
    numbers = dict.fromkeys(str(part["n"]) for part in parts if part)
    return [Text(" / ".join(numbers) or "–"), *(Text(percent(part["accuracy"], 1) if part else "–") for part in parts)]


def _one_line(text: str) -> str:
    """A text fit for a table cell; a model may write line breaks and control characters, too."""
    return visible(text.strip().replace("\n", " ").replace("\t", " ")) or "(nothing)"


def _short(text: str, prompt: Prompt) -> str:
    """A text on one line, without the problem that it repeats: `1+2=3` -> `3`."""
    text, problem = text.strip(), plain_text(prompt).strip().rstrip("=")
    rest = text.removeprefix(problem).lstrip("= ") if problem and text.startswith(problem) else text
    return _one_line(rest or text)


def _marked(completion: str, score: Score, prompt: Prompt) -> Text:
    """✓ or ✗ and the answer; the whole text where no answer could be read."""
    style, mark = ("green", "✓") if score.correct else ("red", "✗")
    return Text.assemble((f"{mark} ", style), _short(completion if score.answer is None else score.answer, prompt))

"""Scores to a report: overall, broken down by every fact about the examples, with samples; and console tables of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean
from typing import Any, get_args

from rich import box
from rich.table import Table
from rich.text import Text

from glmtune.evaluation.intervals import wilson_interval
from glmtune.evaluation.metrics import bleu4, rouge
from glmtune.examples import Example
from glmtune.messages import Prompt
from glmtune.records.leaks import plain_text
from glmtune.scoring import Score, Verdict

SHOWN = 20  # samples and failures in a report
MOST_VALUES = 50  # a fact with more values is no class but a name, such as a record's id
_ORDER = ("+", "-", "*", "/", "mixed", "integer", "decimal")


def summarize(
    examples: Sequence[Example], completions: Sequence[str], scores: Sequence[Score], text_metrics: bool = True
) -> dict[str, Any]:
    """The report of one evaluation, ready for JSON.

    Args:
        examples: what was asked.
        completions: what the model wrote, one for each example.
        scores: what the task thinks of it, one for each example.
        text_metrics: compute rouge and BLEU-4 too (about a millisecond for each short answer).

    Returns:
        `n`, `accuracy` (share of right values, 0 to 1) with `accuracy_ci95` [low, high], `verdicts` (counts),
        `by` (the same share for each value of each fact that is a text or an integer, unless it takes more than
        `MOST_VALUES` of them), the means of the scores' `metrics`, such as `faithful_calls`, `rouge-1`, `rouge-2`,
        `rouge-l`, `bleu-4` (0 to 100), the first `samples` and the first `failures`.

    Raises:
        ValueError: the three lists differ in length.
    """
    if not len(examples) == len(completions) == len(scores):
        raise ValueError(f"{len(examples)} examples, {len(completions)} completions, {len(scores)} scores: not as many")
    answered = list(zip(examples, completions, scores, strict=True))
    verdicts = dict.fromkeys(get_args(Verdict), 0)
    for score in scores:
        verdicts[score.verdict] += 1
    report: dict[str, Any] = {"format": 1, **_share(scores), "verdicts": verdicts, "by": _breakdown(examples, scores)}
    measured: dict[str, list[float]] = {}
    for name, value in chain.from_iterable(score.metrics.items() for score in scores):
        measured.setdefault(name, []).append(value)
    report |= {name: fmean(values) for name, values in measured.items()}
    if text_metrics:
        targets = [example.target for example in examples]
        report |= {**rouge(completions, targets), "bleu-4": bleu4(completions, targets)}
    report["samples"] = [_sample(*one) for one in answered[:SHOWN]]
    report["failures"] = [_sample(*one) for one in answered if not one[2].correct][:SHOWN]
    return report


def natural_key(label: str) -> tuple[tuple[int, int, str], ...]:
    """Sorting key of a fact's value: numbers as numbers, + - * / in this order, all else by the alphabet."""
    key = []
    for piece in label.split():
        if re.fullmatch(r"-?[0-9]{1,18}", piece):
            key.append((0, int(piece), ""))
        else:
            key.append((1, _ORDER.index(piece), "") if piece in _ORDER else (2, 0, piece))
    return tuple(key)


def labels_of(reports: Iterable[dict[str, Any] | None], fact: str) -> list[str]:
    """All values of a fact that occur in some reports, in natural order."""
    found = {label for report in reports if report for label in report["by"].get(fact, {})}
    return sorted(found, key=natural_key)


def comparison_table(before: dict[str, Any] | None, after: dict[str, Any]) -> Table:
    """Percentages of right answers before and after: a row for each operator, columns for each kind of operands.

    Examples without operators fill one row, `all`; without several kinds, one group of columns, `all`.

    Args:
        before: a report of `summarize`, or None where there is nothing to compare with.
        after: another.
    """
    operators = [*labels_of((before, after), "operator"), None]
    kinds = [*labels_of((before, after), "kind"), None]
    kinds = kinds if len(kinds) > 2 else [None]  # one kind is the same as all
    faithful = after.get("faithful_calls")
    calls = "" if faithful is None else f"; {faithful:.1%} called the tool with what was asked"
    low, high = after["accuracy_ci95"]
    table = Table(
        title="Right answers",
        caption=f"all: {after['accuracy']:.1%} right, 95% interval {low:.1%} to {high:.1%}{calls}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("")
    for kind in kinds:
        table.add_column("\nn", justify="right", style="dim")
        times = ["right"] if before is None else ["before", "after"]
        for when, heading in zip(times, [_label(kind), ""], strict=False):
            table.add_column(f"{heading}\n{when}", justify="right", style="" if when == "before" else "bold")
    for operator in operators:
        if operator is None:
            table.add_section()
        cells = [Text(_label(operator))]
        for kind in kinds:
            cells += _cells([_part(report, operator, kind) for report in (before, after) if report is not None])
        table.add_row(*cells)
    return table


def sample_table(
    examples: Sequence[Example],
    before: Sequence[str] | None,
    after: Sequence[str],
    before_scores: Sequence[Score] | None,
    after_scores: Sequence[Score],
    right: Sequence[str] | None = None,
    rows: int = 8,
) -> Table:
    """Some problems with the right answer and the model's, marked ✓ or ✗; every operator and kind takes part.

    They are chosen by their operators and kinds alone, never by how the model did.

    Args:
        examples: what was asked.
        before, after: what the model wrote before and after training; `before` may be None.
        before_scores, after_scores: what the task thinks of it; shown is the answer that it read, where it read one.
        right: the right answers as a person would write them; default: the targets.
        rows: how many problems.
    """
    table = Table(title="Some of the answers", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("problem", "right answer", *(() if before is None else ("before",)), "after"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=32)
    for index in representative(examples, rows):
        prompt, target = examples[index].prompt, examples[index].target
        cells = [Text(_one_line(plain_text(prompt))), Text(_short(target if right is None else right[index], prompt))]
        if before is not None and before_scores is not None:
            cells.append(_marked(before[index], before_scores[index], prompt))
        table.add_row(*cells, _marked(after[index], after_scores[index], prompt))
    return table


def representative(examples: Sequence[Example], count: int) -> list[int]:
    """Indices of `count` examples in which every operator and kind occurs, if `count` allows, in natural order."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        label = f"{example.facts.get('operator', '')} {example.facts.get('kind', '')}"
        groups.setdefault(label, []).append(index)
    order = sorted(groups, key=natural_key)
    seen: set[str] = set()
    first = []  # groups that bring a new operator or kind take the first turn
    for label in order:
        if not seen.issuperset(label.split()):
            seen.update(label.split())
            first.append(label)
    turns = [*first, *(label for label in order if label not in first)]
    longest = max(map(len, groups.values()), default=0)
    queue = [(label, groups[label][turn]) for turn in range(longest) for label in turns if turn < len(groups[label])]
    return [index for _, index in sorted(queue[:count], key=lambda pick: (natural_key(pick[0]), pick[1]))]


def _share(scores: Sequence[Score]) -> dict[str, Any]:
    """`n`, the share of right ones and its interval."""
    right = sum(score.correct for score in scores)
    share = right / len(scores) if scores else 0.0
    return {"n": len(scores), "accuracy": share, "accuracy_ci95": list(wilson_interval(right, len(scores)))}


def _breakdown(examples: Sequence[Example], scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """fact -> value -> share, for every fact that is a text or an integer; examples without the fact are left out."""
    groups: dict[str, dict[str, list[Score]]] = {}
    for example, score in zip(examples, scores, strict=True):
        labels = {name: str(value) for name, value in example.facts.items() if isinstance(value, str | int)}
        if "operator" in labels and "kind" in labels:
            labels["operator,kind"] = f"{labels['operator']} {labels['kind']}"
        for name, label in labels.items():
            groups.setdefault(name, {}).setdefault(label, []).append(score)
    return {
        name: {label: _share(group[label]) for label in sorted(group, key=natural_key)}
        for name, group in groups.items()
        if len(group) <= MOST_VALUES
    }


def _sample(example: Example, completion: str, score: Score) -> dict[str, Any]:
    return {
        "prompt": example.prompt,
        "target": example.target,
        "completion": completion,
        "answer": score.answer,
        "verdict": score.verdict,
    }


def _label(value: str | None) -> str:
    return "all" if value is None else value


def _part(report: dict[str, Any], operator: str | None, kind: str | None) -> dict[str, Any] | None:
    """The share of one operator and kind in a report (None: all of them), or None where it has no such examples."""
    if operator is None and kind is None:
        return report
    name = ",".join(name for name, value in (("operator", operator), ("kind", kind)) if value is not None)
    label = " ".join(value for value in (operator, kind) if value is not None)
    return report["by"].get(name, {}).get(label)


def _cells(parts: Sequence[dict[str, Any] | None]) -> list[Text]:
    """Number of examples and percentages of one operator and kind; both numbers where they differ."""
    numbers = dict.fromkeys(str(part["n"]) for part in parts if part)
    return [Text(" / ".join(numbers) or "–"), *(Text(f"{part['accuracy']:.1%}" if part else "–") for part in parts)]


def _one_line(text: str) -> str:
    """A text fit for a table cell; a model may write line breaks and terminal codes, too."""
    return "".join(char if char.isprintable() else " " for char in text.strip()) or "(nothing)"


def _short(text: str, prompt: Prompt) -> str:
    """A text on one line, without the problem that it repeats: `1+2=3` -> `3`."""
    text, problem = text.strip(), plain_text(prompt).strip().rstrip("=")
    rest = text.removeprefix(problem).lstrip("= ") if problem and text.startswith(problem) else text
    return _one_line(rest or text)


def _marked(completion: str, score: Score, prompt: Prompt) -> Text:
    """✓ or ✗ and the answer; the whole text where no answer could be read."""
    style, mark = ("green", "✓") if score.correct else ("red", "✗")
    return Text.assemble((f"{mark} ", style), _short(completion if score.answer is None else score.answer, prompt))

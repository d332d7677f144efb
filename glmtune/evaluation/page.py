"""`report.html`: one page that tells a person who has read nothing else whether to keep the model.

It loads nothing, runs no script, and shows whatever users or models wrote as text, never as markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import yaml

from glmtune.evaluation.charts import Line, line_chart
from glmtune.evaluation.report import labels_of
from glmtune.runtime import replacing

Log = Sequence[dict[str, Any]]
Decision = tuple[Literal["keep", "discard", "open"], str, str]  # which, in two words, the rest of the sentence

STYLE = Path(__file__).with_name("page.css")
NAMES = {"+": "+ addition", "-": "− subtraction", "*": "× multiplication", "/": "÷ division"}
TEXT_METRICS = {"rouge-1": "rouge-1", "rouge-2": "rouge-2", "rouge-l": "rouge-L", "bleu-4": "BLEU-4"}
GOOD = 0.9  # share of right answers below which the page reminds of the wrong ones
MOST_ROWS = 14  # of a breakdown in the table
MOST_DIGITS = 8  # columns and rows of the heat map that can be told apart
NO_NETWORK = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


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
    with replacing(path) as temporary:
        temporary.write_text(page(report, log, recipe_yaml, Path(folder).name), encoding="utf-8")
    return path


def page(report: dict[str, Any], log: Log, recipe_yaml: str, name: str) -> str:
    """The page's text. `name` is the run's."""
    recipe = yaml.safe_load(recipe_yaml) or {}
    which, words, rest = decide(report)
    color = {"keep": "--good", "discard": "--bad", "open": "--open"}[which]
    sections = [
        _recipe_and_data(report, recipe),
        _results(report),
        _curves(log),
        _heat_map(report.get("operand_digits", [])),
        _changed(report.get("changed")),
        _failures(report),
        _forgetting(report.get("forgetting")),
        _costs(report, log),
        _section(
            "recipe", "Recipe", f"<details><summary>recipe.yaml</summary><pre>{escape(recipe_yaml)}</pre></details>"
        ),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{NO_NETWORK}">'
        f"<title>{escape(name)}: {escape(words)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f'<body><main><header style="--verdict:var({color})"><p class="verdict"><b>{escape(words)}:</b> {escape(rest)}'
        f"</p><p>{escape(name)}</p></header>\n{''.join(part for part in sections if part)}</main></body></html>\n"
    )


def decide(report: dict[str, Any]) -> Decision:
    """Whether to keep the model.

    Keep: it answers more of the held-out examples rightly than before, by more than chance, and did not forget other
    things. Do not keep: it answers fewer of them, by more than chance, or it forgot. Else it is not certain.
    """
    after, difference, forgetting = report["after"], report.get("difference"), report.get("forgetting")
    share = f"{after['accuracy']:.1%} of the held-out examples"
    if difference is None or report.get("before") is None:
        return "open", "Not certain", f"it answers {share} rightly; there is nothing to compare that with."
    before = report["before"]["accuracy"]
    low, high = difference["ci95"]
    course = f"it answers {share} rightly, {before:.1%} before training"
    interval = f"the change is {_points(low)} to {_points(high)} points"
    rest = f" It is still wrong in {1 - after['accuracy']:.0%} of them." if after["accuracy"] < GOOD else ""
    if difference["change"] == "worse":
        return "discard", "Do not keep", f"{course}; {interval} (95% interval), a loss beyond chance."
    if forgetting is not None and forgetting["level"] == "forgot":
        lost = f"{forgetting['after']['accuracy']:.0%} instead of {forgetting['before']['accuracy']:.0%}"
        return "discard", "Do not keep", f"{course}, but it forgot other things: {lost} of the general questions."
    if difference["change"] == "better":
        known = {
            "kept": "Its general knowledge was kept.",
            "slightly worse": "Its general knowledge got slightly worse.",
            "unknown": "Whether it forgot other things cannot be told.",
        }.get(forgetting["level"] if forgetting else "", "Whether it forgot other things was not measured.")
        return "keep", "Keep it", f"{course}; {interval} (95% interval), a gain beyond chance. {known}{rest}"
    advice = "Evaluate on more examples, or train longer."
    return "open", "Not certain", f"{course}; {interval} (95% interval), which may be chance. {advice}"


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{escape(title)}</h2>{content}</section>\n'


def _facts(pairs: Iterable[tuple[str, Any]]) -> str:
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs if value is not None)
    return f"<dl>{''.join(rows)}</dl>"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _share(part: dict[str, Any] | None) -> str:
    """A cell with a share and its interval."""
    if part is None:
        return "<td>–</td>"
    low, high = part["accuracy_ci95"]
    return f"<td>{part['accuracy']:.1%}<small>{100 * low:.1f} to {100 * high:.1f}</small></td>"


def _recipe_and_data(report: dict[str, Any], recipe: dict[str, Any]) -> str:
    """What was learned, from what, and how."""
    task, model, method = (recipe.get(part, {}) for part in ("task", "model", "method"))
    training, examples = recipe.get("training", {}), None
    per_step = training.get("batch_size", 1) * training.get("gradient_accumulation_steps", 1)
    if training.get("steps"):
        examples = f"{training['steps'] * per_step:,} in {training['steps']:,} steps of {per_step}"
    chosen = {name: value for name, value in task.items() if name != "name" and value is not None}
    held_out = f"{report['after']['n']:,} examples that were never learned"
    return _section(
        "run",
        "What was done",
        _facts(
            [
                ("Base model", model.get("path")),
                ("Task", task.get("name")),
                ("Data", ", ".join(f"{name} {_compact(value)}" for name, value in chosen.items()) or None),
                ("Examples learned", examples),
                ("Judged on", held_out),
                (
                    "Method",
                    ", ".join(
                        f"{value}" if name == "name" else f"{name} {_compact(value)}"
                        for name, value in method.items()
                        if value is not None
                    )
                    or None,
                ),
                ("Learning rate", training.get("learning_rate")),
            ]
        ),
    )


def _compact(value: Any) -> str:
    """A setting on one line."""
    if isinstance(value, dict):
        return " ".join(f"{name}:{_compact(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "/".join(map(_compact, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _results(report: dict[str, Any]) -> str:
    """The table of before and after, with intervals."""
    before, after = report.get("before"), report["after"]
    rows = [("all", before, after, ' class="all"')]
    for fact in ("operator", "kind", *after["by"]):
        labels = labels_of((before, after), fact)
        if 2 <= len(labels) <= MOST_ROWS:
            rows += [(NAMES.get(one, one), _of(before, fact, one), _of(after, fact, one), "") for one in labels]
            break
    times = ["after"] if before is None else ["before", "after"]
    head = "".join(f"<th>{time}</th>" for time in times)
    body = "".join(
        f"<tr{kind}><td>{escape(label)}</td><td>{(now or then or {}).get('n', 0):,}</td>"
        f"{'' if before is None else _share(then)}{_share(now)}</tr>"
        for label, then, now, kind in rows
    )
    content = (
        f'<div class="scroll"><table class="wide"><thead><tr><th></th><th>n</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    if "difference" in report:
        content += f'<p style="margin-top:12px">{escape(report["difference"]["statement"])}</p>'
    content += '<p class="note">Shares answered rightly. Small figures are 95% intervals.</p>'
    title = "Right answers" if before is None else "Before and after"
    return _section("results", title, content + _text_metrics(before, after))


def _of(report: dict[str, Any] | None, fact: str, label: str) -> dict[str, Any] | None:
    return report["by"].get(fact, {}).get(label) if report else None


def _text_metrics(before: dict[str, Any] | None, after: dict[str, Any]) -> str:
    """rouge and BLEU-4, if they were computed."""
    if "bleu-4" not in after:
        return ""
    rows = "".join(
        f"<tr><td>{title}</td>"
        f"{'' if before is None else '<td>' + format(before[name], '.1f') + '</td>'}<td>{after[name]:.1f}</td></tr>"
        for name, title in TEXT_METRICS.items()
    )
    head = "<th>before</th><th>after</th>" if before is not None else "<th>after</th>"
    return (
        "<details><summary>Likeness of the texts: rouge and BLEU-4</summary>"
        '<p class="note">0 to 100, as the official ChatGLM evaluation computes them, for comparison with published '
        "figures. They tell how alike texts look, not whether an answer is right.</p>"
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></details>"
    )


def _curves(log: Log) -> str:
    """The courses of loss and held-out accuracy."""
    training = _series([record for record in log if "accuracy" not in record], "loss")
    scores = {record["step"]: record for record in log if "accuracy" in record}
    held_out = _series(list(scores.values()), "loss")
    charts = []
    if training or held_out:
        lines = [Line("as it was", training, "--accent", faint=True)] if training else []
        lines += [Line("training, smoothed", _smooth(training), "--accent")] if training else []
        lines += [Line("held-out", held_out, "--second", marked=True)] if held_out else []
        chart = line_chart(lines, "Loss over the steps", "step", lambda value: f"{value:.3g}")
        charts.append(f"<figure><h3>Loss (nats a token; lower is better)</h3>{chart}</figure>")
    if scores:
        points = [(step, scores[step]["accuracy"]) for step in sorted(scores)]
        band = [(step, *scores[step]["accuracy_ci95"]) for step in sorted(scores) if "accuracy_ci95" in scores[step]]
        line = Line("exact match, with its 95% interval", points, "--accent", band, marked=True)
        chart = line_chart([line], "Exact match over the steps", "step", lambda value: f"{value:.0%}", (0.0, 1.0))
        charts.append(f"<figure><h3>Held-out examples answered rightly</h3>{chart}</figure>")
    return _section("curves", "While it learned", f'<div class="pair">{"".join(charts)}</div>') if charts else ""


def _series(records: Log, key: str) -> list[tuple[float, float]]:
    """(step, finite value) in the order of the steps; of a step that occurs twice, the last one."""
    found = {record["step"]: record[key] for record in records if key in record and math.isfinite(record[key])}
    return [(step, found[step]) for step in sorted(found)]


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over a tenth of all points, centred on each."""
    reach = len(points) // 20
    windows = [points[max(0, index - reach) : index + reach + 1] for index in range(len(points))]
    return [
        (step, math.fsum(value for _, value in window) / len(window))
        for (step, _), window in zip(points, windows, strict=True)
    ]


def _heat_map(cells: Sequence[dict[str, Any]]) -> str:
    """Shares by the digits of both operands."""
    cells = [cell for cell in cells if max(cell["left"], cell["right"]) <= MOST_DIGITS]
    if len(cells) < 2:
        return ""
    lefts, rights = (sorted({cell[side] for cell in cells}) for side in ("left", "right"))
    found = {(cell["left"], cell["right"]): cell for cell in cells}
    rows = ""
    for left in lefts:
        row = f'<th scope="row">{left}</th>'
        for right in rights:
            cell = found.get((left, right))
            if cell is None:
                row += '<td class="none"></td>'
            else:
                row += (
                    f'<td style="--share:{cell["after"]:.3f}">{cell["after"]:.0%}'
                    f"<small>was {cell['before']:.0%}</small><small>n {cell['n']}</small></td>"
                )
        rows += f"<tr>{row}</tr>"
    head = "".join(f'<th scope="col">{right}</th>' for right in rights)
    return _section(
        "digits",
        "By digits of the two numbers",
        '<p class="note">Share answered rightly after training. Down: digits of the first number; across: of the '
        "second. The stronger the colour, the better; a cell of few examples (n) says little.</p>"
        f'<div class="scroll"><table class="heat"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>",
    )


def _sample_list(samples: Sequence[dict[str, Any]], right: str, marks: tuple[str, str]) -> str:
    """Problems with the right answer and both of the model's; `marks` are classes of before and after."""
    items = ""
    for sample in samples:
        prompt = sample["prompt"] if isinstance(sample["prompt"], str) else str(sample["prompt"][-1].get("content", ""))
        pieces = [
            ("right", sample[right], ""),
            ("before", sample["before"], marks[0]),
            ("after", sample["after"], marks[1]),
        ]
        said = "".join(
            f'<span class="{mark}"><em>{name}</em>{escape(text.strip()) or "(nothing)"}</span>'
            for name, text, mark in pieces
        )
        items += f"<li><b>{escape(prompt)}</b>{said}</li>"
    return f'<ul class="samples">{items}</ul>'


def _changed(changed: dict[str, Any] | None) -> str:
    """Examples that got better, and worse."""
    if not changed or not (changed["better"] or changed["worse"]):
        return ""
    better = _sample_list(changed["better"], "right", ("no", "ok")) if changed["better"] else "<p>None.</p>"
    worse = _sample_list(changed["worse"], "right", ("ok", "no")) if changed["worse"] else "<p>None.</p>"
    return _section(
        "changed",
        "Examples that changed",
        f'<div class="pair"><div><h3>Got better</h3>{better}</div><div><h3>Got worse</h3>{worse}</div></div>',
    )


def _failures(report: dict[str, Any]) -> str:
    """What is still wrong, by what is wrong with it."""
    groups = report.get("failure_groups")
    if groups is None:
        return ""
    total = sum(group["n"] for group in groups)
    if not total:
        return _section(
            "failures", "What is still wrong", "<p>Nothing: every held-out example is answered rightly.</p>"
        )
    content = f"<p>{total:,} of {report['after']['n']:,} answers are wrong.</p>"
    for number, group in enumerate(groups):
        content += (
            f"<details{' open' if number == 0 else ''}><summary>{group['n']:,} ({group['n'] / total:.0%}): "
            f"{escape(group['group'])}</summary>{_sample_list(group['samples'], 'right', ('', 'no'))}</details>"
        )
    return _section("failures", "What is still wrong", content)


def _forgetting(forgetting: dict[str, Any] | None) -> str:
    """What became of general knowledge."""
    if forgetting is None:
        note = (
            "Not measured. With <code>evaluation.forgetting=true</code> both models answer general questions as well."
        )
        return _section("forgetting", "Forgetting", f'<p class="note">{note}</p>')
    before, after = forgetting["before"], forgetting["after"]
    rows = f'<tr class="all"><td>all</td><td>{after["n"]}</td>{_share(before)}{_share(after)}</tr>'
    for name, part in after["by"].items():
        then = before["by"].get(name)
        was = "–" if then is None else f"{then['accuracy']:.0%}"
        rows += f"<tr><td>{escape(name)}</td><td>{part['n']}</td><td>{was}</td><td>{part['accuracy']:.0%}</td></tr>"
    rows += (
        f"<tr><td>log-likelihood a token</td><td>{after['tokens']}</td>"
        f"<td>{before['log_likelihood']:.2f}</td><td>{after['log_likelihood']:.2f}</td></tr>"
    )
    lost = f"<h3>Known before, not after</h3>{_sample_list(forgetting['lost'], 'target', ('ok', 'no'))}"
    return _section(
        "forgetting",
        "Forgetting",
        f"<p>{escape(forgetting['statement'])}</p>"
        '<div class="scroll"><table class="wide"><thead><tr><th>general questions</th><th>n</th><th>before</th>'
        f"<th>after</th></tr></thead><tbody>{rows}</tbody></table></div>"
        f"{lost if forgetting['lost'] else ''}"
        f'<p class="note" style="margin-top:10px">The rule: {escape(forgetting["rule"])}.</p>',
    )


def _costs(report: dict[str, Any], log: Log) -> str:
    """Time, memory and the machine."""
    machine = report.get("machine", {})
    seconds = report.get("training_seconds")
    peak = report.get("peak_memory")
    steps = max((record["step"] for record in log), default=0)
    versions = machine.get("versions", {})
    return _section(
        "costs",
        "Time and memory",
        _facts(
            [
                ("Training", None if seconds is None else _duration(seconds)),
                ("A step", f"{seconds / steps:.3g} s, evaluations included" if seconds and steps else None),
                ("Peak of memory", f"{peak / 2**30:.2f} GiB" if peak else None),
                ("Processor", machine.get("processor")),
                ("Cores", machine.get("cores")),
                ("Memory", f"{machine['memory_gib']} GiB" if "memory_gib" in machine else None),
                ("GPU", machine.get("gpu")),
                ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or None),
                ("Date", machine.get("date")),
            ]
        ),
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"

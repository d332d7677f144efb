"""Direct answers, worked steps and the calculator: accuracy by the digits of both operands, within and beyond
what was trained, and against the examples seen.

The embedded model learns, with all its weights, + - * / of integers of 1 to 4 digits, the same number of examples in
each style, and is asked for problems of 1 to 6 digits that it never saw. A fourth run learns sums and differences of up
to 12 digits with their steps. `results/styles_*.png` are drawn from the figures.
"""

from __future__ import annotations

import random
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from recording import RESULTS, options, record

from glmtune import adapters
from glmtune.arithmetic.problems import Problem
from glmtune.commands import train
from glmtune.config import GenerationSettings, load_recipe
from glmtune.evaluation.evaluator import evaluate
from glmtune.examples import Example
from glmtune.libraries import quiet_libraries
from glmtune.registry import find
from glmtune.runtime import read_json_lines
from glmtune.tasks.arithmetic import Arithmetic

STYLES = ("direct", "steps", "tool")
OPERATORS = "+-*/"
SIGNS = {"+": "+", "-": "−", "*": "×", "/": "÷"}
TRAINED, ASKED = 4, 6  # digits
DIGITS = range(1, ASKED + 1)
LONG = 12  # digits of long sums
Rows = list[dict[str, Any]]
COMMON = [
    "method.name=full",
    "task.kinds=[integer]",
    "training.learning_rate=5e-4",
    "evaluation.text_metrics=false",
    "evaluation.num_examples_during=100",
]


def number(rng: random.Random, digits: int) -> str:
    """A number of so many digits."""
    return str(rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1))


def problems(task: Arithmetic, operator: str, left: int, right: int, count: int) -> list[Example]:
    """Held-out problems of operands of so many digits; fewer where there are no more."""
    rng = random.Random(f"{operator} {left} {right}")
    found: dict[str, Example] = {}
    for _ in range(200 * count):
        problem = Problem.parse(operator.join(number(rng, digits) for digits in (left, right)))
        assert problem is not None
        if len(found) == count:
            break
        if problem.value() is not None and task.holds_out(problem.text):
            solution = task.solve(problem)
            said = task.write_target(f"{problem.text}=", solution)
            target = solution.answer if task.settings.style == "tool" else said
            found[problem.text] = Example(f"{problem.text}=", target, problem.facts())
    return list(found.values())


def trained(label: str, settings: list[str], work: Path) -> tuple[Any, Rows]:
    """A run, and its curve: accuracy on held-out problems against the examples seen."""
    run = train.run(overrides=[*COMMON, *settings, f"training.output_dir={work}/{label}"])
    log = [{"step": 0, **run.report["before"]}, *(line for _, line in read_json_lines(run.folder.log))]
    size = load_recipe(run.folder.recipe).training.batch_size
    return run, [
        {"run": label, "examples": size * line["step"], "accuracy": line["accuracy"]}
        for line in log
        if "accuracy" in line
    ]


def grid(run: Any, operators: str, sizes: list[tuple[int, int]], count: int) -> Rows:
    """Exact match, and faithful calls, for each operator and each pair of lengths."""
    task = find("glmtune.tasks", "arithmetic")(load_recipe(run.folder.recipe).task)
    model, tokenizer = adapters.load(*adapters.find_base(str(run.folder.path)))
    rows = []
    for operator in operators:
        for left, right in sizes:
            asked = problems(task, operator, left, right, count)
            longest = max(len(example.target) for example in asked) + 60
            room = GenerationSettings(max_new_tokens=longest)
            report = evaluate(model, tokenizer, task, asked, room, progress=False).report(text_metrics=False)
            rows.append(
                {
                    "style": task.settings.style,
                    "operator": operator,
                    "left": left,
                    "right": right,
                    "n": report["n"],
                    "accuracy": report["accuracy"],
                    "faithful_calls": report["metrics"].get("faithful_calls"),
                }
            )
    return rows


def mean(rows: Rows, name: str = "accuracy", **wanted: Any) -> float:
    """A share over all problems of some cells."""
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return float(sum(row[name] * row["n"] for row in chosen) / sum(row["n"] for row in chosen))


def draw_grids(rows: Rows, path: Path) -> None:
    """A heat map for each style and operator; the frame holds what was trained."""
    figure = Figure(figsize=(11, 8.4), dpi=120, layout="constrained")
    axes = figure.subplots(len(STYLES), len(OPERATORS), sharex=True, sharey=True)
    for (style, operator), cell in zip(product(STYLES, OPERATORS), axes.flat, strict=True):
        shares = [
            [mean(rows, style=style, operator=operator, left=left, right=right) for right in DIGITS] for left in DIGITS
        ]
        image = cell.imshow(shares, vmin=0, vmax=1, origin="lower", extent=(0.5, ASKED + 0.5) * 2)
        for left, right in product(DIGITS, DIGITS):
            share = shares[left - 1][right - 1]
            ink = "black" if share > 0.6 else "white"
            cell.text(right, left, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8)
        cell.add_patch(Rectangle((0.5, 0.5), TRAINED, TRAINED, fill=False, edgecolor="red", linewidth=2))
        cell.set(title=f"{style}, {SIGNS[operator]}", xticks=DIGITS, yticks=DIGITS)
    figure.supxlabel("digits of the right operand")
    figure.supylabel("digits of the left operand")
    figure.colorbar(image, ax=axes, label="accuracy, held-out (red frame: trained lengths)", shrink=0.6)
    figure.savefig(path)


def draw_curves(curves: Rows, long: Rows, calls: Rows, path: Path) -> None:
    """Exact match against examples seen; long sums by their digits; the calculator's turn by the longer operand's."""
    figure = Figure(figsize=(13, 4), dpi=120, layout="constrained")
    learning, sums, tool = figure.subplots(1, 3)
    for style in STYLES:
        points = [(point["examples"], point["accuracy"]) for point in curves if point["run"] == style]
        learning.plot(*zip(*points, strict=True), marker="o", markersize=3, label=style)
    learning.set(xlabel="examples seen", ylabel="accuracy, held-out", title="+ − × ÷, integers of 1 to 4 digits")
    for operator in "+-":
        points = [(row["left"], row["accuracy"]) for row in long if row["operator"] == operator]
        sums.plot(*zip(*points, strict=True), marker="o", markersize=3, label=SIGNS[operator])
    sums.axvline(LONG + 0.5, color="red", linewidth=1)
    sums.set(xlabel="digits of both operands (trained: left of the line)", title="long sums, steps")
    for row in calls:
        row["longer"] = max(row["left"], row["right"])
    for name, label in (("accuracy", "right answers"), ("faithful_calls", "faithful calls")):
        shares = [mean(calls, name, longer=digits) for digits in DIGITS]
        tool.plot(DIGITS, shares, marker="o", markersize=3, label=label)
    tool.axvline(TRAINED + 0.5, color="red", linewidth=1)
    tool.set(xlabel="digits of the longer operand", title="the calculator's turn")
    for axes in (learning, sums, tool):
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


def main() -> None:
    """Train in each style, ask, record, draw."""
    chosen = options(__doc__, steps=800, long_steps=800, problems=12, held_out=200)
    quiet_libraries()
    often = [f"training.eval_steps={max(1, chosen.steps // 10)}", f"evaluation.num_examples={chosen.held_out}"]
    short = [f"task.digits={TRAINED}", f"training.steps={chosen.steps}", "task.operators='+-*/'", *often]
    far = [f"task.digits={LONG}", f"training.steps={chosen.long_steps}", "task.operators='+-'", *often]
    rows: Rows = []
    curves: Rows = []
    seconds = {}
    with tempfile.TemporaryDirectory() as work:
        for label, settings in [*((style, [f"task.style={style}", *short]) for style in STYLES), ("long", far)]:
            run, points = trained(label, settings, Path(work))
            curves += points
            seconds[label] = run.report["training_seconds"]
            if label == "long":
                long = grid(run, "+-", [(digits, digits) for digits in range(1, LONG + 3)], 5 * chosen.problems)
            else:
                rows += grid(run, OPERATORS, list(product(DIGITS, DIGITS)), chosen.problems)
    inside = [row for row in rows if max(row["left"], row["right"]) <= TRAINED]
    reached = {f"{a} {b}": mean(inside, style=a, operator=b) for a, b in product(STYLES, OPERATORS)}
    reached |= {f"long {b}": mean([row for row in long if row["left"] <= LONG], operator=b) for b in "+-"}
    draw_grids(rows, RESULTS / "styles_digits.png")
    draw_curves(curves, long, [dict(row) for row in rows if row["style"] == "tool"], RESULTS / "styles_curves.png")
    record("styles", vars(chosen), rows, trained=reached, long=long, curves=curves, training_seconds=seconds)


if __name__ == "__main__":
    main()

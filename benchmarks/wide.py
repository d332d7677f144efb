"""The checkpoint arithmetic-wide, scored as MathGLM is: the exact value and the answer, both rounded to two decimals.

    python benchmarks/wide.py --problems FILE

FILE holds problems, one a line, as those of MathGLM's public test set; without it, problems of the same kind are drawn
from the held-out share of the checkpoint's own task.
"""

from __future__ import annotations

import json
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

from recording import options, record

from glmtune.arithmetic.expressions import round_half_up
from glmtune.arithmetic.problems import Problem
from glmtune.arithmetic.reading import read_answer
from glmtune.commands import predict
from glmtune.config import load_recipe
from glmtune.data import DrawnExamples
from glmtune.intervals import wilson_interval
from glmtune.libraries import quiet_libraries
from glmtune.tasks.arithmetic import Arithmetic

CHECKPOINT = "checkpoints/arithmetic-wide"
DECIMALS = 2


def is_right(problem: Problem, completion: str) -> bool:
    """Whether an answer has the exact value after rounding."""
    value, answer = problem.value(), read_answer(completion)
    if value is None or answer is None or not answer.lstrip("-")[:1].isdigit():
        return value is None and answer == "undefined"
    return round_half_up(Fraction(answer), DECIMALS) == round_half_up(value, DECIMALS)


def kinds_of(problem: Problem) -> list[str]:
    """What a problem is counted under."""
    kinds = ["all", f"{len(problem.operators)} operations"]
    kinds += [
        f"with {name}"
        for sign, name in (("(", "brackets"), ("%", "percents"), (".", "decimals"))
        if sign in problem.text
    ]
    return kinds + [f"with {operator}" for operator in sorted(set(problem.operators))]


def problems_in(file: str, count: int) -> list[Problem]:
    """The problems of a file, or drawn ones."""
    if file:
        found = [Problem.exactly(line) for line in Path(file).read_text("utf-8").splitlines() if line.strip()]
        return [problem for problem in found if problem is not None]
    task = Arithmetic(load_recipe(f"{CHECKPOINT}/recipe.yaml").task)
    drawn = [Problem.parse(str(example.prompt)) for example in DrawnExamples(task, count, 7, "held_out")]
    return [problem for problem in drawn if problem is not None]


def ceiling(problems: list[Problem]) -> float:
    """The share of problems that a working without a wrong sign gets right, with the decimals it keeps."""
    task = Arithmetic(load_recipe(f"{CHECKPOINT}/recipe.yaml").task)
    solutions = [task.solve(problem) for problem in problems]
    return sum(solution.is_consistent for solution in solutions) / len(solutions)


def main() -> None:
    """Ask, score, record."""
    chosen = options(__doc__, problems="", drawn=600)
    quiet_libraries()
    problems = problems_in(chosen.problems, chosen.drawn)
    with tempfile.TemporaryDirectory() as work:
        asked, answered = Path(work, "problems.jsonl"), Path(work, "answers.jsonl")
        asked.write_text("".join(json.dumps({"prompt": f"{problem.text}="}) + "\n" for problem in problems))
        predict.run(CHECKPOINT, str(asked), str(answered))
        completions = [json.loads(line)["completion"] for line in answered.read_text("utf-8").splitlines()]
    counts: dict[str, list[bool]] = {}
    for problem, completion in zip(problems, completions, strict=True):
        for kind in kinds_of(problem):
            counts.setdefault(kind, []).append(is_right(problem, completion))
    rows: list[dict[str, Any]] = []
    for kind, right in sorted(
        counts.items(), key=lambda item: (item[0] != "all", "with" in item[0], len(item[0]), item[0])
    ):
        low, high = wilson_interval(sum(right), len(right))
        rows.append({"problems": kind, "n": len(right), "right": sum(right) / len(right), "low": low, "high": high})
    source = Path(chosen.problems).name if chosen.problems else "drawn, held out"
    settings = {**vars(chosen), "problems": source, "ceiling": round(ceiling(problems), 3)}
    record("wide" if chosen.problems else "wide_drawn", settings, rows)


if __name__ == "__main__":
    main()

"""How answers are judged: one form of verdict, and the one table of metrics, for tasks, evaluation and rewards."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema

from glmtune.arithmetic.checking import StepFault
from glmtune.arithmetic.reading import NumberInText, equation_value, final_number, find_final_number, write_number
from glmtune.registry import suggest

Verdict = Literal["exact", "equal", "wrong", "unparseable"]

_EQUATION = re.compile(r"\s*x\s*=\s*[-+(\d]", re.IGNORECASE)
_RESULT = re.compile(r"####\s*\S+\s*\Z")


@dataclass(frozen=True)
class Score:
    """How good an answer is.

    Attributes:
        verdict: `exact` as the target has it; `equal` the same value, written otherwise; `wrong`; `unparseable` no
            answer, or several.
        answer: the answer that was read off the completion.
        metrics: what else is measured of it, by name; a report has their means.
        fault: what is first wrong with its working, where a task looks for it.
    """

    verdict: Verdict
    answer: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    fault: StepFault | None = None

    @property
    def correct(self) -> bool:
        """Whether the value is right: `exact` or `equal`."""
        return self.verdict in ("exact", "equal")

    @property
    def reward(self) -> float:
        """1 for a right answer, else 0."""
        return float(self.correct)


def exact(target: str, completion: str) -> Score:
    """Compare texts, but for runs of blanks."""
    answer = completion.strip()
    if answer == target.strip():
        return Score("exact", answer)
    same = answer.split() == target.split()
    return Score(("equal" if same else "wrong") if answer else "unparseable", answer)


def numeric(target: str, completion: str) -> Score:
    """Compare final numbers as exact values: `#### 18` and `She makes $18.00.`

    `exact` is the same text, `equal` the same value. 25% equals 0.25, and also 25: the question may have named the
    unit. A target without a number is compared as a text.
    """
    wanted, given = find_final_number(target), find_final_number(completion)
    if wanted is None or wanted.value is None:
        return exact(target, completion)
    if given is None or given.value is None:
        return Score("unparseable")
    if completion.strip() == target.strip():
        return Score("exact", write_number(given.value))
    return Score("equal" if _is_same(wanted, given) else "wrong", write_number(given.value))


def _is_same(one: NumberInText, other: NumberInText) -> bool:
    if one.value == other.value:
        return True
    return one.is_percent != other.is_percent and _count(one) == _count(other)


def _count(number: NumberInText) -> Fraction | None:
    """Return what is written before a percent sign: 25 of 25%."""
    return number.value * 100 if number.value is not None and number.is_percent else number.value


def equation(target: str, completion: str) -> Score:
    """Compare the values of equations x=... as exact fractions: `x=(18*6)/3-18=18` and `x=18*6/3-18`.

    The results behind them are not read. A completion without an equation is right if its final number is the target's
    value, or the result that the target states, which may be rounded. A target that is no equation is compared by its
    number.
    """
    wanted = equation_value(target)
    if wanted is None:
        return numeric(target, completion)
    given = equation_value(completion)
    if given is None:
        given = final_number(completion)
        if given is not None and given == final_number(target):
            given = wanted
    if given is None:
        return Score("unparseable")
    if completion.strip() == target.strip():
        return Score("exact", write_number(given))
    return Score("equal" if given == wanted else "wrong", write_number(given))


def auto(target: str, completion: str) -> Score:
    """Compare as the target asks: numeric after ####, equation after x=, else exact.

    Targets of GSM8K end with `#### 72`, those of Ape210K and Math23K are `x=5/5=1`.
    """
    if _EQUATION.match(target):
        return equation(target, completion)
    return (numeric if _RESULT.search(target) else exact)(target, completion)


Metric = Callable[[str, str], Score]  # (target, completion) -> what to think of it

# A new metric is one row here; help and docs say of it what its docstring begins with.
METRICS: dict[str, Metric] = {"auto": auto, "exact": exact, "numeric": numeric, "equation": equation}


def describe_metrics() -> str:
    """Say what each metric does: `exact: compare texts, ...; numeric: ...`."""
    firsts = {name: (inspect.getdoc(metric) or "").partition("\n")[0].rstrip(".") for name, metric in METRICS.items()}
    return "; ".join(f"{name}: {first[:1].lower()}{first[1:]}" for name, first in firsts.items())


def _check_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"no such metric.{suggest(name, list(METRICS))}")
    return name


MetricName = Annotated[str, AfterValidator(_check_metric), WithJsonSchema({"type": "string", "enum": list(METRICS)})]

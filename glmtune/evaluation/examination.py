"""What a model makes of what it is asked before and after a training; kept, so that a run that goes on asks it once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from glmtune.evaluation.evaluator import Evaluation
from glmtune.evaluation.forgetting import Probe
from glmtune.examples import Example
from glmtune.files import write_json
from glmtune.inference.completion import FinishReason
from glmtune.tasks import Task
from glmtune.terminal import to_json

MOST_KEPT = 64 * 2**20  # bytes; more is asked again


@dataclass(frozen=True)
class Examination:
    """What a model makes of what it is asked before and after a training.

    Attributes:
        figures: what the log says of it.
        held_out: its answers to the held-out examples; None where the objective asks nothing.
        general: its answers to the general questions; None where forgetting is not measured.
    """

    figures: dict[str, Any]
    held_out: Evaluation | None
    general: Probe | None


@dataclass(frozen=True)
class Kept:
    """An examination as it is kept: what was answered, without what the questions and the task say by themselves."""

    key: str
    figures: dict[str, Any]
    completions: list[str] | None
    tool_calls: list[list[dict[str, Any]]]
    finish_reasons: list[FinishReason]
    general: Probe | None


ADAPTER = TypeAdapter(Kept)


def key_of(said: Sequence[Any], examples: Sequence[Example]) -> str:
    """Return a short hash of questions, and of all else that answers to them depend on."""
    asked = [
        (example.question, example.target, example.tools, example.tool_calls, example.facts) for example in examples
    ]
    return sha256(repr((*said, asked)).encode()).hexdigest()[:16]


def keep(file: Path, key: str, found: Examination) -> None:
    """Write what a model answered, unless it is very long."""
    held_out = found.held_out
    kept = Kept(
        key,
        found.figures,
        held_out.completions if held_out else None,
        [list(calls) for calls in held_out.tool_calls] if held_out else [],
        list(held_out.finish_reasons) if held_out else [],
        found.general,
    )
    values = ADAPTER.dump_python(kept, mode="json", exclude={"general": {"examples"}})
    if len(to_json(values).encode()) <= MOST_KEPT:
        write_json(file, values)


def recall(
    file: Path, key: str, task: Task, examples: Sequence[Example], general: Sequence[Example] = ()
) -> Examination | None:
    """Return what was kept of the same questions to the same model; None where it is not that, or damaged.

    The answers are scored anew.
    """
    try:
        if file.stat().st_size > MOST_KEPT * 2:
            return None
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["key"] != key:
            return None
        values["general"] = values["general"] and {**values["general"], "examples": list(general)}
        kept = ADAPTER.validate_python(values)
        if kept.completions is None:
            return Examination(kept.figures, None, kept.general)
        answers = [*zip(examples, kept.completions, kept.tool_calls, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    scores = [task.score(example, text, calls) for example, text, calls in answers]
    held_out = Evaluation(
        list(examples), kept.completions, scores, task.axes, kept.finish_reasons, tool_calls=kept.tool_calls
    )
    return Examination(kept.figures, held_out, kept.general)

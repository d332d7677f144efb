"""General questions, by which it is told whether a model has forgotten what it knew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from glmtune.config import DataSettings
from glmtune.examples import Example
from glmtune.records import Fault, explain, read_examples
from glmtune.records.fields import kind_of
from glmtune.runtime import UserError

# Written for this project: 200 questions, 115 in English and 85 in Chinese. Each four that share their options have
# four answers, so that a model which does not read the question is right in one of four, whatever it prefers.
GENERAL = Path(__file__).with_name("general.jsonl")
ARITHMETIC = "arithmetic"  # a group that is judged by itself: what a run on sums gains there makes up for nothing


def read_general(file: str | None = None) -> list[Example]:
    """Return the general questions: the user's own file, or the built-in ones.

    A question whose `facts` have `options`, with the target among them, is answered by the likeliest of these. Others
    are answered in the model's own words; their facts may have other `accepted` spellings, and `wrong` words.

    Raises:
        UserError: no such file, or a faulty record, with file and line number.
    """
    examples = read_examples(str(GENERAL) if file is None else file, DataSettings(turns="last"))
    if file is None:
        return [replace(example, source=None) for example in examples]
    faults = [
        Fault(example.source.file, example.source.line, "facts", message)
        for example in examples
        if example.source is not None and (message := fault_of(example))
    ]
    if faults:
        raise UserError(explain(faults, "mend them, or leave them out of evaluation.general_file"))
    return examples


def fault_of(question: Example) -> str | None:
    """Return what is wrong with the facts of a question; None where they can be used."""
    facts, target = question.facts, question.target
    for name in ("options", "accepted", "wrong"):
        if (message := _fault_of_list(name, facts.get(name, []))) is not None:
            return message
    options, accepted, wrong = (facts.get(name, []) for name in ("options", "accepted", "wrong"))
    if options and len(set(options)) < max(2, len(options)):
        return f"facts.options: two different texts or more are needed, not {options}"
    if options and target not in options:
        return f"facts.options: the target {target!r} is not among {options}"
    if twice := {target, *accepted}.intersection(wrong):
        return f"facts.wrong: {min(twice)!r} is a right answer, too"
    return None


def _fault_of_list(name: str, value: Any) -> str | None:
    if not isinstance(value, list):
        return f"facts.{name}: {kind_of(value)}, not a list of texts"
    if odd := [one for one in value if not isinstance(one, str) or not one.strip()]:
        return f"facts.{name}: {odd[0]!r} is no text; write it in quotes"
    return None


def part_of(question: Example) -> str:
    """Return the part of the general set that a question belongs to, each of which is judged by itself."""
    if question.facts.get("group") == ARITHMETIC:
        return ARITHMETIC
    return "choices" if question.facts.get("options") else "short answers"


def guessed(question: Example) -> float:
    """Return how probable a right answer is without any knowledge, 0 to 1."""
    options = question.facts.get("options")
    return 1 / len(options) if options else 0.0

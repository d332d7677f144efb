"""The table of formats that records come in, recognised by their fields: a new format is one row of `FORMATS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from glmtune.config import FIELDS
from glmtune.examples import Example, Source
from glmtune.records.conversations import conversation, example_of, messages_of, with_history
from glmtune.records.fields import (
    FieldError,
    Row,
    facts_of,
    kind_of,
    list_of,
    names_of,
    optional_text,
    text_of,
)

LOOKED_AT = 50  # rows by which a file's format is told
_EQUATION = re.compile(r"\s*x\s*=\s*\S", re.IGNORECASE)
_OPERATION = re.compile(r"(?<=[\w.)\]%])\s*(?:\*\*|[-+*/^])")


@dataclass(frozen=True)
class Format:
    """How a row becomes examples.

    Attributes:
        name: of the format.
        needs: fields without which a row is not of this format.
        read: the examples of a row; raises `FieldError`.
        fits: whether the values look like it, where the fields alone do not tell.
        sign: a field that marks the format even where others are missing.
    """

    name: str
    needs: tuple[str, ...]
    read: Callable[[Row], list[Example]]
    fits: Callable[[Row], bool] = lambda row: True
    sign: str = ""

    def claims(self, row: Row) -> bool:
        """Return whether a row has all fields that the format needs."""
        return all(name in row for name in self.needs)


# One reader a format


def pair(question: str, answer: str) -> Callable[[Row], list[Example]]:
    """Return a reader of rows with a question and an answer, and perhaps rounds before them."""

    def read(row: Row) -> list[Example]:
        return [with_history(row, text_of(row, question), text_of(row, answer))]

    return read


def prompt_target(row: Row) -> list[Example]:
    """Read our own form, which `glmtune data` writes. The prompt may be a list of messages."""
    prompt = row.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt):
        turns = [*prompt, {"role": "assistant", "content": text_of(row, "target")}]
        for number, turn in enumerate(turns, start=1):
            messages_of({**turn, "tool_calls": None}, "prompt", number)
        return [example_of(row, turns, "prompt")]
    return [with_history(row, text_of(row, "prompt"), text_of(row, "target"))]


def alpaca(row: Row) -> list[Example]:
    """Read Alpaca, BELLE, school_math: the input follows the instruction on a line of its own.

    The message has both by themselves, too, for Alpaca's own template.
    """
    instruction, given = text_of(row, "instruction"), optional_text(row, "input")
    parts = {"instruction": instruction, "input": given} if given else {}
    prompt = f"{instruction}\n{given}" if given else instruction
    return [with_history(row, prompt, text_of(row, "output"), parts=parts)]


def belle_seed(row: Row) -> list[Example]:
    """Read BELLE's seed tasks: an instruction with several inputs and outputs."""
    instances = list_of(row, "instances")
    if not instances:
        raise FieldError("instances", "'instances' is missing or has no entries")
    examples = []
    for number, instance in enumerate(instances, start=1):
        if not isinstance(instance, dict):
            raise FieldError("instances", f"'instances', entry {number}: {kind_of(instance)}, not an object")
        examples += alpaca({"instruction": row.get("instruction"), "facts": row.get("facts"), **instance})
    return examples


def belle_eval(row: Row) -> list[Example]:
    """Read BELLE's evaluation set: open questions have no answer in it."""
    kind = optional_text(row, "class")
    facts = facts_of(row, {"class": kind} if kind else {})
    return [Example(text_of(row, "question"), text_of(row, "std_answer"), facts)]


def gsm8k(row: Row) -> list[Example]:
    """Read GSM8K: a reasoning that ends with `#### ANSWER`."""
    question, answer = text_of(row, "question"), text_of(row, "answer")
    if not answer.rpartition("####")[1] or not answer.rpartition("####")[2].strip():
        raise FieldError("answer", "'answer' has no '#### RESULT' at its end, as the others of this file have")
    return [Example(question, answer, facts_of(row, {"steps": answer.count("<<")}))]


def ape210k(row: Row) -> list[Example]:
    """Read Ape210K as `question` and an `answer` that is an equation: `x=5/5=1`."""
    return [Example(text_of(row, "question"), *_equation(row, "answer"))]


def math23k(row: Row) -> list[Example]:
    """Read Math23K and Ape210K as released: the target is the equation with its answer, `x=5/5=1`."""
    target, facts = _equation(row, "equation")
    answer = row.get("ans")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise FieldError("ans", "'ans' is empty or not a text")
    return [Example(text_of(row, "original_text"), target + (f"={answer}" if answer else ""), facts)]


def _equation(row: Row, name: str) -> tuple[str, dict[str, Any]]:
    """An equation and how many operations it has."""
    text = text_of(row, name)
    if not _EQUATION.match(text):
        raise FieldError(name, f"'{name}' must begin with x=, as the others of this file do; it is {text[:40]!r}")
    return text, facts_of(row, {"operations": len(_OPERATION.findall(text.split("=")[1]))})


def _says(name: str, pattern: str) -> Callable[[Row], bool]:
    """Whether a text field matches."""
    return lambda row: isinstance(row[name], str) and re.search(pattern, row[name], re.IGNORECASE) is not None


# What is told by more fields stands before what is told by fewer.
FORMATS = [
    Format("messages", ("messages",), conversation("messages", odd=False), sign="messages"),
    Format("sharegpt", ("conversations",), conversation("conversations", odd=True), sign="conversations"),
    Format("belle_seed", ("instruction", "instances"), belle_seed, sign="instances"),
    Format("alpaca", ("instruction", "output"), alpaca, sign="instruction"),
    Format("math23k", ("original_text", "equation"), math23k, sign="original_text"),
    Format("prompt_target", ("prompt", "target"), prompt_target),
    Format("chatglm_history", ("prompt", "response", "history"), pair("prompt", "response")),
    Format("prompt_response", ("prompt", "response"), pair("prompt", "response")),
    Format("prompt_completion", ("prompt", "completion"), pair("prompt", "completion")),
    Format("adgen", ("content", "summary"), pair("content", "summary"), sign="summary"),
    Format("gsm8k", ("question", "answer"), gsm8k, _says("answer", "####")),
    Format("ape210k", ("question", "answer"), ape210k, _says("answer", r"^\s*x\s*=")),
    Format("question_answer", ("question", "answer"), pair("question", "answer")),
    Format("belle_eval", ("question", "std_answer"), belle_eval, sign="std_answer"),
    Format("query_response", ("query", "response"), pair("query", "response"), sign="query"),
    Format("context_target", ("context", "target"), pair("context", "target"), sign="context"),
    Format("input_output", ("input", "output"), pair("input", "output")),
]
_OWN = next(known for known in FORMATS if known.name == "prompt_target")


# Which format a row is of


def mapped_format(columns: Mapping[str, str]) -> Format:
    """Return a format by the names that the user gives: ours to the file's.

    Args:
        columns: of `prompt`, `target`, `history` and `system`; those that are not named are called so in the file, too.
    """
    names = {name: columns.get(name, name) for name in FIELDS}

    def read(row: Row) -> list[Example]:
        for name, column in columns.items():
            if column not in row:
                close = get_close_matches(column, [str(key) for key in row], n=1, cutoff=0.4)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                has = f"the record has {names_of(row)}"
                raise FieldError(column, f"data.columns.{name}: no field '{column}'; {has}.{hint}")
        prompt, target = text_of(row, names["prompt"]), text_of(row, names["target"])
        return [with_history(row, prompt, target, names["history"], names["system"])]

    return Format("columns", (), read)


def matching_format(row: Row) -> Format | None:
    """Return the first format that a row has all fields of, and the looks."""
    return next((known for known in FORMATS if known.claims(row) and known.fits(row)), None)


def recognise(rows: Iterable[Row]) -> Format | None:
    """Return the format that most of some rows have."""
    found = [known for known in map(matching_format, rows) if known is not None]
    return max(FORMATS, key=found.count) if found else None


def format_of(row: Row, own: Format | None = None) -> Format:
    """Return the format to read a row by: the file's own if it has the fields, else the one that it has the fields of.

    Args:
        row: of the file.
        own: what the first rows of the file have.
    """
    if own is not None and own.claims(row):
        return own
    marked = (known for known in FORMATS if known.sign and known.sign in row)
    partly = own if own is not None and any(name in row for name in own.needs) else next(marked, None)
    return matching_format(row) or partly or own or _OWN


def examples_of(row: Row, own: Format | None = None, file: str = "", line: int = 0) -> list[Example]:
    """Return the examples of a row, with their source.

    Args:
        row, own: as `format_of` takes them.
        file, line: where the row stands.

    Raises:
        FieldError: a field cannot be used.
    """
    known = format_of(row, own)
    try:
        found = known.read(row)
    except FieldError as error:
        if known is _OWN and own is None and not any(name in row for name in _OWN.needs):
            remedy = "No known format has these fields. Map yours: data.columns.prompt=FIELD data.columns.target=FIELD"
            raise FieldError(error.field, f"{error}. {remedy}") from None
        raise
    return [replace(example, source=Source(file, line, known.name)) for example in found]

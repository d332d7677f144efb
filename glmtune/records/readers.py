"""Readers of formats: from a row to examples. Each raises a `FieldError` at a field that it cannot use."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from glmtune.examples import Example
from glmtune.messages import Message, as_messages, text_in
from glmtune.records.conversations import example_of, with_history, with_system
from glmtune.records.fields import (
    FieldError,
    Row,
    answer_in_field,
    as_text,
    facts_of,
    kind_of,
    list_of,
    optional_text,
    sound,
    text_of,
)
from glmtune.records.turns import answer_of, turns_of

Reader: TypeAlias = Callable[[Row], list[Example]]

_SHARED = ("instruction", "facts", "system", "history")  # fields that stand for all instances of a record
_HUMAN = re.compile(r"\s*Human: ")
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):(?: |(?=\n|\Z))")
_EQUATION = re.compile(r"\s*x\s*=\s*\S", re.IGNORECASE)
_OPERATION = re.compile(r"(?<=[\w.)\]%])\s*(?:\*\*|[-+*/^])")


def conversation(name: str, odd: bool = False) -> Reader:
    """Return a reader of rows whose field `name` is a list of turns.

    Args:
        name: of the field.
        odd: leave out an answer at the start and a question at the end instead of refusing them.
    """

    def read(row: Row) -> list[Example]:
        return [example_of(row, with_system(row, turns_of(row, name)), name, odd)]

    return read


def preference(read: Reader, answer: str = "") -> Reader:
    """Return a reader of rows with two answers, `chosen` and `rejected`: texts, messages, or whole conversations.

    Args:
        read: of rows with one answer.
        answer: the field that `read` takes it from; default: the last turn of `conversations`.
    """

    def read_both(row: Row) -> list[Example]:
        (before, chosen), (other, rejected) = (answer_in(row, name) for name in ("chosen", "rejected"))
        if before != other:
            raise FieldError("rejected", "'chosen' and 'rejected' answer different conversations")
        if before:  # the prompt is in the answers, as trl's implicit prompts are
            examples = [
                example_of(row, with_system(row, [*before, {"role": "assistant", "content": chosen}]), "chosen")
            ]
        elif answer:
            examples = read({**row, answer: chosen})
        else:
            turns = [*list_of(row, "conversations"), {"role": "assistant", "content": chosen}]
            examples = read({**row, "conversations": turns})
        return [replace(example, rejected=rejected) for example in examples]

    return read_both


def answer_in(row: Row, name: str) -> tuple[list[Message], str]:
    """Return the messages before an answer, if they are given with it, and the answer."""
    value = row.get(name)
    if isinstance(value, str) and _HUMAN.match(value):
        value = transcript(value, name)
    if not isinstance(value, dict | list):
        return [], answer_in_field(row, name)
    turns = turns_of({name: value if isinstance(value, list) else [value]}, name)
    if not turns or turns[-1]["role"] != "assistant":
        raise FieldError(name, f"'{name}' must be a text, or messages that end with the assistant's")
    if "tool_calls" in turns[-1]:
        raise FieldError(name, f"'{name}' ends with calls of tools, and answers are compared as texts. Leave it out")
    return turns[:-1], text_in(turns[-1]["content"])


def transcript(text: str, name: str) -> list[Row]:
    """Return the turns of a talk that is written as one text, as Anthropic's HH-RLHF has them.

    Raises:
        FieldError: the assistant says nothing in the end.
    """
    _, *parts = _SPEAKER.split(text)
    turns = [{"role": role, "content": said.strip()} for role, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1]["role"] != "Assistant" or not turns[-1]["content"]:
        raise FieldError(name, f"'{name}' ends without an answer of the assistant")
    return [{**turn, "role": turn["role"].lower()} for turn in turns]


def labelled(read: Reader, label: str) -> Reader:
    """Return a reader of rows with one answer, of which a field says whether it is good.

    A good one is the target of its example, a bad one is `rejected`, and there is no target.

    Args:
        read: of rows with an answer.
        label: the field that says it.
    """

    def read_labelled(row: Row) -> list[Example]:
        is_good = label_of(row[label])
        if is_good is None:
            raise FieldError(label, f"'{label}' must be true or false, as the others of this file are")
        examples = read(row)
        if is_good:
            return examples
        if any(example.tool_calls for example in examples):
            raise FieldError(label, f"'{label}' is false of calls of tools, and bad answers are texts. Leave it out")
        return [replace(example, target="", rejected=example.target) for example in examples]

    return read_labelled


def label_of(value: Any) -> bool | None:
    """Return what a label says: true or false, also as a text; None of anything else, such as the number of a class."""
    known = {"true": True, "false": False}
    return known.get(str(value).strip().lower()) if isinstance(value, bool | str) else None


def completion(row: Row) -> list[Example]:
    """Read a prompt and its completion, each a text or messages."""
    before, said = answer_in(row, "completion")
    prompt = row.get("prompt")
    turns = turns_of(row, "prompt") if isinstance(prompt, list) else as_messages(text_of(row, "prompt"))
    turns = [*turns, *before, {"role": "assistant", "content": said}]
    return [example_of(row, with_system(row, turns), "prompt")]


def plain_text(row: Row) -> list[Example]:
    """Read text without questions and answers: all of it is there to be learned."""
    return [Example("", "", facts_of(row), text=text_of(row, "text"))]


def images_of(row: Row) -> list[str]:
    """Return the files of a row's images: `images`, a list of them, or one `image`."""
    images = [row["image"]] if row.get("image") else list_of(row, "images")
    for number, image in enumerate(images, start=1):
        if not isinstance(image, str) or not image:
            raise FieldError("images", f"'images', entry {number}: {kind_of(image)}, not the name of a file")
        sound("images", image)
    return images


def pair(question: str, answer: str) -> Reader:
    """Return a reader of rows with a question and an answer, and perhaps rounds before them."""

    def read(row: Row) -> list[Example]:
        return [with_history(row, text_of(row, question), answer_in_field(row, answer))]

    return read


def prompt_target(row: Row) -> list[Example]:
    """Read our own form, which `glmtune data` writes: the prompt may be messages, the answer calls of tools."""
    prompt, calls = row.get("prompt"), list_of(row, "tool_calls")
    is_list = isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt)
    if not is_list and not calls:
        return [with_history(row, text_of(row, "prompt"), answer_in_field(row, "target"))]
    target = optional_text(row, "target") if calls else answer_in_field(row, "target")
    turns = turns_of(row, "prompt") if is_list else as_messages(text_of(row, "prompt"))
    return [example_of(row, with_system(row, [*turns, answer_of(target, calls, "tool_calls")]), "prompt")]


def alpaca(row: Row) -> list[Example]:
    """Read Alpaca, BELLE, school_math: the input follows the instruction on a line of its own.

    The message has both by themselves, too, for Alpaca's own template.
    """
    instruction, given = text_of(row, "instruction"), optional_text(row, "input")
    parts = {"instruction": instruction, "input": given} if given else {}
    prompt = f"{instruction}\n{given}" if given else instruction
    return [with_history(row, prompt, answer_in_field(row, "output"), parts=parts)]


def belle_seed(row: Row) -> list[Example]:
    """Read BELLE's seed tasks: an instruction with several inputs and outputs."""
    instances = list_of(row, "instances")
    if not instances:
        raise FieldError("instances", "'instances' is missing or has no entries")
    examples = []
    for number, instance in enumerate(instances, start=1):
        if not isinstance(instance, dict):
            raise FieldError("instances", f"'instances', entry {number}: {kind_of(instance)}, not an object")
        examples += alpaca({**{name: row[name] for name in _SHARED if name in row}, **instance})
    return examples


def belle_eval(row: Row) -> list[Example]:
    """Read BELLE's evaluation set: open questions have no answer in it."""
    kind = optional_text(row, "class")
    facts = facts_of(row, {"class": kind} if kind else {})
    return [with_facts(row, text_of(row, "question"), answer_in_field(row, "std_answer"), facts)]


def gsm8k(row: Row) -> list[Example]:
    """Read GSM8K: a reasoning that ends with `#### ANSWER`."""
    question, answer = text_of(row, "question"), text_of(row, "answer")
    if not answer.rpartition("####")[1] or not answer.rpartition("####")[2].strip():
        raise FieldError("answer", "'answer' has no '#### RESULT' at its end, as the others of this file have")
    return [with_facts(row, question, answer, facts_of(row, {"steps": answer.count("<<")}))]


def ape210k(row: Row) -> list[Example]:
    """Read Ape210K as `question` and an `answer` that is an equation: `x=5/5=1`."""
    return [with_facts(row, text_of(row, "question"), *_equation(row, "answer"))]


def math23k(row: Row) -> list[Example]:
    """Read Math23K and Ape210K as released: the target is the equation with its answer, `x=5/5=1`."""
    target, facts = _equation(row, "equation")
    answer = as_text(row.get("ans"))
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise FieldError("ans", "'ans' is empty or not a text")
    return [with_facts(row, text_of(row, "original_text"), target + (f"={answer}" if answer else ""), facts)]


def with_facts(row: Row, question: str, answer: str, facts: Row) -> Example:
    """Return a question with what its format tells of it, and with the system message and the rounds before it."""
    return replace(with_history(row, question, answer), facts=facts)


def _equation(row: Row, name: str) -> tuple[str, dict[str, Any]]:
    """An equation and how many operations it has."""
    text = text_of(row, name)
    if not _EQUATION.match(text):
        raise FieldError(name, f"'{name}' must begin with x=, as the others of this file do; it is {text[:40]!r}")
    return text, facts_of(row, {"operations": len(_OPERATION.findall(text.split("=")[1]))})

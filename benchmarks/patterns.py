"""Seconds that each pattern and each reader of texts takes for hostile texts of 10,000 and 20,000 characters.

Patterns are found, not listed: whatever compiled pattern a module of the package holds. Readers are the functions that
see what a model wrote or what a record holds. Twice the text may take twice the time, or a little more; what takes four
times as long is quadratic, and hangs on a text that is a little longer still.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any

from recording import options, record

import glmtune
from glmtune import messages, scoring, terminal
from glmtune.arithmetic import characters, expressions, problems, reading
from glmtune.evaluation import breakdown, comparison, metrics
from glmtune.evaluation.short_answers import is_right
from glmtune.examples import Example
from glmtune.records import cleaning, fields, formats, leaks, streams
from glmtune.registry import suggest
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings
from glmtune.tools.calculator import Calculator

SHORT, LONG = 10_000, 20_000
ENOUGH = 0.05  # seconds for the longer text; less is no matter, whatever the ratio
RATIO = 3.0  # twice the text: 2 is linear, 4 quadratic

# How a pattern is used.
USES: dict[str, Callable[[re.Pattern[Any], Any], Any]] = {
    "match": lambda pattern, text: pattern.match(text),
    "fullmatch": lambda pattern, text: pattern.fullmatch(text),
    "search": lambda pattern, text: pattern.search(text),
    "findall": lambda pattern, text: pattern.findall(text),
    "finditer": lambda pattern, text: [*pattern.finditer(text)],
    "split": lambda pattern, text: pattern.split(text),
    "sub": lambda pattern, text: pattern.sub(lambda found: found[0], text),
}

# What hostile texts are made of: each sign by itself, and what the readers look for, begun again and again.
UNITS = [
    *"a1 \n\t#=<>()[]{}*/+-^%.,:;|\\`'\"$~_é答。，\u00a0",
    *(
        "1,",
        "1.",
        "1 ",
        "1/",
        "1(",
        "1-",
        "-1",
        "1e",
        "1+",
        "1*",
        "1=",
        "x=",
        "x =",
        "=1",
        "1%",
        "1:",
        "1,234",
        "1 1/2 ",
    ),
    *(
        "(1",
        "1)",
        "()",
        "[1",
        "{1",
        "((1)",
        "1^",
        "2**",
        "--",
        "- ",
        "1\n",
        "\n1",
        "1. ",
        "\n\n",
        " \n",
        "a ",
        "a1",
        "a-",
    ),
    *(
        "####",
        "#### ",
        "#\n",
        "# ",
        "```",
        "\n```",
        "**",
        "**1**",
        "~~",
        "~~1",
        "<<",
        "<<1=",
        ">>",
        "<think>",
        "</think>",
    ),
    *(
        "\\boxed{",
        "\\frac{",
        "\\frac{1}{",
        "\\text{",
        "\\(",
        "\\[",
        "\\,",
        "answer is ",
        "the answer: ",
        "答案是",
        "百分之",
    ),
    *(
        "等于",
        "万",
        "一百",
        "two ",
        "hundred ",
        "负",
        "step 1",
        "½",
        "²",
        "０",
        "￥",
        "1又",
        "\u0301",
        "\U0001f9ec",
        "\ud800",
    ),
    *('{"', '":', "[[", '{"a":', "\\u", '"\\', "<tool_call>", "<|", "|>", "u: ", "A.", "calculate("),
]


def texts(size: int) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of hostile texts: a unit again and again, to its end or to something else, or in between."""
    for unit in UNITS:
        long = (unit * (size // len(unit) + 1))[:size]
        yield repr(unit), long
        for end in ("!", "1"):
            yield f"{unit!r} then {end!r}", long[:-1] + end
        yield f"1 then {unit!r}", "1" + long[1:]
        yield f"x= then {unit!r}", "x=" + long[2:]
    half = size // 2
    for opening, closing in ("()", "[]", "{}", "<>", ("\\boxed{", "}")):
        yield f"{opening!r} within {opening!r}", (opening * half)[:half] + (closing * half)[:half]


def patterns() -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Yield (name, use) of every compiled pattern that a module of the package holds, as the package uses it."""
    for module in pkgutil.walk_packages(glmtune.__path__, "glmtune."):
        if module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        source = Path(str(loaded.__file__)).read_text("utf-8")
        for name, value in vars(loaded).items():
            if isinstance(value, re.Pattern) and value.pattern:
                used = {method for method in USES if re.search(rf"(?<!\w){name}\.{method}\b", source)}
                yield f"{module.name}.{name}", user(value, used or set(USES))


def user(pattern: re.Pattern[Any], methods: set[str]) -> Callable[[str], Any]:
    """Return what uses a pattern on a text in some ways."""

    def use(text: str) -> None:
        subject = text.encode("utf-8", "replace") if isinstance(pattern.pattern, bytes) else text
        for method in methods:
            USES[method](pattern, subject)

    return use


def readers() -> dict[str, Callable[[str], Any]]:
    """Return every reader of texts that others wrote, by name."""
    task = Arithmetic(ArithmeticSettings(name="arithmetic"))
    calculator = Calculator()
    example = Example("1+1=", "2")
    known = {f"reading.{name}": value for name, value in public(reading)}
    known |= {f"characters.{name}": value for name, value in public(characters)}
    return known | {
        "expressions.evaluate": refusing(expressions.evaluate),
        "problems.Problem.parse": problems.Problem.parse,
        "problems.Problem.exactly": problems.Problem.exactly,
        **{f"scoring.{name}, target": lambda text, f=metric: f(text, "2") for name, metric in scoring.METRICS.items()},
        **{f"scoring.{name}, answer": lambda text, f=metric: f("2", text) for name, metric in scoring.METRICS.items()},
        "tasks.arithmetic": lambda text: task.score(example, text),
        "tasks.arithmetic, question": lambda text: (task.holds_out(text), task.describe(text, text)),
        "tools.calculator": lambda text: calculator.answer({"expression": text}),
        "tools.calculator, beginning": lambda text: calculator.answer({"expression": text[:1000]}),
        "records.leaks": lambda text: (leaks.problem_of(text), leaks.problem_of(text[:199])),
        "records.cleaning": lambda text: (
            cleaning.words_of(text),
            cleaning.unclosed(text),
            cleaning.cut_ends([text] * 5),
        ),
        "records.near_duplicates": lambda text: cleaning.near_duplicates([text, text[1:]]),
        "records.streams": lambda text: streams.parse_line(Path("file"), 1, text),
        "records.formats": refusing(lambda text: [formats.examples_of(row) for row in rows(text)]),
        "records.fields": refusing(lambda text: fields.text_of({text: text}, "prompt")),
        "messages.check_tool_call": refusing(lambda text: messages.check_tool_call({"name": "a", "arguments": text})),
        "registry.suggest": lambda text: suggest(text, ["prompt", "target"]),
        "terminal": lambda text: (terminal.visible(text), terminal.to_json({text: text})),
        "evaluation.rouge": lambda text: metrics.rouge([text], [text[::-1]]),
        "evaluation.bleu4": lambda text: metrics.bleu4([text], [text[::-1]]),
        "evaluation.breakdown": lambda text: breakdown.sort_groups([text, text[1:]]),
        "evaluation.comparison": lambda text: comparison.failure_of("2", scoring.Score("wrong", text), text),
        "evaluation.forgetting": lambda text: (is_right("2", text), is_right("Paris", text)),
    }


def public(module: Any) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Yield the functions of a module that take one text."""
    for name, value in vars(module).items():
        is_own = isinstance(value, FunctionType) and value.__module__ == module.__name__
        if is_own and not name.startswith("_") and [*value.__annotations__.items()][:1] == [("text", "str")]:
            yield name, value


def rows(text: str) -> Iterator[dict[str, Any]]:
    """Yield records of several formats with a text in them."""
    for question, answer in (
        ("prompt", "target"),
        ("question", "answer"),
        ("instruction", "output"),
        ("input", "output"),
    ):
        yield {question: text, answer: text}
    yield {"question": "1", "answer": f"{text}####{text}"}
    yield {"original_text": "1", "equation": f"x={text}", "ans": text}
    yield {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}


def refusing(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a reader that may say that something is wrong."""

    def read(text: Any) -> None:
        with suppress(ValueError):
            function(text)

    return read


def seconds(function: Callable[[str], Any], text: str) -> float:
    """Return how long a call takes."""
    start = time.process_time()
    function(text)
    return time.process_time() - start


def worst(function: Callable[[str], Any], every: int) -> dict[str, Any]:
    """Return the text for which a function takes longest, and how long it takes for half and all of it."""
    function("1")  # what is read once
    times = {name: seconds(function, text) for name, text in islice(texts(LONG), 0, None, every)}
    name = max(times, key=times.__getitem__)
    again = 1 if times[name] > 1 else 5
    half, whole = (min(seconds(function, dict(texts(size))[name]) for _ in range(again)) for size in (SHORT, LONG))
    return {"text": name, "half_ms": half * 1000, "ms": whole * 1000, "ratio": whole / max(half, 1e-6)}


def main() -> None:
    """Measure all, and name what is too slow."""
    chosen = options(__doc__, only="", every=1)
    only, every = chosen.only, chosen.every  # of the texts, every so-many-th
    functions = {**dict(patterns()), **readers()}
    measured = [{"what": name, **worst(function, every)} for name, function in functions.items() if only in name]
    measured.sort(key=lambda row: -row["ms"])
    slow = [row["what"] for row in measured if row["ms"] > ENOUGH * 1000 and row["ratio"] > RATIO]
    settings = {
        "characters": [SHORT, LONG],
        "texts": sum(1 for _ in islice(texts(LONG), 0, None, every)),
        "enough_s": ENOUGH,
        "ratio": RATIO,
    }
    if only:
        print(json.dumps(measured[:20], indent=1), slow)
        return
    record("patterns", settings, measured, too_slow=", ".join(slow) or "none")


if __name__ == "__main__":
    main()

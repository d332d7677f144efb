"""What rows ask, with or without answers: for models that are asked, not taught."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from glmtune.examples import Example, Source
from glmtune.messages import Prompt
from glmtune.records.conversations import tools_of, with_system
from glmtune.records.faults import Fault
from glmtune.records.fields import FieldError, Row, as_text, list_of, names_of
from glmtune.records.files import rows
from glmtune.records.formats import examples_of, mapped_format, matching_format
from glmtune.records.turns import join_turns, role_of, turns_of

# What answers are called in the known formats, and the shortest text that each of these takes for one.
_ANSWERS = {
    **dict.fromkeys(("output", "target", "response", "completion", "summary", "answer", "std_answer"), "."),
    "equation": "x=1",
}


class Question(NamedTuple):
    """A row of a file, what it asks, where it stands, and the definitions of the tools that it offers."""

    row: Row
    prompt: Prompt
    source: Source
    tools: Sequence[dict[str, Any]] = ()


def read_questions(
    source: str, columns: Mapping[str, str] | None = None, encoding: str = "utf-8", joins_turns: bool = False
) -> Iterator[Question | Fault]:
    """Yield the rows of a file, a folder or a data set of the hub, with what each asks; answers are not needed.

    Args:
        source, columns, encoding, joins_turns: as `read` takes them.

    Raises:
        UserError: there is nothing to read, or a library is missing.
    """
    for entry in rows(source, encoding):
        if isinstance(entry, Fault):
            yield entry
            continue
        try:
            example = question_of(join_turns(entry.row) if joins_turns else entry.row, columns)
            yield Question(entry.given, example.prompt, Source(entry.file, entry.line), example.tools)
        except FieldError as error:
            yield Fault(entry.file, entry.line, error.field, str(error), entry.given)


def question_of(row: Row, columns: Mapping[str, str] | None = None) -> Example:
    """Return what a row asks: an example with the prompt and tools that a training would read from it, and no target.

    Formats are told by question *and* answer, and a row to predict for has no answer. So it is read as a training
    would read it, with a stand-in where the answer is missing.

    Args:
        row: of a file of questions; a `prompt` that is a list of messages is taken as it is.
        columns: as in `mapped_format`; default: told by the fields.

    Raises:
        FieldError: no question in it, or several.
    """
    if columns:
        target = columns.get("target", "target")
        return only_question(
            examples_of(row if _is_answer(row.get(target)) else {**row, target: "."}, mapped_format(columns))
        )
    prompt = row.get("prompt")
    if isinstance(prompt, list) and prompt:
        return Example(with_system(row, turns_of(row, "prompt")), "", tools=tools_of(row))
    # An answer that is empty or null counts as missing: files of questions often keep the column.
    asked = with_answer({name: value for name, value in row.items() if name not in _ANSWERS or _is_answer(value)})
    # Where no format is recognised, each name of an answer is tried. That several of them fit is no fault as long as
    # they agree on the question: `{"prompt": ...}` is one with `target`, `response` and `completion` alike.
    candidates = [asked] if matching_format(asked) else [{**asked, name: text} for name, text in _ANSWERS.items()]
    found: list[Example] = []
    faults: list[FieldError] = []
    for candidate in candidates:
        if matching_format(candidate):
            try:
                found.append(only_question(examples_of(candidate)))
            except FieldError as error:
                faults.append(error)
    if found and all(example.prompt == found[0].prompt for example in found):
        return next((example for example in found if example.tools), found[0])
    has = f"the record has {names_of(row)}"
    if found:
        raise FieldError("prompt", f"several fields may be the question; {has}. Name it: data.columns.prompt=FIELD")
    if faults:
        # The fault was told of the candidate, whose stand-in must not be listed among the row's own fields.
        raise FieldError(faults[0].field, f"{str(faults[0]).partition('; the record has ')[0]}; {has}")
    unknown = "'prompt' is missing, empty or not a text, and no known format is here"
    raise FieldError("prompt", f"{unknown}; {has}. Name the question: data.columns.prompt=FIELD")


def _is_answer(value: Any) -> bool:
    said = as_text(value)
    return isinstance(said, str) and bool(said.strip())


def only_question(examples: Sequence[Example]) -> Example:
    """Return what the one example of a row asks, without the answer.

    Raises:
        FieldError: it has none; or several, so that an answer could not stand beside its question.
    """
    if len(examples) != 1:
        raise FieldError("instances", f"{len(examples)} questions in one record; write one in each")
    if examples[0].text is not None:
        raise FieldError("text", "'text' is plain text, which asks nothing. Ask it with data.columns.prompt=text")
    if examples[0].images:
        raise FieldError("images", "'images' are files that models of text cannot read. Leave such records out")
    return Example(examples[0].prompt, "", tools=examples[0].tools)


def with_answer(row: Row) -> Row:
    """Return a conversation that ends with a question, with an answer to it."""
    for name in ("messages", "conversations"):
        turns = list_of(row, name) if name in row else []
        if turns and role_of(turns[-1]) in ("user", "tool"):
            row = {**row, name: [*turns, {"role": "assistant", "content": "."}]}
    return row

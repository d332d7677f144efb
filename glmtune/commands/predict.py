"""`glmtune predict`: answers to a file of prompts, written as they come."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from tqdm import tqdm

from glmtune.data.encoding import plain_ids
from glmtune.inference.conversation import converse
from glmtune.inference.engine import Engine
from glmtune.inference.prompts import encode_prompts
from glmtune.messages import Prompt
from glmtune.methods import Model
from glmtune.records import Fault, Row, explain, read_questions
from glmtune.resolution import ResolvedModel, Target, resolve
from glmtune.runtime import UserError, check_output, read_json_lines, replacing, seed_everything

ADDED = ("completion", "error", "faithful")  # to a record, whatever it had there
OnError = Literal["stop", "record"]
# Batches that are sorted by length together. Records are written in order, a window at a time.
BATCHES_PER_WINDOW = 4
TABLES = (".csv", ".parquet")
_HALF = re.compile("[\ud800-\udfff]")  # of a character
PARTIAL = ".partial.jsonl"  # a table is written from it when all answers are there


@dataclass(frozen=True)
class Entry:
    """A record of the input.

    Attributes:
        row: what is written again; the fields of a record, or the text that is none.
        prompt: what is asked.
        fault: why it cannot be; None if it can.
    """

    row: Row
    prompt: Prompt
    fault: Fault | None = None

    def with_answer(self, completion: str | None, remarks: Mapping[str, Any] | None = None) -> Row:
        """The record as the output has it, with what its task remarks on the answer."""
        told = {"error": str(self.fault)} if self.fault else remarks or {}
        return {**self.row, "completion": completion, **told}


def run(
    target: Target,
    input: str,
    output: str,
    overrides: Iterable[str] = (),
    overwrite: bool = False,
    resume: bool = False,
    on_error: OnError = "stop",
) -> int:
    """Write every record again with its `completion`, in order.

    Args:
        target: run folder, adapter, checkpoint directory, hub name or `nano`.
        input: records in any known format, with or without answers: JSONL, JSON, CSV, Parquet, a folder of these, or a
            data set of the hub.
        output: `.csv` or `.parquet`, written at the end from a JSONL file beside it; anything else is JSONL.
        overrides: `section.setting=value` texts; `data.columns` and `data.encoding` say how the input is read.
        overwrite: replace an output that is there already.
        resume: go on after the records that an output cut off earlier holds.
        on_error: `stop` at records that cannot be answered, before any is; or `record` them: they get an `error` in
            place of a completion.

    Returns:
        The number of records.

    Raises:
        UserError: malformed records, a prompt too long (told before any is answered), or an output that exists or is
            of another input.
    """
    resolved = resolve(target, overrides)
    destination = Path(output)
    check_destination(destination, input, overwrite or resume)
    entries = entries_of(resolved, input)
    faults = [
        fault
        for fault in (entry.fault for entry in entries)
        if fault and (on_error == "stop" or not fault.is_of_one_record)
    ]
    if faults:
        raise UserError(explain(faults, "answer the others with --on-error record"))
    is_table = destination.suffix.lower() in TABLES
    working = destination.with_name(destination.name + PARTIAL) if is_table else destination
    if resume and is_table and destination.exists() and not working.exists():
        raise UserError(f"--resume: {output} is whole already. To answer again, add --overwrite instead.")
    done = finished(working, entries) if resume else 0
    model, _ = resolved.load()
    try:
        with working.open("a" if resume else "w", encoding="utf-8") as file:
            answer(resolved, model, entries, done, file)
        if is_table:
            with replacing(destination) as temporary:
                write_table([row for _, row in read_json_lines(working)], temporary, destination.suffix.lower())
            working.unlink()
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}. What is in it stays.") from error
    return len(entries)


def entries_of(resolved: ResolvedModel, input: str) -> list[Entry]:
    """The records of the input, with what is wrong with them: no question, or one that the model cannot take.

    Raises:
        UserError: no such file or model.
    """
    recipe, tokenizer, limit = resolved.recipe, resolved.tokenizer, resolved.limit
    entries = []
    for found in read_questions(input, recipe.data.columns, recipe.data.encoding):
        if isinstance(found, Fault):
            row = found.record if isinstance(found.record, dict) else {"record": found.record}
            entries.append(Entry(as_json(row), "", found))
            continue
        try:
            encode_prompts(tokenizer, [found.prompt], limit, recipe.generation.longest, ["the prompt"])
            fault = None
        except UserError as error:
            fault = Fault(found.source.file, found.source.line, "prompt", str(error))
        entries.append(Entry(as_json(found.row), found.prompt, fault))
    return entries


def as_json(row: Row) -> Row:
    """A row as it comes back from the file that it is written to."""
    again: Row = json.loads(json.dumps(row, default=str))
    return again


def answer(resolved: ResolvedModel, model: Model, entries: Sequence[Entry], done: int, file: TextIO) -> None:
    """Append the records from number `done` on, as their answers come, with how fast they do and how long it takes."""
    recipe, tokenizer, task = resolved.recipe, resolved.tokenizer, resolved.task
    window = recipe.generation.batch_size * BATCHES_PER_WINDOW
    tokens, start = 0, time.perf_counter()
    with tqdm(total=len(entries), initial=done, desc="answering", unit="record") as bar:
        for first in range(done - done % window, len(entries), window):  # windows are the same after a --resume
            seed_everything(recipe.seed + first // window)
            numbers = range(first, min(first + window, len(entries)))
            # Answered, or never to be, but not all before it.
            waiting = {number: entries[number].with_answer(None) for number in numbers if entries[number].fault}
            asked = [number for number in numbers if not entries[number].fault]
            following = write_ready(file, waiting, first, done)
            prompts = [entries[number].prompt for number in asked]
            for index, text in converse(Engine(model, tokenizer), prompts, recipe.generation, task.reply):
                entry = entries[asked[index]]
                waiting[asked[index]] = entry.with_answer(text, task.remarks(entry.prompt, text))
                tokens += len(plain_ids(tokenizer, text))
                following = write_ready(file, waiting, following, done)
                bar.set_postfix_str(f"{tokens / (time.perf_counter() - start):.0f} tokens/s", refresh=False)
                bar.update(asked[index] >= done)
            bar.update(sum(number >= done for number in numbers if entries[number].fault))


def write_ready(file: TextIO, waiting: dict[int, Row], following: int, done: int) -> int:
    """Write the records that are next in order, from `done` on; the number of the first that is yet to come."""
    while following in waiting:
        row = waiting.pop(following)
        if following >= done:
            file.write(as_line(row) + "\n")
        following += 1
    file.flush()
    return following


def as_line(row: Row) -> str:
    """A record as JSON; halves of characters, which are no text, are escaped."""
    text = json.dumps(row, ensure_ascii=False)
    return text if text.isascii() or _HALF.search(text) is None else json.dumps(row)


def write_table(rows: Sequence[Row], file: Path, suffix: str) -> None:
    """Records as CSV or Parquet. Columns are all fields in the order in which they come; in CSV, lists are JSON.

    In Parquet, values are JSON where they are of several kinds, or of one that it has no form for.

    Raises:
        UserError: the library for Parquet is missing.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    if suffix == ".parquet":
        pyarrow, parquet = arrow()
        parquet.write_table(pyarrow.table({name: column(values) for name, values in columns.items()}), file)
        return
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(zip(*(map(as_cell, values) for values in columns.values()), strict=True))


def column(values: Sequence[Any]) -> Any:
    """One column of a Parquet file."""
    pyarrow, parquet = arrow()
    try:
        found = pyarrow.array(values)
        parquet.write_table(pyarrow.table({"": found}), pyarrow.BufferOutputStream())
        return found
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        cells = [None if value is None else as_cell(value) for value in values]
        return pyarrow.array([cell and cell.encode("utf-8", "backslashreplace").decode() for cell in cells])


def as_cell(value: Any) -> str:
    """A value as a text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def arrow() -> tuple[Any, Any]:
    """pyarrow, and its part for Parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("--output: Parquet is written by pyarrow: pip install 'glmtune[data]'") from None
    return pyarrow, parquet


def check_destination(destination: Path, input: str, may_exist: bool) -> None:
    """See whether the output can be written.

    Raises:
        UserError: it cannot, or something is there.
    """
    check_output(str(destination))
    if destination.suffix.lower() == ".parquet":
        arrow()
    if destination.exists() and Path(input).exists() and destination.samefile(input):
        raise UserError(f"--output {destination}: is the input, too. Choose another name.")
    if Path(input).is_dir() and Path(input).resolve() in destination.resolve().parents:
        raise UserError(f"--output {destination}: is in the folder of the input, of which it would become a part.")
    partial = destination.with_name(destination.name + PARTIAL)
    for place in (destination, partial):
        if place.is_file() and place.stat().st_size and not may_exist:
            raise UserError(
                f"--output {destination}: {'exists' if place == destination else 'was begun'} already. Choose another "
                "name, go on with it (--resume), or add --overwrite."
            )


def finished(working: Path, entries: Sequence[Entry]) -> int:
    """How many records an output holds; a last line that was cut off is taken away.

    Raises:
        UserError: it was made of another input.
    """
    if not working.is_file():
        return 0
    content = working.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with working.open("r+b") as file:
            file.truncate(len(whole))
    count = 0
    for (number, written), entry in zip(read_json_lines(working), entries, strict=False):
        own = {name: value for name, value in entry.row.items() if name not in ADDED}
        if own != {name: written[name] for name in own if name in written}:
            raise UserError(
                f"--resume: line {number} of {working} is not that of the input. Was it made of another file? "
                "Choose another name."
            )
        count = number
    if len(whole.splitlines()) > len(entries):
        raise UserError(f"--resume: {working} has more records than the input. Choose another name.")
    return count

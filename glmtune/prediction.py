"""Records answered one by one, written in their order as the answers come, and gone on with after a stop."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

from tqdm import tqdm

from glmtune.cluster import Asked, Cluster, Workers, answer_window
from glmtune.messages import Prompt
from glmtune.records import Fault, Row, arrow, explain, read_questions, until_many
from glmtune.records.output import Output
from glmtune.records.questions import Question
from glmtune.records.remote import RemoteOutput, fetched
from glmtune.records.writing import as_json, as_line, read_given, strict
from glmtune.resolution import ResolvedModel
from glmtune.runtime import UserError
from glmtune.tasks import check_choice

if TYPE_CHECKING:
    from glmtune.inference.choosing import Choice
    from glmtune.inference.conversation import Exchange
    from glmtune.inference.engine import Engine

T = TypeVar("T")

# What is added to a record, beside what it has.
ADDED = ("completion", "finish_reason", "completion_tool_calls", "refusal", "error")
OnError = Literal["stop", "record"]
# Records are answered a window at a time, so that a resumed prediction answers in the same company as one in one go.
BATCHES_PER_WINDOW = 8


@dataclass(frozen=True)
class Names:
    """What the fields are called that are added: as `ADDED` where no record has one of these, else `completion_2`, ...

    Attributes:
        taken: the fields that records have.
    """

    taken: frozenset[str] = frozenset()

    @cached_property
    def suffix(self) -> str:
        """What stands behind all names of `ADDED`, so that they are told to belong together."""
        suffixes = ("", *(f"_{number}" for number in range(2, len(self.taken) + 3)))
        return next(suffix for suffix in suffixes if self.taken.isdisjoint(name + suffix for name in ADDED))

    def of(self, name: str) -> str:
        """Return the name of a field that no record has."""
        if name in ADDED:
            return name + self.suffix
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        return next(free for free in itertools.chain((name,), numbered) if free not in self.taken)


@dataclass(frozen=True)
class Entry:
    """A record of the input.

    Attributes:
        row: what is written again; the fields of a record, or the text that is none.
        prompt: what is asked.
        fault: why it cannot be; None if it can.
        tools: definitions of the tools that it offers; none where those of the task are.
    """

    row: Row
    prompt: Prompt
    fault: Fault | None = None
    tools: Sequence[dict[str, Any]] = ()

    def with_answer(
        self, fields: Sequence[str], names: Names, choice: Choice, told: Mapping[str, float | str | None]
    ) -> Row:
        """Return the record as the output has it: with its answer, and what its task tells of that.

        Args:
            fields: that every record gets, null where they hold nothing.
            names: what these are called.
            choice: the answer, and how it was chosen.
            told: of the answer, by name.
        """
        exchange = choice.exchange
        answer: Row = {"completion": exchange.text, "finish_reason": exchange.completion.finish_reason}
        if exchange.completion.finish_reason == "tool_calls":
            answer["completion_tool_calls"] = exchange.tool_calls
        if exchange.refusal is not None:
            answer["refusal"] = exchange.refusal
        answer |= {"votes": choice.votes, "sampled_tokens": choice.num_tokens} if "votes" in fields else {}
        return self.with_added({**dict.fromkeys(fields), **told, **answer}, names)

    def with_fault(self, fields: Sequence[str], names: Names) -> Row:
        """Return the record as the output has it if it cannot be asked."""
        return self.with_added({**dict.fromkeys(fields), "error": str(self.fault)}, names)

    def with_added(self, added: Row, names: Names) -> Row:
        """Return the record with what is added to it behind what was given, which stays as it is."""
        return {**self.row, **{names.of(name): value for name, value in added.items()}}


def predict(
    resolved: ResolvedModel,
    input: str,
    output: str | Path,
    overwrite: bool = False,
    resume: bool = False,
    on_error: OnError = "stop",
    safe_cells: bool = False,
    cluster: Cluster | None = None,
) -> int:
    """Write every record of a file again with its `completion`, in order; return their number.

    Args:
        resolved: who answers.
        input: records in any known format, here or in object storage (`s3://...`).
        output: here or there. `.jsonl` grows as the answers come, and so does a file without a suffix; `.json`, `.csv`,
            `.tsv`, `.parquet`, `.arrow` and `.feather` are written at the end from a JSONL file beside them. From
            tables to tables, columns keep their types.
        overwrite: replace an output that is there already.
        resume: go on after the records that an output cut off earlier holds.
        on_error: `stop` at records that cannot be answered, before any is; or `record` them: they get an `error` in
            place of a completion.
        safe_cells: in CSV, put a quotation mark (') before what a spreadsheet would run as a formula; else it is told.
        cluster: whose workers answer; None: this process does. The answers are the same.

    Raises:
        UserError: malformed records, a prompt too long (told before any is answered), an output that exists or is of
            another input, or a cluster that cannot be asked.
    """
    check_choice(resolved.task, resolved.recipe.generation)
    place = RemoteOutput.at(output)
    place.check(input, overwrite or resume)
    if cluster is not None:
        cluster.check()
    data = resolved.recipe.data
    with fetched(input) as file:
        questions = read_questions(file, data.columns, data.encoding, data.join_turns)
        found = list(until_many(questions) if on_error == "stop" else questions)
        check_faults([one for one in found if isinstance(one, Fault)], on_error)
        with nullcontext() if cluster is None else cluster.join() as workers:
            return write_answers(resolved, found, file, place, resume, on_error, safe_cells, workers)


def write_answers(
    resolved: ResolvedModel,
    found: Sequence[Question | Fault],
    input: str,
    place: Output,
    resume: bool,
    on_error: OnError,
    safe_cells: bool,
    workers: Workers | None,
) -> int:
    """Do the rest of `predict`, with what was found in the input: answer it and write it."""
    from glmtune.evaluation.report import explain_cut_off  # and torch, when paths and records are known to be right
    from glmtune.inference.engine import Engine

    recipe, output = resolved.recipe, place.named
    entries = [entry_of(one, resolved) for one in found]
    check_faults([entry.fault for entry in entries if entry.fault], on_error)
    table = read_given(input, place.suffix)
    if table is not None and len(table) != len(entries):
        raise UserError(f"--input {input}: has changed while it was read. Try again.")
    if place.suffix not in arrow.SUFFIXES and (odd := sum(strict(entry.row) != entry.row for entry in entries)):
        warnings.warn(
            f"{odd:,} {'record holds' if odd == 1 else 'records hold'} NaN or Infinity, which JSON does not "
            "have; these are written as texts.",
            stacklevel=2,
        )
    fields = fields_added(resolved, entries, on_error)
    done = place.count_done([entry.row for entry in entries]) if resume else 0
    columns = [] if table is None else table.column_names
    names = Names(frozenset((*columns, *(name for entry in entries for name in entry.row))))
    if names.suffix:
        already = " and ".join(f"'{name}'" for name in ADDED if name in names.taken)
        warnings.warn(
            f"{input}: records have {already} already, which stays; what is added is called {names.of('completion')}, "
            f"{names.of('finish_reason')} and so on.",
            stacklevel=2,
        )
    samples = recipe.generation.num_samples
    window = max(1, recipe.generation.batch_size * BATCHES_PER_WINDOW // samples)  # records
    first = done - done % window  # windows are the same after a --resume
    asked = [
        Asked(number * samples + sample, entry.prompt, entry.tools)
        for number, entry in enumerate(entries[first:], start=first)
        if not entry.fault
        for sample in range(samples)
    ]
    if workers is None:
        answers = answer_here(resolved, Engine(*resolved.load(), resolved.limit), asked, window * samples)
    else:
        answers = begun(workers.answer(resolved, recipe.generation.sampled, asked, window * samples))
    try:
        with place.open(resume) as file:
            cut = write_in_order(resolved, answers, entries, fields, names, done, file)
        formulas = place.finish([entry.row for entry in entries], table, safe_cells)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}. What is in it stays.") from error
    if said := explain_cut_off({"n": len(entries) - done, "finish_reasons": {"length": cut}}):
        warnings.warn(f"{said}; {names.of('finish_reason')} marks them with 'length'.", stacklevel=2)
    if formulas.count and not safe_cells:
        warnings.warn(
            f"{output}: {formulas}, which a spreadsheet would run. To have texts, add --overwrite --safe-cells.",
            stacklevel=2,
        )
    return len(entries)


def check_faults(faults: Sequence[Fault], on_error: OnError) -> None:
    """See whether records can be answered in spite of what is wrong with some.

    Raises:
        UserError: all that is wrong; with `record`, only what is wrong with whole files.
    """
    if fatal := [fault for fault in faults if on_error == "stop" or not fault.is_of_one_record]:
        raise UserError(explain(fatal, "answer the others with --on-error record"))


def entry_of(found: Question | Fault, resolved: ResolvedModel) -> Entry:
    """Return a record of the input, with what is wrong with it: no question, or one that the model cannot take."""
    from glmtune.inference.prompts import encode_within

    if isinstance(found, Fault):
        row = found.record if isinstance(found.record, dict) else {"record": found.record}
        return Entry(as_json(row), "", found)
    tools = found.tools or [tool.definition() for tool in resolved.task.tools]
    least, fault = resolved.recipe.generation.max_new_tokens or 1, None
    try:
        encode_within(resolved.tokenizer, found.prompt, tools, resolved.limit, least, "the prompt")
    except UserError as error:
        fault = Fault(found.source.file, found.source.line, "prompt", str(error))
    return Entry(as_json(found.row), found.prompt, fault, found.tools)


def fields_added(resolved: ResolvedModel, entries: Sequence[Entry], on_error: OnError) -> list[str]:
    """Return what every record of the output has beside what was given, so that all lines have the same fields."""
    task = resolved.task
    asked = next((entry for entry in entries if not entry.fault), None)
    calls = ["completion_tool_calls", "refusal"] if task.tools or any(entry.tools for entry in entries) else []
    errors = ["error"] if on_error == "record" else []
    chosen = ["votes", "sampled_tokens"] if resolved.recipe.generation.num_samples > 1 else []
    return ["completion", "finish_reason", *calls, *chosen, *errors, *(task.tell(asked.prompt, "") if asked else ())]


def begun(answers: Iterator[T]) -> Iterator[T]:
    """Return the same answers once the first is there, so that nothing is overwritten where none can be had."""
    first = list(itertools.islice(answers, 1))
    return itertools.chain(first, answers)


def answer_here(
    resolved: ResolvedModel, engine: Engine, asked: Sequence[Asked], window: int
) -> Iterator[tuple[int, Exchange]]:
    """Yield (number of a question, its answer) as this process has them, a window of numbers at a time."""
    from glmtune.inference.conversation import Conversation

    recipe = resolved.recipe
    conversation = Conversation.about(resolved.task, engine)
    for _, group in itertools.groupby(asked, lambda one: one.number // window):
        yield from answer_window(conversation, recipe.generation.sampled, recipe.seed, list(group))


def write_in_order(
    resolved: ResolvedModel,
    answers: Iterator[tuple[int, Exchange]],
    entries: Sequence[Entry],
    fields: Sequence[str],
    names: Names,
    done: int,
    file: TextIO,
) -> int:
    """Append the records from number `done` on, as their answers come; return how many of these were cut off."""
    from glmtune.inference.choosing import choose, in_groups

    generation = resolved.recipe.generation
    # What waits is answered, or never to be, but not all before it is.
    waiting = {
        number: entry.with_fault(fields, names)
        for number, entry in enumerate(entries[done:], start=done)
        if entry.fault
    }
    tokens, cut, start, following = 0, 0, time.perf_counter(), done
    with tqdm(total=len(entries), initial=done, desc="answering", unit="record") as bar:
        bar.update(len(waiting))
        following = write_ready(file, waiting, following)
        for number, exchanges in in_groups(answers, generation.num_samples):
            tokens += sum(len(exchange.completion.token_ids) for exchange in exchanges)
            if number >= done:
                entry = entries[number]
                choice = choose(resolved.task, entry.prompt, exchanges, generation.choose)
                exchange = choice.exchange
                told = resolved.task.tell(entry.prompt, exchange.text, exchange.tool_calls)
                waiting[number] = entry.with_answer(fields, names, choice, told)
                cut += exchange.completion.finish_reason == "length"
                following = write_ready(file, waiting, following)
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - start):.0f} tokens/s", refresh=False)
            bar.update(number >= done)
    return cut


def write_ready(file: TextIO, waiting: dict[int, Row], following: int) -> int:
    """Write the records that are next in order; return the number of the first that is yet to come."""
    while following in waiting:
        file.write(as_line(waiting.pop(following)) + "\n")
        following += 1
    file.flush()
    return following

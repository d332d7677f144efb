"""Everything about records that can be counted: formats, faults, duplicates, leaks, tokens."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from glmtune.config import DataSettings, Recipe
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import IGNORED
from glmtune.data.pieces import can_train_on_all_turns
from glmtune.examples import Example, split_of
from glmtune.inspection.tokens import encode_record, pick_places, place_of, render_record, source_of
from glmtune.records import Fault
from glmtune.records.cleaning import cut_ends, repetitions, unclosed
from glmtune.records.conversations import earlier_questions
from glmtune.records.leaks import leaks, problem_of
from glmtune.records.shares import explain_empty, explain_uneven
from glmtune.runtime import UserError
from glmtune.tasks.instructions import InstructionsSettings

FEW = 2000  # records that need no progress bar


def examine(
    records: Sequence[Example],
    held_out: Sequence[Example],
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
) -> dict[str, Any]:
    """Everything about records that can be read.

    Args:
        records: to learn.
        held_out: to judge by, from a file of their own.
        recipe: with the settings of task and data.
        tokenizer: with its template.
        limit: in tokens.
    """
    task, data = cast(InstructionsSettings, recipe.task), recipe.data
    encoder = Encoder(tokenizer, limit, data.train_on_bos)
    encodings = Lengths(encoder, records)
    records = encodings.records
    formats = Counter(source_of(record).format for record in records)
    double = repetitions(records, "exact")
    near = repetitions(records, "near") if data.deduplicate == "near" else None
    leaked = list(find_leaks(records, held_out))
    faults = [*encodings.refused, *leaked, *find_cut_answers(records, encodings.learned)]
    splits = count_splits(records, held_out, task)
    shown = [records[place] for place in pick_places(len(records))]
    return {
        "format": formats.most_common(1)[0][0] if formats else None,
        "formats": dict(formats.most_common()),
        "records": len(records),
        "faults": [fault.as_dict() for fault in faults],
        "duplicates": len(double),
        "duplicate_places": [pair_of(records, *pair) for pair in double],
        "near_duplicates": None if near is None else len(near),
        "near_duplicate_places": [pair_of(records, *pair) for pair in near or []],
        "leaks": len(leaked),
        "splits": splits,
        "tokens": encodings.figures(records, limit, data.too_long),
        "notes": [
            *find_notes(records, data, can_train_on_all_turns(tokenizer)),
            *notes_on_splits(records, splits, task),
        ],
        "examples": [render_record(encoder, record) for record in shown],
    }


class Lengths:
    """How many tokens records have as they would be learned.

    Attributes:
        records: those that the template takes.
        refused: what it does not take of the others.
        whole, learned: tokens of each of the `records`.
    """

    def __init__(self, encoder: Encoder, records: Sequence[Example]):
        self.records: list[Example] = []
        self.refused: list[Fault] = []
        self.whole: list[int] = []
        self.learned: list[int] = []
        for record in tqdm(records, desc="counting tokens", unit="record", disable=len(records) < FEW):
            try:
                encoding = encode_record(encoder, record)
            except UserError as error:
                source = source_of(record)
                self.refused.append(Fault(source.file, source.line, "prompt", str(error), record.prompt))
                continue
            self.records.append(record)
            self.whole.append(len(encoding["input_ids"]))
            self.learned.append(sum(label != IGNORED for label in encoding["labels"]))

    def figures(self, records: Sequence[Example], limit: int | None, rule: str) -> dict[str, Any]:
        """As the report has them; too long is what has more tokens than `limit`."""
        long = [place for place, count in enumerate(self.whole) if limit is not None and count > limit]
        return {
            "prompt": summarize_counts(
                [whole - learned for whole, learned in zip(self.whole, self.learned, strict=True)]
            ),
            "target": summarize_counts(self.learned),
            "whole": summarize_counts(self.whole),
            "learned": sum(self.learned),
            "total": sum(self.whole),
            "limit": limit,
            "too_long": len(long),
            "too_long_rule": rule,
            "too_long_places": [place_of(records[place]) for place in long],
        }


def pair_of(records: Sequence[Example], place: int, earlier: int) -> dict[str, Any]:
    """Where a record stands, and the earlier one that it repeats."""
    first = source_of(records[earlier])
    return {**place_of(records[place]), "first_file": first.file, "first_line": first.line}


def summarize_counts(counts: Sequence[int]) -> dict[str, float]:
    """Least, greatest, mean and quantiles of some numbers; empty for none."""
    if not counts:
        return {}
    ordered = sorted(counts)
    return {
        "min": ordered[0],
        "median": ordered[(len(ordered) - 1) // 2],
        "p95": ordered[round(0.95 * (len(ordered) - 1))],
        "max": ordered[-1],
        "mean": round(statistics.fmean(ordered), 1),
    }


def count_splits(
    records: Sequence[Example], held_out: Sequence[Example], settings: InstructionsSettings
) -> dict[str, int]:
    """Return how many records would be learned, and how many held out."""
    if settings.held_out_file:
        return {"train": len(records), "held_out": len(held_out)}
    found = Counter(split_of(problem_of(record.question), settings.held_out) for record in records)
    return {"train": found["train"], "held_out": found["held_out"]}


def find_leaks(records: Sequence[Example], held_out: Sequence[Example]) -> Iterator[Fault]:
    """Held-out problems that are learned, too: arithmetic by its normal form, else by text."""
    if not held_out:
        return
    problems = ([problem_of(record.question) for record in part] for part in (records, held_out))
    for judged, learned in leaks(*problems):
        own, other = source_of(held_out[judged]), source_of(records[learned])
        yield Fault(
            own.file,
            own.line,
            "prompt",
            f"leak: {other.file}, line {other.line} asks the same, so that the model would be judged by what it "
            "learned. Delete one of them.",
        )


def find_cut_answers(records: Sequence[Example], learned: Sequence[int]) -> Iterator[Fault]:
    """Answers that a limit of length has cut off, in characters or in tokens."""
    targets = [record.target for record in records]
    by_length = {"characters": cut_ends(targets), "tokens": cut_ends(targets, learned.__getitem__)}
    told: set[int] = set()
    for unit, places in by_length.items():
        for place in sorted(set(places) - told):
            count = len(targets[place]) if unit == "characters" else learned[place]
            yield Fault(
                source_of(records[place]).file,
                source_of(records[place]).line,
                "target",
                f"cut off: the target has {count} {unit}, the most of all, as {len(places) - 1} others have, and ends "
                f"in mid-sentence (...{targets[place][-20:]!r}). A model that learns this never learns to stop.",
            )
        told.update(places)


def find_notes(records: Sequence[Example], settings: DataSettings, learns_all: bool) -> Iterator[str]:
    """Yield what is no fault, but good to know."""
    found: dict[str, list[Example]] = {}
    for record in records:
        for note in record.notes:
            found.setdefault(f"the conversation {note}", []).append(record)
        if unclosed(record.target):
            found.setdefault("a block of code in the target is not closed: is it cut off?", []).append(record)
    for note, those in found.items():
        yield f"{len(those):,} {'record' if len(those) == 1 else 'records'}, the first {source_of(those[0])}: {note}"
    if rejected := sum(record.rejected is not None for record in records):
        yield (
            f"{rejected:,} records have a 'rejected' answer; objective.name=sft learns the chosen one alone, "
            "objective.name=dpo compares them."
        )
    if worse := sum(is_bad_alone(record) for record in records):
        yield f"{worse:,} records are bad answers by their label, which only objective.loss=kto learns from."
    if same := sum(record.target.split() == (record.rejected or "").split() != [] for record in records):
        yield f"{same:,} records have the same answer as 'chosen' and 'rejected', which objective.name=dpo refuses."
    last_alone = settings.turns == "last" or (settings.turns == "all" and not learns_all)
    if last_alone and any(earlier_questions(record.prompt) for record in records):
        other = "all" if learns_all else "each"
        yield f"Of conversations, the last answer is learned; data.turns={other} learns every one."


def is_bad_alone(record: Example) -> bool:
    """Return whether a record is an answer that is not to be given, and no better one is known."""
    return record.rejected is not None and not record.target and not record.tool_calls


def notes_on_splits(
    records: Sequence[Example], splits: dict[str, int], settings: InstructionsSettings
) -> Iterator[str]:
    """Yield what is to be known of the shares that are learned and held out."""
    if records and not settings.held_out_file:
        problems = [problem_of(record.question) for record in records]
        for explain in (explain_empty, explain_uneven):
            if said := explain(problems, splits, settings.held_out):
                yield said
                return

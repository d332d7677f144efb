"""`glmtune data inspect`: what is in files of records, what is wrong with them, and what a model would learn."""

from __future__ import annotations

import html
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from glmtune.config import DataSettings, Recipe, make_recipe, with_overrides
from glmtune.data.encoding import IGNORED, Encoder, Encoding
from glmtune.data.rendering import can_train_on_all_turns, control_tokens
from glmtune.examples import split_of
from glmtune.models.templates import adopt
from glmtune.records import SHOWN, Fault, Record, read
from glmtune.records.cleaning import cut_ends, leaks, unclosed
from glmtune.resolution import resolve
from glmtune.runtime import UserError, check_output, replacing, write_json
from glmtune.tasks.instructions import InstructionsSettings, example_from, problem_of, repeated

RENDERED = 3  # records that are shown with their tokens
MOST_TOKENS = 400  # of each that are shown
FEW = 2000  # records that need no progress bar
LEARNED, CONTROL = "black on green", "dim"  # how tokens look


def run(
    files: Sequence[str],
    output: str | None = None,
    page: str | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Read records as a training would, and report on them.

    Args:
        files: files, folders, or data sets of the hub.
        output: JSON file for the report.
        page: HTML file for the report.
        model: whose tokenizer and template count: anything that can be loaded; default: `model.path`, which is nano.
        overrides: `data.columns.prompt=...`, `task.held_out_file=...`, `data.max_length=...` and so on.

    Returns:
        `format, records, faults, duplicates, tokens`, and what else is known. It is whole if `faults` is empty.

    Raises:
        UserError: there is no such file, model or setting.
    """
    if not files:
        raise UserError("Name a file, a folder, or OWNER/NAME of the hub: glmtune data inspect FILE")
    overrides = [*overrides, *([f"model.path={model}"] if model else [])]
    recipe = make_recipe(with_overrides({"task": {"name": "instructions", "file": files[0]}}, overrides))
    task = recipe.task
    if not isinstance(task, InstructionsSettings):
        raise UserError(f"task.name={task.name}: files are inspected for task.name=instructions only.")
    if output:
        check_output(output)
    tokenizer, limit = reader_of(recipe)
    records, faults = gather(files, recipe.data)
    held_out, more = gather([task.held_out_file] if task.held_out_file else [], recipe.data)
    report = examine(records, held_out, recipe, tokenizer, limit)
    report["faults"] = [fault.as_dict() for fault in [*faults, *more]] + report["faults"]
    report = {"files": list(files), "model": recipe.model.path, **report}
    if output:
        write_json(output, report)
    if page:
        with replacing(page) as temporary:
            temporary.write_text(as_page(report), encoding="utf-8")
    return report


def reader_of(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer of the recipe's model, with the template that would be learned, and how many tokens it can take."""
    resolved = resolve(recipe.model.path)
    if recipe.data.template is not None:
        adopt(resolved.tokenizer, recipe.data.template)
    return resolved.tokenizer, recipe.data.max_length or resolved.limit


def gather(files: Iterable[str], settings: DataSettings) -> tuple[list[Record], list[Fault]]:
    """What files hold: records, and faults."""
    records: list[Record] = []
    faults: list[Fault] = []
    for file in files:
        for entry in read(file, settings.columns, settings.encoding, "each" if settings.turns == "each" else "last"):
            if isinstance(entry, Fault):
                faults.append(entry)
            else:
                records.append(entry)
    return records, faults


# Figures


def examine(
    records: Sequence[Record],
    held_out: Sequence[Record],
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
    encodings = Lengths(encoder, records, data.turns == "all")
    formats = Counter(record.format for record in records)
    double = repeated(records, "exact")
    near = repeated(records, "near") if data.deduplicate == "near" else None
    leaked = list(leak_faults(records, held_out))
    splits = splits_of(records, held_out, task)
    return {
        "format": formats.most_common(1)[0][0] if formats else None,
        "formats": dict(formats.most_common()),
        "records": len(records),
        "faults": [fault.as_dict() for fault in [*leaked, *cut_faults(records, encodings.learned)]],
        "duplicates": len(double),
        "duplicate_places": [pair_of(records, *pair) for pair in double],
        "near_duplicates": None if near is None else len(near),
        "near_duplicate_places": [pair_of(records, *pair) for pair in near or []],
        "leaks": len(leaked),
        "splits": splits,
        "tokens": encodings.figures(records, limit, data.too_long),
        "notes": list(notes_on(records, data, splits, can_train_on_all_turns(tokenizer))),
        "examples": [rendered(encoder, records[place], data.turns == "all") for place in shown(len(records))],
    }


class Lengths:
    """How many tokens records have as they would be learned.

    Attributes:
        whole, learned: of each record.
    """

    def __init__(self, encoder: Encoder, records: Sequence[Record], train_on_all_turns: bool):
        self.whole: list[int] = []
        self.learned: list[int] = []
        for record in tqdm(records, desc="counting tokens", unit="record", disable=len(records) < FEW):
            encoding = encoder(example_from(record, train_on_all_turns))
            self.whole.append(len(encoding["input_ids"]))
            self.learned.append(sum(label != IGNORED for label in encoding["labels"]))

    def figures(self, records: Sequence[Record], limit: int | None, rule: str) -> dict[str, Any]:
        """As the report has them; too long is what has more tokens than `limit`."""
        long = [place for place, count in enumerate(self.whole) if limit is not None and count > limit]
        return {
            "prompt": spread([whole - learned for whole, learned in zip(self.whole, self.learned, strict=True)]),
            "target": spread(self.learned),
            "whole": spread(self.whole),
            "learned": sum(self.learned),
            "total": sum(self.whole),
            "limit": limit,
            "too_long": len(long),
            "too_long_rule": rule,
            "too_long_places": [place_of(records[place]) for place in long],
        }


def place_of(record: Record) -> dict[str, Any]:
    """Where a record stands."""
    return {"file": record.file, "line": record.line}


def pair_of(records: Sequence[Record], place: int, earlier: int) -> dict[str, Any]:
    """Where a record stands, and the earlier one that it repeats."""
    first = records[earlier]
    return {**place_of(records[place]), "first_file": first.file, "first_line": first.line}


def spread(counts: Sequence[int]) -> dict[str, float]:
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


def splits_of(records: Sequence[Record], held_out: Sequence[Record], settings: InstructionsSettings) -> dict[str, int]:
    """How many records would be learned, and how many held out."""
    if settings.held_out_file:
        return {"train": len(records), "held_out": len(held_out)}
    found = Counter(split_of(problem_of(record.prompt), settings.held_out) for record in records)
    return {"train": found["train"], "held_out": found["held_out"]}


def leak_faults(records: Sequence[Record], held_out: Sequence[Record]) -> Iterator[Fault]:
    """Held-out problems that are learned, too: arithmetic by its normal form, else by text."""
    if not held_out:
        return
    problems = ([problem_of(record.prompt) for record in part] for part in (records, held_out))
    for judged, learned in leaks(*problems):
        own, other = held_out[judged], records[learned]
        yield Fault(
            own.file,
            own.line,
            "prompt",
            f"leak: {other.file}, line {other.line} asks the same, so that the model would be judged by what it "
            "learned. Delete one of them.",
        )


def cut_faults(records: Sequence[Record], learned: Sequence[int]) -> Iterator[Fault]:
    """Answers that a limit of length has cut off, in characters or in tokens."""
    targets = [record.target for record in records]
    by_length = {"characters": cut_ends(targets), "tokens": cut_ends(targets, learned.__getitem__)}
    told: set[int] = set()
    for unit, places in by_length.items():
        for place in sorted(set(places) - told):
            count = len(targets[place]) if unit == "characters" else learned[place]
            yield Fault(
                records[place].file,
                records[place].line,
                "target",
                f"cut off: the target has {count} {unit}, the most of all, as {len(places) - 1} others have, and ends "
                f"in mid-sentence (...{targets[place][-20:]!r}). A model that learns this never learns to stop.",
            )
        told.update(places)


def notes_on(
    records: Sequence[Record], settings: DataSettings, splits: dict[str, int], learns_all: bool
) -> Iterator[str]:
    """What is no fault, but good to know."""
    found: dict[str, list[Record]] = {}
    for record in records:
        for note in record.notes:
            found.setdefault(f"the conversation {note}", []).append(record)
        if unclosed(record.target):
            found.setdefault("a block of code in the target is not closed: is it cut off?", []).append(record)
    for note, those in found.items():
        yield f"{len(those):,} records, the first {those[0].file}, line {those[0].line}: {note}"
    last_alone = settings.turns == "last" or (settings.turns == "all" and not learns_all)
    if last_alone and any(example_from(record, True).train_on_all_turns for record in records):
        other = "all" if learns_all else "each"
        yield f"Of conversations, the last answer is learned; data.turns={other} learns every one."
    for split, count in splits.items():
        if records and not count:
            yield (
                f"No record falls into the {split} split ({len(records):,} in all). To train on this file alone, add "
                "records, try task.held_out=0.3, or name a task.held_out_file."
            )


# Records with their tokens


def shown(count: int) -> list[int]:
    """Places of the records that are shown: the first, the middle one and the last."""
    return sorted({0, count // 2, count - 1})[-min(RENDERED, count) :] if count else []


def rendered(encoder: Encoder, record: Record, train_on_all_turns: bool) -> dict[str, Any]:
    """A record as the model reads it: `[text, learned, control]` of each token, the middle left out of long ones."""
    encoding = encoder(example_from(record, train_on_all_turns))
    tokens = [list(token) for token in tokens_of(encoder.tokenizer, encoding)]
    left_out = len(tokens) - MOST_TOKENS
    if left_out > 0:
        half = MOST_TOKENS // 2
        tokens = [*tokens[:half], [f" [... {left_out} tokens ...] ", False, True], *tokens[-half:]]
    return {**place_of(record), "tokens": tokens}


def tokens_of(tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> Iterator[tuple[str, bool, bool]]:
    """(text, learned, control) of each token, or of several that are one character together."""
    controls = control_tokens(tokenizer)
    ids, labels = encoding["input_ids"], encoding["labels"]
    start, before = 0, ""  # a run of tokens between control tokens, and its text so far
    for place, token in enumerate(ids):
        name, learned = str(tokenizer.convert_ids_to_tokens(token)), labels[place] != IGNORED
        if name in controls:
            yield name, learned, True
            start, before = place + 1, ""
            continue
        text = str(tokenizer.decode(ids[start : place + 1]))
        following = place + 1 < len(ids) and (labels[place + 1] != IGNORED) == learned
        if text.endswith("\ufffd") and following:
            continue  # the rest of the character is still to come
        yield (text[len(before) :] if text.startswith(before) else name), learned, False
        before = text


# The terminal


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report."""
    for table in tables(report):
        console.print(table)
    for line in remarks(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for example in report["examples"]:
        title = Text.assemble("\n", (where(example), "bold"), ", learned is what is coloured:")
        console.print(title, soft_wrap=True)
        text = Text()
        for piece, learned, control in example["tokens"]:
            text.append(visible(piece), LEARNED if learned else CONTROL if control else "")
        console.print(text, soft_wrap=True)


def tables(report: dict[str, Any]) -> Iterator[Table]:
    """Counts, and lengths."""
    counts = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    for name, value in figures(report):
        counts.add_row(name, value)
    yield counts
    if report["records"]:
        lengths = Table("tokens", *LENGTHS, box=box.SIMPLE_HEAD, pad_edge=False)
        for part in PARTS:
            lengths.add_row(part, *(f"{report['tokens'][part][name]:,}" for name in LENGTHS))
        yield lengths


PARTS = ("prompt", "target", "whole")
LENGTHS = ("min", "median", "p95", "max", "mean")


def figures(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what can be counted."""
    tokens, splits = report["tokens"], report["splits"]
    formats = ", ".join(f"{name} ({count:,})" for name, count in report["formats"].items())
    near = report["near_duplicates"]
    limit = f" (the limit is {tokens['limit']:,})" if tokens["limit"] else ""
    return [
        ("files", ", ".join(report["files"])),
        ("format", formats or "none is recognised"),
        ("records", f"{report['records']:,}"),
        ("faults", f"{len(report['faults']):,}"),
        ("to learn / held out", f"{splits['train']:,} / {splits['held_out']:,}"),
        ("duplicates", f"{report['duplicates']:,}"),
        ("near duplicates", "not looked for (data.deduplicate=near)" if near is None else f"{near:,}"),
        ("tokens by", report["model"]),
        ("longer than the model takes", f"{tokens['too_long']:,}{limit}"),
    ]


def remarks(report: dict[str, Any]) -> Iterator[str]:
    """Faults, repetitions, long records and notes, the first of each, one a line."""
    lines = [f"{where(fault)}: {fault['message']}" for fault in report["faults"]]
    yield from first_of("Faults", lines)
    for kind in ("duplicate", "near_duplicate"):
        pairs = report[f"{kind}_places"]
        title = kind.replace("_", " ").capitalize() + "s"
        yield from first_of(title, [f"{where(p)} repeats {p['first_file']}, line {p['first_line']}" for p in pairs])
    rule = report["tokens"]["too_long_rule"]
    title = f"Too long (data.too_long={rule}{': a training stops; drop or truncate them' if rule == 'stop' else ''})"
    yield from first_of(title, [where(p) for p in report["tokens"]["too_long_places"]])
    yield from first_of("Notes", report["notes"])


def first_of(title: str, lines: Sequence[str]) -> Iterator[str]:
    """A title, the first lines, and how many more there are."""
    if lines:
        yield f"{title}:"
        yield from (f"  {visible(line).rstrip()}" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            yield f"  ... and {len(lines) - SHOWN:,} more; all of them are in the report (--output)."


def where(place: dict[str, Any]) -> str:
    """The file and line of a fault or a record."""
    return place["file"] if place["line"] is None else f"{place['file']}, line {place['line']}"


def visible(text: str) -> str:
    """A text with line breaks that can be seen, and without codes that terminals obey."""
    shown_breaks = text.replace("\n", "↵\n")
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in shown_breaks)


# The page

STYLE = """
:root { color-scheme: light dark; --line: #8886; --learned: #b7e4c7; --control: #777; }
@media (prefers-color-scheme: dark) { :root { --learned: #1b5e3a; --control: #999; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid var(--line); padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: .75rem; }
pre span { outline: 1px dotted var(--line); }
.learned { background: var(--learned); }
.control { color: var(--control); }
"""


def as_page(report: dict[str, Any]) -> str:
    """A report as an HTML page that needs nothing else."""
    escape = html.escape
    rows = "".join(as_row("td", row) for row in figures(report))
    lengths = ""
    if report["records"]:
        lengths = as_row("th", ["tokens", *LENGTHS])
        for part in PARTS:
            lengths += as_row("td", [part, *(f"{report['tokens'][part][name]:,}" for name in LENGTHS)])
        lengths = f"<table>{lengths}</table>"
    said = escape("\n".join(remarks(report)))
    examples = "".join(
        f"<h2>{escape(where(example))}</h2><pre>{''.join(map(as_span, example['tokens']))}</pre>"
        for example in report["examples"]
    )
    title = escape(", ".join(Path(file).name for file in report["files"]))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>{title}</h1>'
        f"<table>{rows}</table>{lengths}{f'<pre>{said}</pre>' if said else ''}"
        f'<p>Each box is a token; those on <span class="learned">this ground</span> are learned.</p>'
        f"{examples}</body></html>\n"
    )


def as_row(tag: str, cells: Iterable[str]) -> str:
    """A row of a table of the page."""
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def as_span(token: Sequence[Any]) -> str:
    """A token of the page."""
    text, learned, control = token
    kind = " ".join(name for name, given in (("learned", learned), ("control", control)) if given)
    return f'<span class="{kind}">{html.escape(visible(text))}</span>'

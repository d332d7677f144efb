"""`glmtune predict`: answers to a file of prompts, written as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from glmtune.commands.evaluate import check_output, load, recipe_of
from glmtune.config import Recipe
from glmtune.data.encoding import plain_ids
from glmtune.generation.decoding import Prompt, complete, encode_prompts
from glmtune.methods import Model
from glmtune.models import max_length
from glmtune.runtime import UserError, read_json_lines, seed_everything

OnError = Literal["stop", "record"]
# Batches that are sorted by length together. Records are written in order, a window at a time.
BATCHES_PER_WINDOW = 4


def run(
    target: str,
    input: str,
    output: str,
    overrides: list[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_error: OnError = "stop",
) -> int:
    """Write every record again with its `completion`, in order.

    Args:
        target: run folder, adapter, checkpoint directory, hub name or `nano`.
        input: JSONL file of records with `prompt`, a text or a list of messages.
        output: JSONL file to write.
        overrides: `section.setting=value` texts.
        overwrite: replace an output that is there already.
        resume: go on after the records that an output cut off earlier holds.
        on_error: `stop` at a record that cannot be answered, before any is; or `record` it: it gets an `error` in place
            of a completion.

    Returns:
        The number of records.

    Raises:
        UserError: a malformed record, a prompt too long (told before any is answered), or an output that exists or is
            of another input.
    """
    recipe = recipe_of(target, overrides)
    records = [record for _, record in read_json_lines(input)]
    if not records:
        raise UserError(f"{input}: no records")
    faults = [fault(record, f"{input}, line {number}") for number, record in enumerate(records, start=1)]
    if on_error == "stop" and (told := next(filter(None, faults), None)):
        raise UserError(told)
    destination = Path(output)
    check_destination(destination, input, overwrite or resume)
    done = finished(destination, records) if resume else 0
    prompts = [record["prompt"] for record, told in zip(records, faults, strict=True) if told is None]
    model, tokenizer = load(target, recipe, prompts if on_error == "stop" else [], f"{input}, line")
    if on_error == "record":
        limit = max_length(model.config)
        for index, record in enumerate(records):
            faults[index] = faults[index] or unanswerable(tokenizer, record["prompt"], limit, recipe)
    seed_everything(recipe.seed)
    try:
        with destination.open("a" if resume else "w", encoding="utf-8") as file:
            answer(model, tokenizer, records, faults, done, recipe, file)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}. What is in it stays.") from error
    return len(records)


def answer(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[dict[str, Any]],
    faults: Sequence[str | None],
    done: int,
    recipe: Recipe,
    file: TextIO,
) -> None:
    """Append the records from number `done` on, as their answers come, with how fast they do and how long it takes."""
    window = recipe.generation.batch_size * BATCHES_PER_WINDOW
    tokens, start = 0, time.perf_counter()
    with tqdm(total=len(records), initial=done, desc="answering", unit="record") as bar:
        for first in range(done, len(records), window):
            numbers = range(first, min(first + window, len(records)))
            waiting: dict[int, dict[str, Any]] = {  # answered, or never to be, but not all before it
                number: {**records[number], "completion": None, "error": faults[number]}
                for number in numbers
                if faults[number]
            }
            asked = [number for number in numbers if not faults[number]]
            following = write_ready(file, waiting, first)
            for index, text in complete(model, tokenizer, [records[n]["prompt"] for n in asked], recipe.generation):
                waiting[asked[index]] = {**records[asked[index]], "completion": text}
                tokens += len(plain_ids(tokenizer, text))
                following = write_ready(file, waiting, following)
                bar.set_postfix_str(f"{tokens / (time.perf_counter() - start):.0f} tokens/s", refresh=False)
                bar.update()
            bar.update(len(numbers) - len(asked))


def write_ready(file: TextIO, waiting: dict[int, dict[str, Any]], following: int) -> int:
    """Write the records that are next in order; the number of the first that is yet to come."""
    while following in waiting:
        file.write(json.dumps(waiting.pop(following), ensure_ascii=False) + "\n")
        following += 1
    file.flush()
    return following


def check_destination(destination: Path, input: str, may_exist: bool) -> None:
    """See whether the output can be written.

    Raises:
        UserError: it cannot, or something is there.
    """
    check_output(str(destination))
    if destination.exists() and destination.samefile(input):
        raise UserError(f"--output {destination}: is the input, too. Choose another name.")
    if destination.is_file() and destination.stat().st_size and not may_exist:
        raise UserError(
            f"--output {destination}: exists already. Choose another name, go on with it (--resume), or add "
            "--overwrite."
        )


def finished(destination: Path, records: Sequence[dict[str, Any]]) -> int:
    """How many records an output holds; a last line that was cut off is taken away.

    Raises:
        UserError: it was made of another input.
    """
    if not destination.is_file():
        return 0
    content = destination.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with destination.open("r+b") as file:
            file.truncate(len(whole))
    count = 0
    for (number, written), record in zip(read_json_lines(destination), records, strict=False):
        if {**record, "completion": None, "error": None} != {**written, "completion": None, "error": None}:
            raise UserError(
                f"--resume: line {number} of {destination} is not that of the input. Was it made of another file? "
                "Choose another name."
            )
        count = number
    if len(whole.splitlines()) > len(records):
        raise UserError(f"--resume: {destination} has more records than the input. Choose another name.")
    return count


def unanswerable(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, limit: int | None, recipe: Recipe) -> str | None:
    """Why the model cannot take a prompt; None if it can."""
    try:
        encode_prompts(tokenizer, [prompt], limit, recipe.generation.max_new_tokens)
    except UserError as error:
        return str(error)
    return None


def fault(record: dict[str, Any], where: str) -> str | None:
    """What is wrong with a record: where it stands and what; None if it has a usable prompt."""
    prompt = record.get("prompt")
    messages = isinstance(prompt, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in prompt
    )
    if prompt and (isinstance(prompt, str) or messages):
        return None
    return (
        f'{where}: \'prompt\' must be a text, or a list of {{"role", "content"}} messages; '
        f"the record has {', '.join(record) or 'nothing'}"
    )

"""`glmtune predict`: answers to a file of prompts, written as they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glmtune.commands.evaluate import check_output, load, recipe_of
from glmtune.generation.decoding import complete
from glmtune.runtime import UserError, read_json_lines, seed_everything

# Batches that are sorted by length together. Records are written in order, a window at a time.
BATCHES_PER_WINDOW = 4


def run(target: str, input: str, output: str, overrides: list[str] | None = None, overwrite: bool = False) -> int:
    """Write every record again with its `completion`, in order.

    Args:
        target: run folder, adapter, checkpoint directory, hub name or `nano`.
        input: JSONL file of records with `prompt`, a text or a list of messages.
        output: JSONL file to write.
        overrides: `section.setting=value` texts.
        overwrite: replace an output that is there already.

    Returns:
        The number of records.

    Raises:
        UserError: a malformed record, a prompt too long (told before any is answered), or an output that exists.
    """
    recipe = recipe_of(target, overrides)
    records = [checked(record, f"{input}, line {number}") for number, record in read_json_lines(input)]
    if not records:
        raise UserError(f"{input}: no records")
    destination = Path(output)
    check_output(output)
    if destination.exists() and destination.samefile(input):
        raise UserError(f"--output {output}: is the input, too. Choose another name.")
    if destination.is_file() and destination.stat().st_size and not overwrite:
        raise UserError(f"--output {output}: exists already. Choose another name, or add --overwrite.")
    prompts = [record["prompt"] for record in records]
    model, tokenizer = load(target, recipe, prompts, f"{input}, line")
    seed_everything(recipe.seed)

    window = recipe.generation.batch_size * BATCHES_PER_WINDOW
    try:
        with (
            destination.open("w", encoding="utf-8") as file,
            tqdm(total=len(records), desc="answering", unit="record") as bar,
        ):
            for start in range(0, len(records), window):
                asked = prompts[start : start + window]
                waiting: dict[int, str] = {}  # answered, but not all before it
                following = start
                for index, text in complete(model, tokenizer, asked, recipe.generation):
                    waiting[start + index] = text
                    while following in waiting:
                        record = {**records[following], "completion": waiting.pop(following)}
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")
                        following += 1
                    file.flush()
                    bar.update()
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}. What is in it stays.") from error
    return len(records)


def checked(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The record, if it has a usable prompt.

    Raises:
        UserError: says where it stands and what is wrong.
    """
    prompt = record.get("prompt")
    messages = isinstance(prompt, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in prompt
    )
    if not prompt or not (isinstance(prompt, str) or messages):
        raise UserError(
            f'{where}: \'prompt\' must be a text, or a list of {{"role", "content"}} messages; '
            f"the record has {', '.join(record) or 'nothing'}"
        )
    return record

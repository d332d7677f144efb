"""Which examples a template takes; the others are faults of their records, or left out on request."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from glmtune.config import DataSettings
from glmtune.data import DrawnExamples, check_question
from glmtune.data.arrival import sign_conversation
from glmtune.data.forms import fit_to_template
from glmtune.examples import Example
from glmtune.messages import as_messages
from glmtune.records import Fault, explain
from glmtune.records.faults import add_skipped
from glmtune.runtime import UserError


def refusal_of(tokenizer: PreTrainedTokenizerBase, example: Example) -> Fault | None:
    """Return why an example can be neither learned nor asked; None if it can, however long it is.

    Raises:
        UserError: why, of an example that comes from no file.
    """
    try:
        check_question(example, "")
        conversation = [*as_messages(example.prompt), example.answer]
        if tokenizer.chat_template is None:
            fit_to_template(tokenizer, conversation, example.tools)
        else:
            sign_conversation(tokenizer, conversation, example.tools)
    except UserError as error:
        return refused(example, error)
    return None


def refused(example: Example, error: UserError) -> Fault:
    """Return what a template says of a record as the fault of its line.

    Raises:
        UserError: the example comes from no file.
    """
    if example.source is None:
        raise error
    message = str(error).removeprefix(f"{example.source}: ").removeprefix(": ")
    return Fault(example.source.file, example.source.line, "prompt", message, example.prompt)


def accepted(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, settings: DataSettings
) -> Sequence[Example]:
    """Return the examples that a template takes. Of records, the others are written to `FILE.skipped.jsonl`.

    Args:
        examples: records, or what a task draws, which stays as it is.
        tokenizer: with the template.
        settings: `on_error`.

    Raises:
        UserError: some are not taken, and `on_error` says to stop; all of them are told. Or none is left.
    """
    if isinstance(examples, DrawnExamples):
        return examples
    found = [refusal_of(tokenizer, example) for example in examples]
    return without_faulty(examples, found, settings, "that the chat template does not take")


def without_faulty(
    examples: Sequence[Example], found: Sequence[Fault | None], settings: DataSettings, which: str
) -> Sequence[Example]:
    """Return the examples of which nothing is wrong; the others are written to `FILE.skipped.jsonl`.

    Args:
        examples: records.
        found: what is wrong with each; None where nothing is.
        settings: `on_error`.
        which: what a warning says of the faulty ones.

    Raises:
        UserError: some are faulty, and `on_error` says to stop; all of them are told. Or none is left.
    """
    faults = [fault for fault in found if fault is not None]
    if not faults:
        return examples
    if settings.on_error == "stop":
        raise UserError(explain(faults))
    if len(faults) == len(examples):
        raise UserError(f"All of these are records {which}. {explain(faults, '')}")
    by_file: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_file[fault.file].append(fault)
    for file, those in by_file.items():
        place = add_skipped(file, those)
        warnings.warn(f"{file}: {len(those):,} records {which} are left out; see {place}", stacklevel=2)
    return [example for example, fault in zip(examples, found, strict=True) if fault is None]

"""Records are encoded once, all of them before a training starts."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import constants
from tqdm import tqdm

from glmtune.config import DataSettings
from glmtune.data import EncodedDataset, encode
from glmtune.data.acceptance import refused as refused_as_fault
from glmtune.data.cache import ROWS, Rows, key_of, load_cached
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import Encoding
from glmtune.data.pieces import can_train_on_all_turns
from glmtune.examples import Example, Source
from glmtune.records import Fault, explain
from glmtune.records.leaks import plain_text
from glmtune.runtime import UserError

SHOWN = 20  # records that are told one by one


class EncodedTable(EncodedDataset):
    """The encodings of all records that are learned.

    Args:
        parts: all but the last have `ROWS` rows.
        examples: all records that there were. Of these the sources are read: they are no part of the cache, as a file
            may be moved, or grow.
        max_length: in tokens.
    """

    def __init__(self, parts: Sequence[Rows], examples: Sequence[Example], max_length: int | None):
        self.parts, self.max_length = parts, max_length
        self.sources = [example.source for example in examples]
        self.rejected = sum(example.rejected is not None for example in examples)
        self.size = sum(len(part.records) for part in parts)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Encoding:
        index = range(self.size)[index]
        part, row = self.parts[index // ROWS], index % ROWS
        start, end = part.bounds[row : row + 2].tolist()
        return {
            "input_ids": part.ids[start:end].tolist(),
            "labels": part.labels[start:end].tolist(),
            "record": index,
        }

    def length(self, index: int) -> int:
        """Return how many tokens a record has."""
        start, end = self.parts[index // ROWS].bounds[index % ROWS : index % ROWS + 2].tolist()
        return int(end - start)

    def source(self, index: int) -> Source | None:
        """Return where a record stands; None for what was not read from a file."""
        return self.sources[int(self.parts[index // ROWS].records[index % ROWS])]

    @property
    def remarks(self) -> Sequence[str]:  # type: ignore[override]
        """What was done with records that were too long, and what of them is not learned."""
        cut = sum(int(part.cut.sum()) for part in self.parts)
        done = {"cut at the beginning of the prompt": cut, "left out": len(self.sources) - self.size}
        told = ", ".join(f"{count:,} {what}" for what, count in done.items() if count)
        remarks = [f"Of {len(self.sources):,} records, longer than {self.max_length} tokens: {told}."] if told else []
        if self.rejected:
            remarks.append(f"{self.rejected:,} records have a 'rejected' answer, of which nothing is learned here.")
        return remarks


def encode_records(examples: Sequence[Example], encoder: Encoder, settings: DataSettings, name: str) -> EncodedTable:
    """Return all records of a data set, encoded now, or taken from the cache.

    Processes that ask for the same records at once wait for the first of them. Whatever is wrong with the cache, the
    records are encoded all the same.

    Args:
        examples: the records.
        encoder: how they are encoded.
        settings: `too_long`, `cache`.
        name: of the data set, for errors.

    Raises:
        UserError: records are too long, or none is left.
    """
    if any(example.train_on_all_turns for example in examples) and not can_train_on_all_turns(encoder.tokenizer):
        warnings.warn(
            f"{name}: of conversations, this model's template learns the last answer alone. data.turns=each learns "
            "every answer, each as an example of its own; data.turns=last says that this is meant.",
            stacklevel=2,
        )
    fresh = partial(rows_of, examples, encoder, settings, name)
    parts: list[Rows] | None = None
    if settings.cache and len(examples) >= ROWS and importlib.util.find_spec("pyarrow"):
        parts = load_cached(Path(constants.HF_HOME, "glmtune", f"{key_of(examples, encoder, settings)}.arrow"), fresh)
    table = EncodedTable(list(fresh()) if parts is None else parts, examples, encoder.max_length)
    if not len(table):
        raise UserError(f"{name}: none of {len(examples):,} records has at most {encoder.max_length} tokens.")
    return table


def rows_of(examples: Sequence[Example], encoder: Encoder, settings: DataSettings, name: str) -> Iterator[Rows]:
    """Yield records as rows, as they are encoded.

    Raises:
        UserError: the template does not take some, or some are too long; all of them are told.
    """
    faults: list[Fault] = []
    encodings: list[Encoding] = []
    cut: list[bool] = []
    refused: list[str] = []
    for index, example in enumerate(tqdm(examples, "encoding", unit="record", disable=len(examples) < ROWS)):
        try:
            encoding: Encoding | None = encode(encoder, example, index)
        except UserError as error:
            faults.append(refused_as_fault(example, error))
            continue
        fits = encoding is not None and encoder.fits(encoding)
        if encoding is not None and not fits:
            told = encoder.too_long(encoding)
            encoding = encoder.cut(example, index) if settings.too_long == "truncate" else None
            if encoding is None and settings.too_long != "drop":
                refused.append(
                    f"{example.source or f'number {index + 1}'} {told}: {plain_text(example.question)[:60]!r}"
                )
        if encoding is None or refused or faults:
            continue
        encodings.append(encoding)
        cut.append(not fits)
        if len(encodings) == ROWS:
            yield Rows.of(encodings, cut)
            encodings, cut = [], []
    if faults:
        raise UserError(explain(faults))
    if refused:
        raise UserError(all_too_long(refused, settings, f"{name}: {len(refused):,} of {len(examples):,} records"))
    if encodings:
        yield Rows.of(encodings, cut)


def all_too_long(refused: Sequence[str], settings: DataSettings, which: str) -> str:
    """Return what is said of records that are too long."""
    cut = settings.too_long == "truncate"
    lines = [f"{which} are too long{', and stay so when their prompts are cut' if cut else ''}:"]
    lines += [f"  {told}" for told in refused[:SHOWN]]
    if len(refused) > SHOWN:
        lines.append(f"  ... and {len(refused) - SHOWN:,} more")
    also = "" if cut else ", or truncate their prompts with data.too_long=truncate"
    lines.append(f"Leave them out with data.too_long=drop{also}.")
    return "\n".join(lines)

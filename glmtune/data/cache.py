"""Encodings are kept for the next run, as Arrow files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from glmtune.config import DataSettings
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import Encoding
from glmtune.examples import Example
from glmtune.files import is_own, private_folder, remove_leftovers, replacing
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from pyarrow import Buffer, RecordBatch

ROWS = 1000  # of a batch of the table; fewer records are not worth a file
FORMAT = 2  # of the files: with a digest behind them
DIGEST = 16  # bytes of it
# What decides how texts are encoded, beside the tokenizer's own files.
LIBRARIES = ("glmtune", "transformers", "tokenizers", "sentencepiece")


@dataclass(frozen=True)
class Rows:
    """Up to `ROWS` encodings, one behind the other.

    Attributes:
        ids, labels: (N,) tokens of all.
        bounds: (R + 1,) where each begins, and the last one ends.
        records: (R,) index of each among the examples.
        cut: (R,) whether something of it was cut off.
    """

    ids: np.ndarray
    labels: np.ndarray
    bounds: np.ndarray
    records: np.ndarray
    cut: np.ndarray

    @classmethod
    def of(cls, encodings: Sequence[Encoding], cut: Sequence[bool]) -> Rows:
        """Return rows from encodings."""
        ids, labels = (
            np.array([token for encoding in encodings for token in encoding[part]], np.int32)  # type: ignore[literal-required]
            for part in ("input_ids", "labels")
        )
        bounds = np.cumsum([0, *(len(encoding["input_ids"]) for encoding in encodings)], dtype=np.int32)
        return cls(ids, labels, bounds, np.array([e["record"] for e in encodings], np.int32), np.array(cut, bool))

    @classmethod
    def read(cls, batch: RecordBatch) -> Rows:
        """Return rows from a batch of an Arrow file, whose numbers stay where they are."""
        ids, labels, records, cut = batch.columns
        tokens, targets = ids.values.to_numpy(), labels.values.to_numpy()
        return cls(tokens, targets, ids.offsets.to_numpy(), records.to_numpy(), cut.to_numpy(zero_copy_only=False))

    def as_batch(self) -> RecordBatch:
        """Return a batch of an Arrow file: `input_ids`, `labels`, `record`, `cut`."""
        import pyarrow

        lists = (pyarrow.ListArray.from_arrays(self.bounds, values) for values in (self.ids, self.labels))
        columns = [*lists, pyarrow.array(self.records), pyarrow.array(self.cut)]
        return pyarrow.RecordBatch.from_arrays(columns, ["input_ids", "labels", "record", "cut"])


def load_cached(file: Path, fresh: Callable[[], Iterator[Rows]]) -> list[Rows] | None:
    """Return the rows of a file of the cache; None, with a warning, if there is no way to keep them.

    What is not there, damaged, or another user's is written now.

    Raises:
        UserError: records are too long.
    """
    try:
        make_folder(file.parent)
        if (found := intact(file)) is not None:
            return found
        with FileLock(file.with_suffix(".lock"), mode=0o600):
            if (found := intact(file)) is None:  # another process may have written it meanwhile
                if os.path.lexists(file):
                    file.unlink()
                    damaged = "does not hold what was written to it. The records are encoded anew, and it is replaced."
                    warnings.warn(f"{file}: {damaged}", stacklevel=3)
                write(fresh(), file)
                found = list(read(file))
        return found
    except UserError as error:
        if not isinstance(error.__cause__, OSError):  # of the records
            raise
        reason: Exception = error
    except (OSError, ValueError) as error:
        reason = error
    warnings.warn(f"{file}: tokens are not kept for the next run: {reason}", stacklevel=3)
    return None


def make_folder(folder: Path) -> None:
    """Make the cache's folder this user's own.

    Raises:
        OSError: it cannot be.
    """
    try:
        private_folder(folder)
    except UserError as error:
        raise OSError(str(error)) from None


def intact(file: Path) -> list[Rows] | None:
    """Return the rows of a file that is this user's and holds what was written; None of any other."""
    if not is_own(file):
        return None
    try:
        return list(read(file))
    except (OSError, ValueError):
        return None


def key_of(examples: Sequence[Example], encoder: Encoder, settings: DataSettings) -> str:
    """Return a hash of all that decides what the table holds."""
    digest = hashlib.blake2b(digest_size=20)
    with tempfile.TemporaryDirectory() as folder:
        encoder.tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    versions = [metadata.version(library) for library in LIBRARIES]
    digest.update(json.dumps([FORMAT, versions, encoder.max_length, encoder.train_on_bos, settings.too_long]).encode())
    for example in examples:
        record = [value for name, value in vars(example).items() if name not in ("facts", "source", "notes")]
        digest.update(json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def write(parts: Iterator[Rows], file: Path) -> None:
    """Write rows to an Arrow file with its digest behind it, which is there when all of it is."""
    import pyarrow

    remove_leftovers(file.parent)
    first = next(parts, Rows.of([], []))
    with replacing(file) as temporary:
        batch = first.as_batch()
        with pyarrow.OSFile(str(temporary), "wb") as sink, pyarrow.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
            for part in parts:
                writer.write_batch(part.as_batch())
        with temporary.open("ab") as end:
            end.write(digest_of(file, pyarrow.memory_map(str(temporary)).read_buffer()))
        temporary.chmod(0o600)


def digest_of(file: Path, content: Buffer) -> bytes:
    """Return a hash of what is in a file of the cache, and of the name by which that is asked for."""
    digest = hashlib.blake2b(file.stem.encode(), digest_size=DIGEST)
    digest.update(memoryview(content))
    return digest.digest()


def read(file: Path) -> Iterator[Rows]:
    """Yield the rows of a file that `write` wrote, mapped into memory.

    Raises:
        ValueError: it does not hold what was written to a file of this name. Nothing of it was looked at, as what reads
            Arrow files trusts their offsets.
    """
    import pyarrow

    buffer = pyarrow.memory_map(str(file)).read_buffer()
    content = buffer[: max(0, len(buffer) - DIGEST)]
    if digest_of(file, content) != buffer[len(content) :].to_pybytes():
        raise ValueError(f"{file}: does not hold what was written to it")
    reader = pyarrow.ipc.open_file(pyarrow.BufferReader(content))
    return (Rows.read(reader.get_batch(number)) for number in range(reader.num_record_batches))

"""Encodings are kept for the next run, as Arrow files."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
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
from glmtune.files import replacing
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

ROWS = 1000  # of a batch of the table; fewer records are not worth a file
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
    """Return the rows of a file of the cache, written now if it is not there; None, with a warning, if it is unusable.

    Raises:
        UserError: records are too long.
    """
    import pyarrow

    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                if not file.exists():
                    write(fresh(), file)
        return list(read(file))
    except UserError as error:
        if not isinstance(error.__cause__, OSError):  # of the records
            raise
        reason: Exception = error
    except (OSError, pyarrow.ArrowException) as error:
        reason = error
        with suppress(OSError):
            file.unlink(missing_ok=True)  # damaged
    warnings.warn(f"{file}: tokens are not kept for the next run: {reason}", stacklevel=3)
    return None


def key_of(examples: Sequence[Example], encoder: Encoder, settings: DataSettings) -> str:
    """Return a hash of all that decides what the table holds."""
    digest = hashlib.blake2b(digest_size=20)
    with tempfile.TemporaryDirectory() as folder:
        encoder.tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    versions = [metadata.version(library) for library in LIBRARIES]
    digest.update(json.dumps([versions, encoder.max_length, encoder.train_on_bos, settings.too_long]).encode())
    for example in examples:
        record = [value for name, value in vars(example).items() if name not in ("facts", "source", "notes")]
        digest.update(json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def write(parts: Iterator[Rows], file: Path) -> None:
    """Write rows to an Arrow file, which is there when all of it is."""
    import pyarrow

    first = next(parts, Rows.of([], []))
    with replacing(file) as temporary:
        batch = first.as_batch()
        with pyarrow.OSFile(str(temporary), "wb") as sink, pyarrow.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
            for part in parts:
                writer.write_batch(part.as_batch())


def read(file: Path) -> Iterator[Rows]:
    """Yield the rows of an Arrow file, mapped into memory."""
    import pyarrow

    reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))
    return (Rows.read(reader.get_batch(number)) for number in range(reader.num_record_batches))

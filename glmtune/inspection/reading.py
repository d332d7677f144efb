"""What files hold, of which a report tells."""

from __future__ import annotations

from collections.abc import Iterable

from glmtune.config import DataSettings
from glmtune.examples import Example
from glmtune.records import Fault, read


def read_files(files: Iterable[str], settings: DataSettings) -> tuple[list[Example], list[Fault]]:
    """Return what files hold: records, and faults."""
    records: list[Example] = []
    faults: list[Fault] = []
    for file in files:
        for entry in read(file, settings.columns, settings.encoding, settings.turns, settings.join_turns):
            if isinstance(entry, Fault):
                faults.append(entry)
            else:
                records.append(entry)
    return records, faults

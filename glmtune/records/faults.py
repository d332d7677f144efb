"""What is wrong with records: told all together, or written beside the file that they are left out of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from glmtune.config import parts_of
from glmtune.files import replacing
from glmtune.runtime import read_json_lines
from glmtune.terminal import to_json

SKIPPED = ".skipped.jsonl"
SHOWN = 20  # faults that are told one by one
MOST = 1000  # faults after which reading stops, where none may be left out
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where.

    Attributes:
        file: that it is in.
        line: from 1; None where the whole file is meant.
        field: of the record; None where it is no record.
        message: what, and what to do.
        record: the row, or the text, as it stands.
        ends_file: nothing that follows in the file is read.
    """

    file: str
    line: int | None
    field: str | None
    message: str
    record: Any = dataclasses.field(default=None, repr=False, compare=False)
    ends_file: bool = False

    @property
    def is_of_one_record(self) -> bool:
        """Whether the others in the file can be read all the same."""
        return self.line is not None and not self.ends_file

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as a report has it."""
        return {"file": self.file, "line": self.line, "field": self.field, "message": self.message}


class Unreadable(Exception):
    """A file, or the rest of it, cannot be read.

    Attributes:
        line: where it was noticed, if in a line.
    """

    def __init__(self, message: str, line: int | None = None):
        self.line = line
        super().__init__(message)


def until_many(entries: Iterable[Entry | Fault]) -> Iterator[Entry | Fault]:
    """Yield what is read of records, up to the fault that makes `MOST`: of what follows, nobody would read more."""
    found = 0
    for entry in entries:
        yield entry
        found += isinstance(entry, Fault)
        if found == MOST:
            return


def explain(faults: Sequence[Fault], otherwise: str = "leave what is faulty out with data.on_error=skip") -> str:
    """Return faults as a message: the first ones, how many there are, and what can be done other than mending them.

    From `MOST` on the number is a lower bound: nobody may have looked for more.
    Where every fault is one of a whole file, there is nothing else.
    """
    remedy = f", or {otherwise}" if otherwise and any(fault.is_of_one_record for fault in faults) else ""
    if len(faults) == 1:
        return f"{faults[0]}\nMend it{remedy}." if remedy else str(faults[0])
    files = len({fault.file for fault in faults})
    place = faults[0].file if files == 1 else f"{files} files"
    count = f"at least {len(faults)}" if len(faults) >= MOST else len(faults)
    lines = [f"{place}: {count} faults:", *(f"  {fault}" for fault in faults[:SHOWN])]
    if len(faults) > SHOWN:
        lines.append(f"  ... and {len(faults) - SHOWN} more. `glmtune inspect` writes all of them to a report.")
    lines.append(f"Mend them{remedy}.")
    return "\n".join(lines)


def write_skipped(source: str, faults: Iterable[Fault]) -> Path:
    """Write what was left out, with the reasons, beside what it was left out of; return the file."""
    return _write(source, [{**fault.as_dict(), "record": fault.record} for fault in faults])


def add_skipped(source: str, faults: Iterable[Fault]) -> Path:
    """Write what was left out later, too, behind what `write_skipped` wrote; each line is there once."""
    place = skipped_of(source)
    before = [record for _, record in read_json_lines(place)] if place.is_file() else []
    new = [{**fault.as_dict(), "record": fault.record} for fault in faults]
    again = {(entry["file"], entry["line"]) for entry in new}
    return _write(source, [entry for entry in before if (entry.get("file"), entry.get("line")) not in again] + new)


def skipped_of(source: str) -> Path:
    """Return where what was left out of a file, a folder or a data set of the hub is written."""
    named, *parts = parts_of(source)
    path, name = Path(named), "-".join(filter(None, (Path(named).name, *parts)))
    return path.with_name(name + SKIPPED) if path.exists() else Path(source.replace("/", "-") + SKIPPED)


def _write(source: str, entries: Iterable[dict[str, Any]]) -> Path:
    place = skipped_of(source)
    with replacing(place) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for entry in entries:
            file.write(to_json(entry, default=str) + "\n")
    return place

"""The file of predictions: whether it can be written, how far it got, and what it is written from in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from glmtune.files import (
    check_output,
    check_unfinished,
    open_unfinished,
    remove_unfinished,
    replacing,
    unfinished,
    unfollowed,
)
from glmtune.records import arrow
from glmtune.records.fields import Row
from glmtune.records.formulas import Formulas
from glmtune.records.writing import LINES, WRITTEN, load_arrow, strict, write_beside, write_rows
from glmtune.registry import suggest
from glmtune.runtime import UserError, read_json_lines


@dataclass(frozen=True)
class Output:
    """The file of answers.

    Attributes:
        destination: what the user named.
        working: the JSON lines that grow while it is answered; the destination itself, if it is such a file. Else they
            are in a folder beside it in which nobody else can put a file or a link.
    """

    destination: Path
    working: Path

    @classmethod
    def at(cls, path: str | Path) -> Output:
        """Return the output of a path."""
        destination = Path(path)
        grows = destination.suffix.lower() in LINES
        return cls(destination, destination if grows else unfinished(destination))

    @property
    def named(self) -> str:
        """What the user named."""
        return str(self.destination)

    @property
    def suffix(self) -> str:
        """What tells what it is written as."""
        return self.destination.suffix.lower()

    @property
    def grows(self) -> bool:
        """Whether it is written as the answers come, and not at the end."""
        return self.working == self.destination

    def check(self, input: str, may_exist: bool) -> None:
        """See whether it can be written.

        Raises:
            UserError: it cannot, or something is there; or its name says that it is something else.
        """
        if self.suffix not in (*LINES, *WRITTEN):
            known = suggest(self.suffix, list(WRITTEN))
            raise UserError(f"--output {self.destination}: '{self.suffix}' files are not written.{known}")
        check_output(self.destination)
        if not self.grows:
            check_unfinished(self.working)
        if self.suffix in arrow.SUFFIXES:
            load_arrow()
        if self.destination.exists() and Path(input).exists() and self.destination.samefile(input):
            raise UserError(f"--output {self.destination}: is the input, too. Choose another name.")
        if Path(input).is_dir() and Path(input).resolve() in self.destination.resolve().parents:
            raise UserError(
                f"--output {self.destination}: is in the folder of the input, of which it would become a part."
            )
        for place, what in ((self.destination, "exists"), (self.working, "was begun")):
            if place.is_file() and place.stat().st_size and not may_exist:
                raise UserError(
                    f"--output {self.destination}: {what} already. Choose another name, go on with it (--resume), or "
                    "add --overwrite."
                )

    def count_done(self, rows: Sequence[Row]) -> int:
        """Return how many records of the input it holds; a last line that was cut off is taken away.

        Raises:
            UserError: it is whole already, or was made of another input.
        """
        if not self.grows and self.destination.exists() and not self.working.exists():
            raise UserError(f"--resume: {self.destination} is whole already. To answer again, add --overwrite instead.")
        if not self.working.is_file():
            return 0
        content = self.working.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with open(self.working, "r+b", opener=unfollowed) as file:
                file.truncate(len(whole))
        count = 0
        for (number, written), row in zip(read_json_lines(self.working), rows, strict=False):
            if strict(row) != {name: written[name] for name in row if name in written}:
                raise UserError(
                    f"--resume: line {number} of {self.working} is not that of the input. Was it made of another file? "
                    "Choose another name."
                )
            count = number
        if len(whole.splitlines()) > len(rows):
            raise UserError(f"--resume: {self.working} has more records than the input. Choose another name.")
        return count

    def open(self, resume: bool) -> TextIO:
        """Open the lines to write on, or anew: never through a link that has come since.

        Raises:
            OSError: they cannot be written.
        """
        if not self.grows:
            return open_unfinished(self.working, resume)
        return open(self.working, "a" if resume else "w", encoding="utf-8", opener=unfollowed)

    def finish(self, rows: Sequence[Row], table: Any, safe_cells: bool) -> Formulas:
        """Write what is no JSON lines: the records as they were given, with what was added to each.

        Args:
            rows: of the input, in order.
            table: that they were read from, whose columns keep their types; None: they are written as JSON has them.
            safe_cells: write as texts what a spreadsheet would run.

        Returns:
            The cells that a spreadsheet would run, or would have.
        """
        if self.grows:
            return Formulas()
        formulas = Formulas()
        lines = zip(rows, read_json_lines(self.working), strict=True)
        added = [{name: line[name] for name in line if name not in row} for row, (_, line) in lines]
        with replacing(self.destination) as temporary:
            if table is not None:
                write_beside(table, added, temporary, self.suffix)
            else:
                whole = ({**row, **more} for row, more in zip(rows, added, strict=True))
                formulas = write_rows(whole, temporary, self.suffix, safe_cells)
        remove_unfinished(self.working)
        return formulas

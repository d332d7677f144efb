"""Files in object storage (`s3://`, `gs://`, `abfs://`, `hdfs://`): read as copies, and written in parts that stay.

What a storage needs to know of its user it reads from its own variables and files, by pyarrow.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from glmtune.records.fields import Row
from glmtune.records.formulas import Formulas
from glmtune.records.output import Output
from glmtune.runtime import UserError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
PART_SECONDS, PART_CHARACTERS = 30.0, 2**23  # a part is stored when it is so old, or so long


def is_remote(path: str | Path) -> bool:
    """Return whether a path is one of object storage: `SCHEME://...`."""
    return _SCHEME.match(str(path)) is not None


@dataclass(frozen=True)
class Stored:
    """A file or a folder in object storage, which may not be there yet."""

    uri: str

    @cached_property
    def place(self) -> tuple[Any, str]:
        """The file system, and the path in it.

        Raises:
            UserError: pyarrow is not installed, or knows no such storage.
        """
        try:
            from pyarrow import ArrowException, fs
        except ImportError:
            raise UserError(f"{self.uri}: is read and written by pyarrow: pip install 'glmtune[data]'") from None
        try:
            system, path = fs.FileSystem.from_uri(self.uri)
        except (ArrowException, OSError) as error:
            raise UserError(f"{self.uri}: no such storage: {_first_line(error)}. Known: s3, gs, abfs, hdfs.") from None
        return system, path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return Path(self.place[1]).name

    def beside(self, suffix: str) -> Stored:
        """Return what has the same path with a suffix behind it."""
        path, question, options = self.uri.partition("?")
        return Stored(f"{path}{suffix}{question}{options}")

    def list(self) -> list[str]:
        """Return the paths of the files that are there: one of a file, those of a folder in order, none of nothing.

        Raises:
            UserError: it cannot be asked.
        """
        from pyarrow import fs

        system, path = self.place
        with self.told():
            found = system.get_file_info(path)
            if found.type == fs.FileType.Directory:
                inside = system.get_file_info(fs.FileSelector(path, recursive=True))
                return sorted(entry.path for entry in inside if entry.type == fs.FileType.File)
        return [path] if found.type == fs.FileType.File else []

    def fetch(self, to: Path) -> Path:
        """Copy it to a folder of this machine; return where it is.

        Raises:
            UserError: there is nothing, or it cannot be read.
        """
        from pyarrow import fs

        if not self.list():
            raise UserError(f"{self.uri}: no such file.")
        system, path = self.place
        with self.told():
            fs.copy_files(
                path, str(to / self.name), source_filesystem=system, destination_filesystem=fs.LocalFileSystem()
            )
        return to / self.name

    def write(self, content: bytes) -> None:
        """Write it whole.

        Raises:
            UserError: it cannot be written.
        """
        system, path = self.place
        with self.told():
            if system.type_name == "local":  # the others have no folders, or make them by themselves
                system.create_dir(str(Path(path).parent))
            with system.open_output_stream(path) as stream:
                stream.write(content)

    def store(self, file: Path) -> None:
        """Copy a file of this machine to it.

        Raises:
            UserError: it cannot be written.
        """
        from pyarrow import fs

        system, path = self.place
        with self.told():
            fs.copy_files(str(file), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system)

    def remove(self) -> None:
        """Take a folder away, if it is there."""
        system, path = self.place
        if self.list():
            with self.told():
                system.delete_dir(path)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell in a line what the storage says, with its address.

        Raises:
            UserError: the storage refuses something.
        """
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.uri}: {_first_line(error)}") from error


@contextmanager
def fetched(source: str) -> Iterator[str]:
    """Give a path of this machine to read records from: a copy of what lies in object storage; else the path itself.

    Raises:
        UserError: it cannot be fetched.
    """
    if not is_remote(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="glmtune-") as folder:
        yield str(Stored(source).fetch(Path(folder)))


@dataclass(frozen=True)
class RemoteOutput(Output):
    """The file of answers in object storage.

    It is made on this machine and stored in the end. Until then the lines are stored in parts, in the folder
    `NAME.parts` beside it, from which another machine can go on.

    Attributes:
        stored: what the user named.
        scratch: the folder on this machine, which goes with this object.
    """

    stored: Stored = field(default=Stored(""))
    scratch: Any = None

    @classmethod
    def at(cls, path: str | Path) -> Output:
        """Return the output of a path, of object storage or not."""
        if not is_remote(path):
            return Output.at(path)
        stored, scratch = Stored(str(path)), tempfile.TemporaryDirectory(prefix="glmtune-")
        local = Output.at(Path(scratch.name) / stored.name)
        return cls(local.destination, local.working, stored, scratch)

    @property
    def named(self) -> str:
        """What the user named."""
        return self.stored.uri

    @property
    def parts(self) -> Stored:
        """The folder of the parts."""
        return self.stored.beside(".parts")

    def check(self, input: str, may_exist: bool) -> None:
        """Do what `Output.check` does, where it will be stored.

        Raises:
            UserError: as `Output.check`.
        """
        super().check(input, may_exist)
        if input.partition("?")[0] == self.stored.uri.partition("?")[0]:
            raise UserError(f"--output {self.stored.uri}: is the input, too. Choose another name.")
        for place, what in ((self.stored, "exists"), (self.parts, "was begun")):
            if not may_exist and place.list():
                raise UserError(
                    f"--output {self.stored.uri}: {what} already. Choose another name, go on with it (--resume), or "
                    "add --overwrite."
                )

    def count_done(self, rows: Sequence[Row]) -> int:
        """Do what `Output.count_done` does, with the lines of all parts.

        Raises:
            UserError: as `Output.count_done`.
        """
        parts = self.parts.list()
        if not parts and self.stored.list():
            raise UserError(f"--resume: {self.stored.uri} is whole already. To answer again, add --overwrite instead.")
        system, _ = self.parts.place
        with super().open(resume=False) as file, self.parts.told():
            for part in parts:
                with system.open_input_stream(part) as stream:
                    file.write(stream.read().decode("utf-8"))
        return super().count_done(rows)

    def open(self, resume: bool) -> Any:
        """Open the lines to write on, or anew; they are stored as they grow.

        Raises:
            OSError: they cannot be written.
        """
        if not resume:
            self.parts.remove()
        return Parts(super().open(resume), self.parts, len(self.parts.list()))

    def finish(self, rows: Sequence[Row], table: Any, safe_cells: bool) -> Formulas:
        """Do what `Output.finish` does, store it, and take the parts away."""
        formulas = super().finish(rows, table, safe_cells)
        self.stored.store(self.destination)
        self.parts.remove()
        return formulas


class Parts:
    """A file of lines on this machine, of which what is written is stored soon, as parts in their order."""

    def __init__(self, file: TextIO, folder: Stored, count: int) -> None:
        """Go on after so many parts."""
        self.file, self.folder, self.count = file, folder, count
        self.pieces: list[str] = []
        self.since = time.monotonic()

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *error: object) -> None:
        self.store()
        self.file.close()

    def write(self, text: str) -> None:
        """Write a piece."""
        self.file.write(text)
        self.pieces.append(text)

    def flush(self) -> None:
        """Hand what was written to the system, and to the storage if it is time."""
        self.file.flush()
        if time.monotonic() - self.since > PART_SECONDS or sum(map(len, self.pieces)) > PART_CHARACTERS:
            self.store()

    def store(self) -> None:
        """Store what was not yet."""
        if self.pieces:
            self.folder.beside(f"/{self.count:08}.jsonl").write("".join(self.pieces).encode())
            self.count, self.pieces = self.count + 1, []
        self.since = time.monotonic()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

"""The header of a GGUF file, read within bounds: what it says, and which tensors it holds where.

A file is a stranger's: counts, lengths and offsets are held against the size of the file before anything is made by
them (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.files import check_named
from glmtune.runtime import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS, MOST_TENSORS, MOST_DIMENSIONS = 2**16, 2**20, 4
MOST_HEADER = 64 * 2**20  # bytes; those of vocabularies of 262,144 tokens have 15 MB
MOST_ALIGNMENT = 2**20
STRING, ARRAY = 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # struct's letters
AGAIN = "Copy or download it again."


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is, and how it is stored.

    Attributes:
        file: that holds it.
        shape: rows first; ggml itself counts the other way round.
        kind: a member of `gguf.GGMLQuantizationType`.
        start, size: of its bytes in the file.
    """

    file: Path
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its tensors.

    Attributes:
        file: the file, of the parts of one the first.
        values: key -> number, text or list.
        tensors: ggml's name -> where it is.
    """

    file: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """Return ggml's name of the architecture."""
        return str(self.values.get("general.architecture"))

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return a value that must be of a kind, if it is there.

        Raises:
            UserError: it is of another kind.
        """
        value = self.values.get(key, default)
        fits = type(value) is kind or (kind is float and type(value) is int)
        if value is not None and not fits:
            raise UserError(f"{self.file}: {key} is {str(value)[:60]!r}, and must be of type {kind.__name__}. {AGAIN}")
        return value


def load_library() -> Any:
    """Import the `gguf` package, which is an extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError("A GGUF file needs the package gguf. Install it: pip install 'glmtune[gguf]'") from error
    return gguf


def read_header(file: Path) -> Header:
    """Read what a GGUF file says, and see whether all of its tensors are in it. No tensor is read.

    Raises:
        UserError: no GGUF file, of another version or byte order, damaged or truncated.
    """
    check_named(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        check_magic(file, stream.read(24))
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            cursor = Cursor(file, content, min(size, MOST_HEADER))
            try:
                return cursor.header(size)
            except UnicodeDecodeError as error:
                raise UserError(f"{file} is damaged: {error} at byte {cursor.place:,}. {AGAIN}") from error


def check_magic(file: Path, start: bytes) -> None:
    """See whether a file begins as GGUF files do that are read here.

    Raises:
        UserError: it does not.
    """
    if start[:4] != MAGIC:
        what = "a Git-LFS pointer, not the file itself" if start.startswith(b"version https://git-lfs") else "none"
        older = start[:4] in (b"lmgg", b"tjgg", b"algg", b"fmgg")  # ggml, ggjt, ggla, ggmf, as numbers of four bytes
        what = "of a format before GGUF" if older else what
        remedy = "Convert the release anew with llama.cpp." if older else "Download the file itself."
        raise UserError(f"{file} should be a GGUF file and is {what}: it begins with {start[:4]!r}. {remedy}")
    if len(start) < 24:
        raise UserError(f"{file} is truncated: {len(start)} bytes. {AGAIN}")
    version = int.from_bytes(start[4:8], "little")
    if version in VERSIONS:
        return
    if int.from_bytes(start[4:8], "big") in VERSIONS:
        raise UserError(
            f"{file} is written for big-endian machines. Take the usual file, or turn it round: "
            f"python -m gguf.scripts.gguf_convert_endian {file} little"
        )
    raise UserError(
        f"{file} is GGUF of version {version}, and {' and '.join(map(str, VERSIONS))} are read. Take a file of today's "
        "llama.cpp."
    )


@dataclass
class Cursor:
    """A place in the header of a file, which moves on as values are read.

    Attributes:
        file: for messages.
        content: its bytes.
        end: where the header must have ended.
        place: of the next byte.
    """

    file: Path
    content: mmap.mmap
    end: int
    place: int = 4

    def take(self, size: int) -> int:
        """Return where the next bytes begin, and go behind them.

        Raises:
            UserError: the file ends before.
        """
        start = self.place
        if size > self.end - start:
            raise UserError(
                f"{self.file} is truncated or damaged: at byte {start:,} of its header it says that {size:,} more "
                f"follow. {AGAIN}"
            )
        self.place += size
        return start

    def numbers(self, letters: str) -> tuple[Any, ...]:
        """Return the next numbers, by struct's letters."""
        layout = f"<{letters}"
        return struct.unpack_from(layout, self.content, self.take(struct.calcsize(layout)))

    def text(self) -> str:
        """Return the next text."""
        (size,) = self.numbers("Q")
        start = self.take(size)
        return self.content[start : start + size].decode("utf-8")

    def value(self, kind: int) -> Any:
        """Return the next value.

        Raises:
            UserError: of a kind that there is not, or a list of lists.
        """
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.numbers("IQ")
            if inner in NUMBERS:
                start = self.take(count * struct.calcsize(f"<{NUMBERS[inner]}"))
                return list(struct.unpack_from(f"<{count}{NUMBERS[inner]}", self.content, start))
            if inner == STRING and count <= (self.end - self.place) // 8:
                return [self.text() for _ in range(count)]
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind])[0]
        raise UserError(f"{self.file} is damaged: a value of kind {kind} at byte {self.place:,}. {AGAIN}")

    def header(self, size: int) -> Header:
        """Return the header of a file of so many bytes.

        Raises:
            UserError: it is damaged, or the file ends before its last tensor.
        """
        _, count, keys = self.numbers("IQQ")
        if keys > MOST_KEYS or count > MOST_TENSORS:
            raise UserError(f"{self.file} is damaged: it says that it has {keys:,} keys and {count:,} tensors. {AGAIN}")
        values = {}
        for _ in range(keys):
            key = self.text()
            values[key] = self.value(self.numbers("I")[0])
        entries = [self.entry() for _ in range(count)]
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= MOST_ALIGNMENT:
            raise UserError(f"{self.file} is damaged: general.alignment is {str(alignment)[:60]}. {AGAIN}")
        begin = -(-self.place // alignment) * alignment
        tensors = {
            name: TensorInfo(self.file, shape, kind, begin + at, length) for name, shape, kind, at, length in entries
        }
        if len(tensors) < count:
            raise UserError(f"{self.file} is damaged: two of its tensors have one name. {AGAIN}")
        needed = max((tensor.start + tensor.size for tensor in tensors.values()), default=0)
        if needed > size:
            raise UserError(f"{self.file} is truncated: {size:,} of {needed:,} bytes. {AGAIN}")
        return Header(self.file, values, tensors)

    def entry(self) -> tuple[str, tuple[int, ...], int, int, int]:
        """Return name, shape, kind, place and bytes of the next tensor.

        Raises:
            UserError: of a shape or a kind that there is not.
        """
        gguf = load_library()
        name, (dimensions,) = self.text(), self.numbers("I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise UserError(f"{self.file} is damaged: {name[:80]} has {dimensions} dimensions. {AGAIN}")
        shape = self.numbers(f"{dimensions}Q")[::-1]
        kind, place = self.numbers("IQ")
        if kind not in set(gguf.GGMLQuantizationType):
            raise UserError(
                f"{self.file}: {name[:80]} is stored as ggml's type {kind}, which the package gguf does not know. Take "
                "a file of another quantization, such as Q8_0 or Q4_K_M, or a newer gguf: pip install -U gguf"
            )
        numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        if shape[-1] % numbers:
            raise UserError(f"{self.file} is damaged: {name[:80]} has rows of {shape[-1]} numbers. {AGAIN}")
        return name, shape, kind, place, math.prod(shape) // numbers * size

"""Text files: opened if they are text in the right encoding, and read by the paragraph."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from glmtune.records.faults import Fault, Unreadable
from glmtune.records.fields import MOST_CHARACTERS

HUGE = f"a record of more than {MOST_CHARACTERS:,} characters, more than any model takes. Split it."
_ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is no text, as Python keeps it
_PACKED = {
    b"PK\x03\x04": "a zip or Excel file. Save it as CSV.",
    b"(\xb5/\xfd": "packed with zstd. Unpack it with unzstd.",
    b"BZh": "packed with bzip2. Unpack it with bunzip2.",
    b"\xfd7zXZ": "packed with xz. Unpack it with unxz.",
    b"PAR1": "a Parquet file. Name it .parquet.",
    b"ARROW1": "an Arrow file. Name it .arrow.",
}
_GZIP = b"\x1f\x8b"  # of all that packs files, what Python itself unpacks
_MOST_BYTES = 2**22  # unpacked, of what is packed more than this many times smaller
_MOST_PACKED = 100


@contextmanager
def open_text(path: Path, encoding: str, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file, also one packed with gzip. Bytes that are no text are kept, for `check_text` to find.

    Args:
        path, encoding: of the file.
        newline: as `open` takes it; by default lines end with any of the three line ends.

    Raises:
        Unreadable: packed otherwise, cut off, made to fill the memory, or in an encoding that its first bytes tell.
    """
    try:
        check_head(head_of(path), encoding)
        encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
        with _open(path) as binary, io.TextIOWrapper(binary, encoding, "surrogateescape", newline) as file:
            yield file
    except UnicodeDecodeError as error:
        raise Unreadable(f"not {encoding} text: {error}. Set data.encoding to what it is.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unreadable(f"packed with gzip, and damaged: {error}. Copy or download it again.") from None


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        is_packed = file.read(len(_GZIP)) == _GZIP
    return cast(BinaryIO, _Unpacked(path)) if is_packed else path.open("rb")


class _Unpacked(gzip.GzipFile):
    """A file packed with gzip, of which ten megabytes may hold ten gigabytes."""

    def read1(self, size: int = -1) -> bytes:
        """Return what comes next; texts are read by this alone.

        Raises:
            Unreadable: no texts are packed so much smaller.
        """
        read = super().read1(size)
        whole, packed = self.tell(), cast(BinaryIO, self.fileobj).tell()
        if whole > _MOST_BYTES and whole > _MOST_PACKED * packed:
            raise Unreadable(
                f"packed with gzip, {packed:,} bytes of it hold {whole:,}, which few texts do. If you know what it is, "
                "unpack it with gunzip."
            )
        return read


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file, unpacked."""
    with _open(path) as file:
        return file.read(4096)


def check_head(head: bytes, encoding: str = "utf-8") -> None:
    """See whether the first bytes of a file are those of a text in this encoding.

    Raises:
        Unreadable: it is no text, or in another encoding.
    """
    for sign, what in _PACKED.items():
        if head.startswith(sign):
            raise Unreadable(what)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and "16" not in encoding:
        raise Unreadable("UTF-16 text. Set data.encoding=utf-16, or convert it: iconv -f UTF-16 -t UTF-8")


def check_text(text: str, line: int, encoding: str) -> None:
    """See whether a text was read in the right encoding; Chinese files are often GBK.

    Raises:
        Unreadable: it was not, with what it may be.
    """
    found = _ESCAPED.search(text)
    if found is None:
        return
    called = encoding.upper()
    if codecs.lookup(encoding).name == "utf-8":
        line += text.count("\n", 0, found.start())
        start = text.rfind("\n", 0, found.start()) + 1
        raw = text[start:].partition("\n")[0].encode("utf-8", "surrogateescape")
        sample = as_gbk(raw)
        if sample:
            raise Unreadable(
                f"not UTF-8 text, but GBK would read it: {sample.strip()[:60]!r}. If that is right, set "
                "data.encoding=gb18030, or convert it: iconv -f GB18030 -t UTF-8",
                line,
            )
        called = "UTF-8 text, nor GBK"
    byte = ord(found[0]) - 0xDC00
    raise Unreadable(f"not {called}: byte 0x{byte:02x}. Set data.encoding to what it is, or convert it.", line)


def as_gbk(raw: bytes) -> str:
    """Return what GBK reads, or nothing if it cannot; the end may be cut within a character."""
    for end in range(len(raw), max(len(raw) - 4, 0), -1):
        try:
            return raw[:end].decode("gb18030")
        except UnicodeDecodeError:
            continue
    return ""


def read_text(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, `{"text": ...}`) of each paragraph: lines with blank lines around them.

    Longer documents are written as JSON lines with a field `text`.
    """
    with open_text(path, encoding) as file:
        paragraph: list[str] = []
        for number, text in enumerate(chain(file, [""]), start=1):
            check_text(text, number, encoding)
            if text.strip():
                paragraph.append(text)
            elif paragraph:
                start = number - len(paragraph)
                whole = "".join(paragraph).rstrip()
                yield start, Fault(str(path), start, None, HUGE) if len(whole) > MOST_CHARACTERS else {"text": whole}
                paragraph = []

"""Text files: opened if they are text in the right encoding, and read by the paragraph."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from glmtune.records.faults import Fault, Unreadable
from glmtune.records.fields import MOST_CHARACTERS

HUGE = f"a record of more than {MOST_CHARACTERS:,} characters, more than any model takes. Split it."
_ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is no text, as Python keeps it
_PACKED = {
    b"PK\x03\x04": "a zip or Excel file. Save it as CSV.",
    b"\x1f\x8b": "packed with gzip. Unpack it with gunzip.",
    b"(\xb5/\xfd": "packed with zstd. Unpack it with unzstd.",
    b"PAR1": "a Parquet file. Name it .parquet.",
}


@contextmanager
def open_text(path: Path, encoding: str, newline: str = "\n") -> Iterator[TextIO]:
    """Open a text file. Bytes that are no text are kept, for `check_text` to find.

    Raises:
        Unreadable: packed, or in an encoding that its first bytes tell.
    """
    with path.open("rb") as binary:
        check_head(binary.read(4096), encoding)
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    with path.open(encoding=encoding, errors="surrogateescape", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise Unreadable(f"not {encoding} text: {error}. Set data.encoding to what it is.") from None


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
                whole = "".join(paragraph).replace("\r\n", "\n").rstrip()
                yield start, Fault(str(path), start, None, HUGE) if len(whole) > MOST_CHARACTERS else {"text": whole}
                paragraph = []

"""The small files of a checkpoint, made of a GGUF file's header, where libraries that read folders find them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from glmtune.models.gguf.configuration import config_of
from glmtune.models.gguf.files import Stamps, open_parts, stamps_of
from glmtune.models.gguf.tokenizer import tokenizer_of
from glmtune.terminal import to_json


def unpack(file: Path | str) -> Path:
    """Return a folder with `config.json`, tokenizer and template of a GGUF file, but no weights.

    It is this process's own, and gone when that ends: to make it takes less than to find out whether an older one is
    still true.

    Raises:
        UserError: the file is damaged or incomplete, or of a kind that is not read here.
    """
    stamps = stamps_of(file)
    return Path(_unpacked(stamps).name) / stamps[0][0].name


@cache
def _unpacked(stamps: Stamps) -> tempfile.TemporaryDirectory[str]:
    header = open_parts(stamps)
    contents = {"config.json": config_of(header), **tokenizer_of(header)}
    temporary = tempfile.TemporaryDirectory(prefix="glmtune-")
    folder = Path(temporary.name) / header.file.name
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_text(to_json(content), encoding="utf-8")
    return temporary

"""GGUF files as users name them: a file, a folder with one, or the parts of one that was split."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from glmtune.files import check_folder
from glmtune.models.gguf.header import AGAIN, MAGIC, Header, read_header
from glmtune.runtime import UserError

SUFFIX = ".gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")  # as llama-gguf-split names them
MOST_PARTS = 1000
# What general.type says of files that are no models, and what to do with them.
OTHERS = {
    "adapter": (
        "a LoRA adapter, no model. Name the model, and train from the adapter's folder in peft's format; or merge the "
        "two with llama.cpp's llama-export-lora, and name what that gives."
    ),
    "mmproj": "the part of a model that sees images, without the model. Name the file beside it that holds the model.",
    "imatrix": "a record of what matters in a model for its quantization, no model. Name the model.",
    "vocab": "a vocabulary without a model. Name the model.",
}


def is_gguf(path: Path | str) -> bool:
    """Return whether a path is that of a GGUF file, by its name, or by how it begins: Ollama names files by hashes."""
    path = Path(path)
    if path.suffix.lower() == SUFFIX:
        return not path.is_dir()
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def find_in(folder: Path) -> Path | None:
    """Return the GGUF file of a folder that holds one, of parts the first; None where it holds none.

    Raises:
        UserError: it holds several, or a link out of it.
    """
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if not found:
        return None
    check_folder(folder)
    whole = {first_part(file) for file in found}
    if len(whole) > 1:
        names = ", ".join(file.name for file in sorted(whole)[:4]) + (" ..." if len(whole) > 4 else "")
        raise UserError(
            f"model.path: {folder} holds {len(whole)} GGUF files: {names}. Name one of them, with its folder."
        )
    return whole.pop()


def first_part(file: Path) -> Path:
    """Return the first part of a file that was split; the file itself where it was not."""
    part = PART.fullmatch(file.name)
    return file.with_name(f"{part['stem']}-00001-of-{part['count']}{SUFFIX}") if part else file


def parts_of(file: Path) -> list[Path]:
    """Return the parts of a file that was split, in order; the file alone where it was not.

    Raises:
        UserError: there are more than one file can have.
    """
    part = PART.fullmatch(file.name)
    if part is None:
        return [file]
    count = int(part["count"])
    if not 0 < count <= MOST_PARTS:
        raise UserError(f"model.path: {file}: no file is split into {count} parts. Give it another name.")
    return [file.with_name(f"{part['stem']}-{number:05d}-of-{part['count']}{SUFFIX}") for number in range(1, count + 1)]


Stamps = tuple[tuple[Path, int, int], ...]  # file, size and time of change of each part


def stamps_of(file: Path | str) -> Stamps:
    """Return the parts of a model's file, each with its size and when it was changed.

    Raises:
        UserError: no such file, or a part is missing.
    """
    parts = parts_of(first_part(Path(file)))
    if missing := [part for part in parts if not part.exists()]:
        if len(parts) == 1:
            raise UserError(f"model.path: no such file: {file}.")
        raise UserError(
            f"model.path: {file} is split, and lacks {len(missing)} of its {len(parts)} parts: {missing[0].name}"
            f"{' ...' if len(missing) > 1 else ''}. Copy or download them into the same folder."
        )
    return tuple((part, part.stat().st_size, part.stat().st_mtime_ns) for part in parts)


def open_model(file: Path | str) -> Header:
    """Return what the GGUF file of a model says, with the tensors of all of its parts.

    Raises:
        UserError: no such file, a part is missing or damaged, or it is no language model.
    """
    return open_parts(stamps_of(file))


@lru_cache(maxsize=1)
def open_parts(stamps: Stamps) -> Header:
    """Do what `open_model` does; the same parts are read once.

    Raises:
        UserError: a part is damaged, or the file is no language model.
    """
    headers = [read_header(part) for part, _, _ in stamps]
    first = headers[0]
    check_model(first)
    told = first.get("split.count", int, 0) or 1
    if told != len(headers):
        raise UserError(
            f"model.path: {first.file} is one of {told} parts, which are found by their names: "
            f"NAME-00001-of-{told:05d}{SUFFIX} and so on. Give them these names, or join them: llama-gguf-split --merge"
        )
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    if len(tensors) < sum(len(header.tensors) for header in headers):
        raise UserError(f"model.path: {first.file}: two of its parts hold the same tensor. {AGAIN}")
    return replace(first, tensors=tensors)


def check_model(header: Header) -> None:
    """See whether a file is a language model.

    Raises:
        UserError: it is something else.
    """
    kind = header.get("general.type", str, "model")
    if header.get("general.architecture", str) == "clip":
        kind = "mmproj"
    if kind != "model":
        what = OTHERS.get(kind, f"of general.type={kind[:40]}, which is no model. Name the model.")
        raise UserError(f"model.path: {header.file} is {what}")
    if "general.architecture" not in header.values:
        number = header.get("split.no", int, 0)
        if number:
            raise UserError(f"model.path: {header.file} is part {number + 1} of a split file. Name the first part.")
        raise UserError(f"model.path: {header.file} does not say which architecture it has. {AGAIN}")

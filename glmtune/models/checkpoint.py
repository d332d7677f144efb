"""The files of a checkpoint: where they are, whether they are whole, and weights that are read one at a time."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shlex
import textwrap
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from glmtune import network
from glmtune.files import check_folder
from glmtune.models.families import all_families
from glmtune.models.gguf.files import first_part, is_gguf, parts_of
from glmtune.models.gguf.header import read_header
from glmtune.runtime import UserError

MOST_JSON = 64 * 2**20  # bytes; the largest indexes of today have less than one
LFS_MARK = b"version https://git-lfs"
SHARD_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
# What is fetched of a hub repository beside the weights. What a family adds is read as a text: code is never run.
SMALL_FILES = ("*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken")


@contextmanager
def reading(what: str, path: str) -> Iterator[None]:
    """Explain in a line, with the place, what a library cannot do with the files of a checkpoint or an adapter.

    What is here is read without the network, whatever they name. What libraries will change one day is not said.

    Raises:
        UserError: in place of whatever the block raises; the libraries document no classes of errors.
    """
    try:
        with network.closed() if Path(path).exists() else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except UserError:
        raise
    except Exception as error:
        reason = textwrap.shorten(str(error).partition("\n\n")[0], 300, placeholder=" ...") or type(error).__name__
        if Path(path).exists():
            for file in weight_files(Path(path)):
                check_weight_file(file)  # which one it is, and what is wrong with it
            raise UserError(f"{path}: its {what} cannot be read: {reason}") from error
        raise UserError(
            f"model.path: there is no folder {path} here, and the hub gives no {what} of that name: {reason}"
        ) from error


def check_checkpoint(folder: Path) -> None:
    """Look for what makes loading fail later and less clearly.

    Raises:
        UserError: no `config.json`, or a file that is damaged or missing.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path: {folder} has no config.json, so it is no checkpoint directory.")
    check_files(folder)


def check_files(folder: Path) -> None:
    """Check the files of a checkpoint or an adapter, without reading weights.

    Raises:
        UserError: a link out of the folder, a Git-LFS pointer, a truncated safetensors file, or a missing shard.
    """
    check_folder(folder)
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        check_pointer(file)
        if file.suffix == ".safetensors":
            check_safetensors(file)
    files = {file.suffix for file in weight_files(folder)}  # an index of others, left over, does not matter
    for index in folder.glob("*.index.json"):
        shards = shards_of(index)
        if files and Path(index.name.removesuffix(".index.json")).suffix not in files:
            continue
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            names = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            raise UserError(
                f"{folder} lacks {len(missing)} of {len(shards)} weight files: {names}. Copy or download them."
            )


def shards_of(index: Path) -> set[str]:
    """Return the weight files that an index names: files of its own folder, by their names alone.

    Raises:
        UserError: it names none, or what lies elsewhere.
    """
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict):
        raise UserError(f"{index} is damaged: it has no weight_map. Copy or download it again.")
    for shard in named.values():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise UserError(
                f"{index} is refused: it names {str(shard)[:80]!r} as a weight file, which is no name of a file beside "
                "it. Take the index of the release."
            )
    return set(named.values())


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint or an adapter.

    Raises:
        UserError: the file holds none.
    """
    if file.stat().st_size > MOST_JSON:
        raise UserError(f"{file} is damaged: more than {MOST_JSON // 2**20} MB of JSON. Copy or download it again.")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}. Copy or download it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is damaged: not a JSON object. Copy or download it again.")
    return value


def is_pointer(file: Path) -> bool:
    """Return whether Git LFS has left a pointer in a file's place."""
    with file.open("rb") as stream:
        return stream.read(len(LFS_MARK)) == LFS_MARK


def check_pointer(file: Path) -> None:
    """Check that a file is itself.

    Raises:
        UserError: it is a Git-LFS pointer.
    """
    if is_pointer(file):
        place = shlex.quote(str(file.parent))
        raise UserError(f"{file} is a Git-LFS pointer, not the file itself. Fetch it: cd {place} && git lfs pull")


def check_weight_file(
    file: Path, remedy: str = "Take the weights as safetensors, from a source that you trust."
) -> None:
    """Check that a file of weights is whole, and holds nothing else. The weights stay in the file.

    Args:
        file: safetensors, GGUF, or what Python pickled.
        remedy: where it carries code.

    Raises:
        UserError: a pointer, damaged, truncated, or pickled with code, which is read, never run.
    """
    check_pointer(file)
    if file.suffix == ".safetensors":
        check_safetensors(file)
        return
    if is_gguf(file):
        read_header(file)
        return
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions of the format, beside the refusal
            torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file} carries code besides weights ({code[1]}), and is refused. Do not load it anywhere. {remedy}"
            ) from None
        raise UserError(
            f"{file} is no file of weights, or damaged, and is refused. Copy or download it again."
        ) from None
    except Exception as error:  # torch documents no classes of errors
        raise UserError(
            f"{file} is truncated or damaged ({type(error).__name__}). Copy or download it again."
        ) from None


def check_safetensors(file: Path) -> None:
    """Compare the size of a safetensors file with what its header promises.

    Raises:
        UserError: the file is shorter or longer, or has no header.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(header_size)) if 0 < header_size < size else None
        except (ValueError, RecursionError):
            header = None
    entries = header.items() if isinstance(header, dict) else ()
    if not entries or not all(name == "__metadata__" or is_entry(entry) for name, entry in entries):
        raise UserError(f"{file} is damaged: {size} bytes without a readable header. Copy or download it again.")
    ends = [entry["data_offsets"][1] for name, entry in entries if name != "__metadata__"]
    expected = 8 + header_size + max(ends, default=0)
    if size != expected:
        raise UserError(f"{file} is truncated: {size} of {expected} bytes. Copy or download it again.")


def is_entry(entry: Any) -> bool:
    """Return whether something is what a safetensors header says of a weight."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(offset, int) for offset in offsets)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint or an adapter: safetensors where there are any, else pickled ones.

    What an index names, or the file of the usual name, where there is one: others may lie beside it. A GGUF file in the
    place of a folder has its parts.
    """
    if is_gguf(folder):
        return parts_of(first_part(folder))
    for pattern in WEIGHT_PATTERNS:
        files = sorted(folder.glob(pattern))
        usual = folder / pattern.replace("*", "" if pattern.startswith("pytorch") else "model")
        indexes = [folder / f"{usual.name}.index.json"] if (folder / f"{usual.name}.index.json").is_file() else []
        if usual in files:
            return [usual]
        if files and indexes:
            return sorted({folder / name for name in shards_of(indexes[0])} & set(files))
        if files:
            return files
    return []


def fingerprint(folder: Path | str) -> str:
    """Return a short hash of a checkpoint's weights: name, size, first and last megabyte of each file.

    GGUF files, which users give names to, have none in it.
    """
    digest = hashlib.sha256()
    for file in weight_files(Path(folder)):
        size = file.stat().st_size
        digest.update(f"{'' if is_gguf(file) else file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(2**20))
            stream.seek(max(0, size - 2**20))
            digest.update(stream.read(2**20))
    return digest.hexdigest()[:16]


def local_folder(path: str, weights: bool = True, revision: str | None = None) -> Path:
    """Return the directory of a checkpoint; that of a hub repository is taken from the cache, or fetched first.

    What is in the cache is used as it is, and nobody is asked. Downloads go on where they were cut off. The hub's
    mirror, its token and offline mode are huggingface_hub's own settings (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables).

    Args:
        path: a directory, or a hub name.
        weights: fetch these, too.
        revision: of the hub repository: a branch, a tag or a commit.

    Raises:
        UserError: only a file names the repository, and nobody says yes to it; the folder holds a link out of it, or
            what was fetched has an index of files elsewhere.
    """
    if Path(path).is_dir():
        check_folder(path)
        return Path(path)
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):
        folder = snapshot(path, weights, revision, local_files_only=True)
        if not weights or weight_files(folder):
            return folder
    if not constants.HF_HUB_OFFLINE:
        network.permit(path, "weights and small files" if weights else "small files", "model.path")
    return snapshot(path, weights, revision)


def snapshot(name: str, weights: bool, revision: str | None, local_files_only: bool = False) -> Path:
    """Return the folder of a hub repository in the cache, with the files that are wanted.

    Args:
        name, weights, revision: as `local_folder` takes them.
        local_files_only: fetch nothing; huggingface_hub raises where something is missing.
    """
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=local_files_only)
        )

    small = [*SMALL_FILES, *(name for family in all_families() for name in family.small_files)]
    folder = fetch([*small, *WEIGHT_PATTERNS[: int(weights)]])  # pickled weights only where there are no others
    if weights and not weight_files(folder):
        fetch(list(WEIGHT_PATTERNS))
    check_folder(folder)
    for index in folder.glob("*.index.json"):
        shards_of(index)
    return folder


def lazy_weights(folder: Path, mapped: bool = True) -> dict[str, Any]:
    """Return name -> weight of all files of a checkpoint: what gives a tensor when it is indexed, not before.

    Args:
        folder: of the checkpoint.
        mapped: weights are the mapped files themselves, as transformers loads them: nothing is copied. Where others are
            made of them, safetensors should be read piece by piece instead, or the whole checkpoint stays in memory
            beside what is made of it. Pickled weights are always mapped; they can hold nothing but tensors.
    """
    import torch
    from safetensors import safe_open

    weights: dict[str, Any] = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            reader = safe_open(str(file), framework="pt", backend="mmap" if mapped else "pread")
            weights |= {name: reader.get_slice(name) for name in reader.offset_keys()}
        else:
            weights |= torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    return weights


def parse_sentencepiece(content: bytes) -> Any:
    """Parse a sentencepiece model as protobuf's message.

    Raises:
        ValueError: it is none.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = vars(sentencepiece_model_pb2)["ModelProto"]()  # made when imported, where no type checker looks
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ValueError("not a sentencepiece model") from error
    return proto
